"""Trained weights mixed with those of the untouched backbone: what training does not teach is forgotten less.

Source: Robust fine-tuning of zero-shot models (WiSE-FT, arXiv:2109.01903); LM-Cocktail
(arXiv:2311.13534) does the same with embedding models.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qzhou.config.recipe import Recipe
from qzhou.encoder.backbone import Backbone, EmbeddingModel, choose_device, choose_dtype, load_recipe_model
from qzhou.encoder.encoder import Encoder
from qzhou.training.validation import ValidationSet, mean_scores, overall

State = Mapping[str, Tensor]


@torch.no_grad()
def mix_with_backbone(recipe: Recipe, model: EmbeddingModel, share: float) -> None:
    """Replace each weight w by (1 - share) w + share b, b that of the untouched backbone, in place."""
    untouched = load_recipe_model(recipe.model, dtype=torch.float32).model.state_dict()
    _set_mix(model, model.state_dict(), untouched, share)


@torch.no_grad()
def mix_best(
    recipe: Recipe, trained: Backbone, sets: Sequence[ValidationSet], shares: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """Leave a model with the share of the backbone that validates best; that share, and the score of each.

    Of equal scores the largest share is taken. Both models are mixed in float32 on the CPU.
    What is validated is a copy in the recipe's type, which is all that a GPU has to hold
    beside the trained engine.
    """
    device = choose_device(None if recipe.cluster.gpu else "cpu")
    untouched = load_recipe_model(recipe.model, dtype=torch.float32).model.state_dict()
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    model = copy.deepcopy(trained.model).to(device, choose_dtype(recipe.model.dtype, device)).eval()

    limit = {"query": recipe.model.max_query_tokens, "document": recipe.model.max_document_tokens}
    encoder = Encoder(model, trained.tokenizer, max_tokens=recipe.model.max_document_tokens)
    groups = [group for one in sets for group in one.groups]
    scores = {}
    for share in shares:
        _set_mix(model, before, untouched, share)
        parts = [torch.from_numpy(encoder.encode(texts, max_tokens=limit[side])) for side, texts in groups]
        scores[share] = round(overall(mean_scores(sets, torch.cat(parts))), 6)
    best = max(scores, key=lambda share: (scores[share], share))
    _set_mix(trained.model, before, untouched, best)
    return best, scores


def _set_mix(model: torch.nn.Module, trained: State, untouched: State, share: float) -> None:
    """Give a model the weights (1 - share) ``trained`` + share ``untouched``, in place."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(trained[name].lerp(untouched[name], share))
