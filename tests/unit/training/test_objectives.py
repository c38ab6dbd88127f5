"""From a batch to its loss: which texts are encoded, and what the recipe's loss settings add."""

import numpy as np
import pytest
import torch

from qzhou.errors import TrainingError
from qzhou.learning import LossSection
from qzhou.prompts import Prompt
from qzhou.recipe import ModelSection
from qzhou.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.training.batches import TrainingSet, build_batch
from qzhou.training.losses import Terms, info_nce, spread_out
from qzhou.training.objectives import loss_of
from qzhou.training.plan import PlannedBatch

MODEL = ModelSection(backbone="unused")
EXAMPLES = {
    "retrieval": [
        RetrievalExample(
            id=str(n), dataset="d", query=f"q{n}", positives=(f"p{n}",),
            negatives=tuple(Negative(text=f"n{n}.{k}", origin="mined") for k in range(n % 3)),
        )
        for n in range(5)
    ],
    "pair": [PairExample(id=str(n), dataset="d", text_a=f"a{n}", text_b=f"b{n}", score=n % 3) for n in range(5)],
    "classification": [LabeledExample(id=str(n), dataset="d", text=f"t{n}", label=f"l{n % 2}") for n in range(6)],
}  # fmt: skip


def embed(texts, *, max_tokens):
    assert max_tokens in {MODEL.max_query_tokens, MODEL.max_document_tokens}
    seeds = [int.from_bytes(text.encode(), "big") % 2**31 for text in texts]
    rows = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).double()
    return torch.nn.functional.normalize(rows, dim=1)


def batch(task):
    data = TrainingSet.of("d", Prompt(), EXAMPLES[task])
    return build_batch(PlannedBatch(0, "d", task, np.arange(len(data.examples))), data, negatives_per_query=2, seed=1)


def loss(made, make_recipe, how=embed, **settings):
    training = make_recipe(training={"loss": settings}).training
    return loss_of(made, how, MODEL, training)


def shortened(dimensions):
    def cut(texts, *, max_tokens):
        return torch.nn.functional.normalize(embed(texts, max_tokens=max_tokens)[:, :dimensions], dim=1)

    return cut


@pytest.mark.parametrize("task", EXAMPLES)
def test_matryoshka_adds_the_loss_of_shorter_vectors(task, make_recipe):
    made = batch(task)

    found = loss(made, make_recipe, matryoshka_dimensions=[4, 2], matryoshka_weights=[0.5, 0.25])

    parts = [loss(made, make_recipe, how=how) for how in (embed, shortened(4), shortened(2))]
    assert found.item() == pytest.approx((parts[0] + 0.5 * parts[1] + 0.25 * parts[2]).item(), rel=1e-9)


def test_a_dimension_that_the_model_does_not_have_is_refused(make_recipe):
    with pytest.raises(TrainingError, match="has 8, and the model's vectors have 8 dimensions"):
        loss(batch("retrieval"), make_recipe, matryoshka_dimensions=[8])


def test_weights_and_dimensions_must_fit():
    with pytest.raises(ValueError, match="1 entries and matryoshka_dimensions 2"):
        LossSection(matryoshka_dimensions=(2, 4), matryoshka_weights=(1.0,))


def test_a_querys_own_hard_negatives_are_known_and_spreading_is_added(make_recipe):
    made = batch("retrieval")
    queries, documents = (embed(texts, max_tokens=256) for texts in (made.queries, made.documents))
    own = torch.tensor([[text.startswith(f"n{n}.") for text in made.documents] for n in range(5)])

    found = loss(made, make_recipe, hardness=4.0, focal=1.0, false_negative_margin=0.2, spread_out=0.3)

    terms = Terms(hardness=4.0, focal=1.0, false_negative_margin=0.2)
    plain = info_nce(
        queries, documents, made.positive_B, temperature=0.02, own_negative_BM=own, terms=terms,
        blocked_document_BM=made.blocked_document_BM, blocked_query_BB=made.blocked_query_BB,
    )  # fmt: skip
    assert own.sum() == 4
    expected = plain + 0.3 * (spread_out(queries) + spread_out(documents[:5]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
