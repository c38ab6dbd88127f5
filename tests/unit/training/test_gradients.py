"""One rank: chunks, gradient cache and packing do not change the gradient of any loss."""

import pytest
import torch

from qzhou.config.training import DistillationSection, LossSection
from qzhou.encoder import load_backbone
from tests.ranks.problem import (
    TOLERANCE,
    assert_same,
    gradients,
    model_of,
    plain_gradients,
    three_tasks,
    torch_gradient,
)
from tests.torch_engine import TorchEngine


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": LossSection(matryoshka_dimensions=(8, 16), matryoshka_weights=(0.5, 2.0))},
        {"distillation": DistillationSection(teacher="t")},
        {"distillation": DistillationSection(teacher="t", kind="embeddings")},
        {"distillation": DistillationSection(kind="listwise", temperature=0.3, teacher_temperature=0.1)},
    ],
    ids=["losses", "matryoshka", "distilled scores", "distilled embeddings", "listwise"],
)
def test_chunks_held_or_encoded_twice_have_the_gradient_of_one_padded_batch(make_recipe, tiny_qwen2, settings):
    """Defects of peers: a gradient cache that forgets the temperature, or all chunks but the last."""
    recipe = three_tasks(make_recipe, **settings)
    found = model_of(tiny_qwen2)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    assert_same(gradients(engine, recipe, found.tokenizer, torch_gradient), plain_gradients(recipe, tiny_qwen2))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_texts_have_the_gradient_of_padded_ones(make_recipe, tiny_qwen2, attention, pooling, checkpointing):
    """Defect of peers: packed by position ids alone, the texts of a bidirectional decoder see each other."""
    recipe = three_tasks(make_recipe, gradient_checkpointing=checkpointing)
    gathered = []
    for packed in (False, True):
        found = load_backbone(str(tiny_qwen2), attention=attention, pooling=pooling, dtype=torch.float32)
        engine = TorchEngine(found.model, found.tokenizer, recipe.training, packed=packed)
        gathered.append(gradients(engine, recipe, found.tokenizer, torch_gradient, (0.05,), ("cached",)))

    for key, gradient in gathered[0].items():
        assert float((gradient - gathered[1][key]).norm() / gradient.norm()) < TOLERANCE, key
