"""From a batch to its loss: which texts are encoded, and what the recipe's loss settings add."""

import dataclasses

import numpy as np
import pytest
import torch

from qzhou.config.training import LossSection
from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.errors import DataError, TrainingError
from qzhou.training.batch_plan import PlannedBatch, PlannedRows
from qzhou.training.batches import build_batches
from qzhou.training.examples import TrainingSet
from qzhou.training.losses import InfoNCEMasks, InfoNCEOptions, info_nce, mixed_negatives, orthogonal_regularisation
from qzhou.training.objectives import batch_metrics, loss_of

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


def embed(texts):
    seeds = [int.from_bytes(text.encode(), "big") % 2**31 for text in texts]
    rows = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).double()
    return torch.nn.functional.normalize(rows, dim=1)


def batch(task):
    return batches(task)[0]


def batches(*tasks):
    data = {task: TrainingSet.of(task, Prompt(), EXAMPLES[task]) for task in tasks}
    parts = tuple(PlannedRows(task, task, np.arange(one.rows)) for task, one in data.items())
    return build_batches(PlannedBatch(0, parts), data, negatives_per_query=2, seed=1)


def texts(made):
    return [text for batch in made for _, kind in batch.text_groups for text in kind]


def loss(made, make_recipe, how=embed, teacher=None, distillation=None, **settings):
    made = made if isinstance(made, list) else [made]
    training = make_recipe(training={"loss": settings, "distillation": distillation or {}}).training
    return loss_of(made, how(texts(made)), training, teacher_ND=teacher and teacher(texts(made)), seed=5)


def shortened(dimensions):
    def cut(texts):
        return torch.nn.functional.normalize(embed(texts)[:, :dimensions], dim=1)

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
    queries, documents = (embed(texts) for texts in (made.queries, made.documents))
    own = torch.tensor([[text.startswith(f"n{n}.") for text in made.documents] for n in range(5)])

    found = loss(
        made, make_recipe, hardness=4.0, focal=1.0, false_negative_margin=0.2, orthogonal_regularisation=0.3
    )

    plain = info_nce(
        queries,
        documents,
        made.positive_B,
        masks=InfoNCEMasks(made.false_negative_mask_BM, made.same_query_mask_BB, own),
        options=InfoNCEOptions(0.02, hardness=4.0, focal=1.0, false_negative_margin=0.2),
    )
    assert own.sum() == 4
    expected = plain + 0.3 * (orthogonal_regularisation(queries) + orthogonal_regularisation(documents[:5]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_tasks_that_share_a_batch_count_by_their_examples(make_recipe):
    found = loss(batches("retrieval", "pair", "classification"), make_recipe)

    parts = {task: loss(batch(task), make_recipe).item() for task in EXAMPLES}
    expected = (5 * parts["retrieval"] + 5 * parts["pair"] + 6 * parts["classification"]) / 16
    assert found.item() == pytest.approx(expected, rel=1e-9)


def other(texts):
    return torch.nn.functional.normalize(embed(texts) + 0.3, dim=1)


def test_a_teachers_scores_are_learned_beside_the_labels(make_recipe):
    """The divergence in loops."""
    made = batch("retrieval")
    wanted = {"teacher": "x", "weight": 0.5, "temperature": 0.1}

    found = loss(made, make_recipe, teacher=other, distillation=wanted)

    student, teacher = (how(made.queries) @ how(made.documents).T / 0.1 for how in (embed, other))
    divergence = 0.0
    for query in range(5):
        seen = [m for m in range(len(made.documents)) if not made.false_negative_mask_BM[query, m]]
        p, q = ([one[query, m].exp() for m in seen] for one in (student, teacher))
        for a, b in zip(p, q, strict=True):
            divergence += (b / sum(q)) * ((b / sum(q)) / (a / sum(p))).log() / 5
    expected = loss(made, make_recipe) + 0.5 * divergence
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def scored(number, positive, *negatives):
    """An example whose texts have these scores; None where one has none."""
    found = tuple(Negative(text=f"n{number}.{k}", origin="mined", score=one) for k, one in enumerate(negatives))
    scores = () if positive is None else (positive,)
    positives = (f"p{number}",)
    return RetrievalExample(
        id=str(number),
        dataset="d",
        query=f"q{number}",
        positives=positives,
        negatives=found,
        positive_scores=scores,
    )


def test_listwise_distillation_is_the_divergence_over_each_querys_own_scored_texts(make_recipe):
    """In loops. Without a score of the positive, or of any negative, there is no list; no list adds nothing."""
    examples = [
        scored(0, 0.9, 0.2, 0.5),
        scored(1, None, 0.2, 0.5),
        scored(2, 0.8),
        scored(3, 0.7, None, 0.9),
        scored(4, 0.6, None),
    ]
    data = {"d": TrainingSet.of("d", Prompt(), examples)}
    planned = PlannedBatch(0, (PlannedRows("d", "retrieval", np.arange(5)),))
    (made,) = build_batches(planned, data, negatives_per_query=2, seed=1)
    wanted = {"kind": "listwise", "weight": 0.5, "temperature": 0.1, "teacher_temperature": 0.3}

    found = loss(made, make_recipe, distillation=wanted)

    divergence = 0.0
    for query, listed in ((0, {"p0": 0.9, "n0.0": 0.2, "n0.1": 0.5}), (3, {"p3": 0.7, "n3.1": 0.9})):
        p = [(embed([f"q{query}"])[0] @ embed([text])[0] / 0.1).exp() for text in listed]
        q = [np.exp(score / 0.3) for score in listed.values()]
        for a, b in zip(p, q, strict=True):
            divergence += (b / sum(q)) * ((b / sum(q)) / (a / sum(p))).log() / 5
    expected = loss(made, make_recipe) + 0.5 * divergence
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)  # scores are kept in float32
    metrics = batch_metrics([made], embed(texts([made])), listwise=True)
    assert metrics["scored_share"] == pytest.approx(2 / 5)
    assert "scored_share" not in batch_metrics([made], embed(texts([made])))


def test_a_known_answer_among_the_negatives_is_in_no_list():
    """Its own paraphrase has it as a positive."""
    one, other = scored(0, 0.9, 0.2, 0.5), scored(1, 0.8, 0.3)
    other = dataclasses.replace(other, query="Q0 ", positives=("n0.1",))
    data = {"d": TrainingSet.of("d", Prompt(), [one, other])}
    planned = PlannedBatch(0, (PlannedRows("d", "retrieval", np.arange(2)),))
    (made,) = build_batches(planned, data, negatives_per_query=2, seed=1)

    listed = {made.documents[m] for m in made.scored_mask[0].nonzero().flatten().tolist()}
    assert listed == {"p0", "n0.0"}


def test_a_teachers_vectors_are_learned_beside_the_labels(make_recipe):
    made = batch("pair")
    wanted = {"teacher": "x", "kind": "embeddings", "weight": 2.0}

    found = loss(made, make_recipe, teacher=other, distillation=wanted)

    all_texts = texts([made])
    distance = sum(1 - float(embed([one])[0] @ other([one])[0]) for one in all_texts) / len(all_texts)
    assert found.item() == pytest.approx(loss(made, make_recipe).item() + 2 * distance, rel=1e-9)


def test_a_teacher_of_another_width_cannot_give_its_vectors(make_recipe):
    wanted = {"teacher": "x", "kind": "embeddings"}

    with pytest.raises(DataError, match=r"teacher's vectors have 4 dimensions and the model's 8.*scores"):
        loss(batch("pair"), make_recipe, teacher=shortened(4), distillation=wanted)


def test_mixed_negatives_lie_between_two_own_ones_and_raise_the_loss(make_recipe):
    made = batch("retrieval")
    documents = embed(made.documents)

    mixed_KD, owner_K = mixed_negatives(documents, made.hard_negative_mask, count=3, seed=5)

    assert owner_K.tolist() == [2, 2, 2]  # the only query with two hard negatives
    own = documents[made.hard_negative_mask[2]]
    for vector in mixed_KD:
        assert float(vector.norm()) == pytest.approx(1.0)
        inside = torch.linalg.lstsq(own.T, vector).solution
        assert (inside >= 0).all()
        assert torch.allclose(own.T @ inside, vector)
    queries = embed(made.queries)
    total = torch.cat([documents, mixed_KD])
    logits = torch.cat([queries @ total.T, queries @ queries.T], 1) / 0.02
    left_out = torch.cat(
        [made.false_negative_mask_BM, owner_K[None] != torch.arange(5)[:, None], torch.eye(5).bool()], 1
    )
    expected = torch.nn.functional.cross_entropy(logits.masked_fill(left_out, -torch.inf), made.positive_B)
    assert loss(made, make_recipe, mixed_negatives=3).item() == pytest.approx(expected.item(), rel=1e-9)


def test_metrics_of_a_batch_in_loops():
    made = batches("retrieval", "pair", "classification")
    retrieval, pair, classes = made
    vectors = {text: embed([text])[0] for text in texts(made)}

    found = batch_metrics(made, embed(texts(made)))

    def cosine(a, b):
        return float(vectors[a] @ vectors[b])

    positive = [cosine(q, retrieval.documents[n]) for n, q in enumerate(retrieval.queries)]
    others = [max(cosine(q, d) for m, d in enumerate(retrieval.documents) if m != n)
              for n, q in enumerate(retrieval.queries)]  # fmt: skip
    of_classes = [cosine(t, p) for t, p in zip(classes.texts, classes.positives, strict=True)]
    highest = [
        max(
            cosine(t, n)
            for m, n in enumerate(classes.negatives)
            if classes.negative_label_M[m] != classes.label_B[i]
        )
        for i, t in enumerate(classes.texts)
    ]
    sides = [cosine(a, b) for a, b in zip(pair.texts_a, pair.texts_b, strict=True)]
    correct = [p > n for p, n in zip(positive + of_classes, others + highest, strict=True)]
    assert found["positive_cosine"] == pytest.approx(np.mean(positive + sides + of_classes), abs=1e-6)
    assert found["negative_cosine"] == pytest.approx(np.mean(others + highest), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(correct), abs=1e-6)


def test_what_is_masked_how_hard_negatives_are_and_whether_orders_agree_in_loops():
    retrieval, pair, classes = (batch(task) for task in EXAMPLES)
    cosine = (embed(retrieval.queries) @ embed(retrieval.documents).T).tolist()
    blocked, owner = retrieval.false_negative_mask_BM, retrieval.owner_M.tolist()
    rows, columns = range(5), range(len(owner))

    found = batch_metrics([retrieval], embed(texts([retrieval])), margin=0.1)

    masked = [blocked[i, m] or cosine[i][m] > cosine[i][i] + 0.1 for i in rows for m in columns if m != i]
    harder = []
    for i in rows:
        own = [cosine[i][m] for m in columns if owner[m] == i and m != i]
        if own:
            strange = [cosine[i][m] for m in columns if owner[m] != i and not blocked[i, m]]
            harder.append(np.mean([one < np.mean(own) for one in strange]))
    assert 0 < found["masked_share"] == pytest.approx(np.mean(masked), abs=1e-6)
    assert found["negative_hardness"] == pytest.approx(np.mean(harder), abs=1e-6)
    assert batch_metrics([retrieval], embed(texts([retrieval])))["masked_share"] == 0, (
        "without a margin only what is known"
    )

    cosines = [float(a @ b) for a, b in zip(embed(pair.texts_a), embed(pair.texts_b), strict=True)]
    scores = pair.score_P.tolist()
    agrees = [cosines[k] > cosines[m] for k in rows for m in rows if scores[k] > scores[m]]
    assert batch_metrics([pair], embed(texts([pair])))["order_agreement"] == pytest.approx(
        np.mean(agrees), abs=1e-6
    )

    labels = classes.label_B.tolist()
    same = [labels[i] == labels[j] for i in range(6) for j in range(6) if i != j]
    assert batch_metrics([classes], embed(texts([classes])))["masked_share"] == pytest.approx(
        np.mean(same), abs=1e-6
    )


def test_vectors_that_are_all_equal_agree_with_no_order():
    pair = batch("pair")

    assert batch_metrics([pair], torch.ones(10, 4) / 2)["order_agreement"] == 0.5
