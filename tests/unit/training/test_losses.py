"""Each loss equals its formula written in plain loops."""

import dataclasses
import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from qzhou.errors import DataError
from qzhou.training.losses import (
    InfoNCEMasks,
    InfoNCEOptions,
    classification_info_nce,
    cosent,
    info_nce,
    orthogonal_regularisation,
)

TEMPERATURES = [0.02, 0.05, 1.0]


def unit_rows(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def cosine(one, other):
    return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def info_nce_by_hand(query, document, positive, temperature, query_query=True, blocked=None, blocked_query=None):
    total = 0.0
    for i in range(len(query)):
        documents = [
            math.exp(cosine(query[i], document[m]) / temperature)
            for m in range(len(document))
            if blocked is None or not blocked[i][m]
        ]
        queries = [
            math.exp(cosine(query[i], query[j]) / temperature)
            for j in range(len(query))
            if query_query and j != i and (blocked_query is None or not blocked_query[i][j])
        ]
        own = math.exp(cosine(query[i], document[positive[i]]) / temperature)
        total -= math.log(own / (sum(documents) + sum(queries)))
    return total / len(query)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("queries", "documents"), [(1, 1), (1, 4), (3, 3), (4, 12)])
@pytest.mark.parametrize("query_query", [True, False])
def test_info_nce_matches_the_formula(queries, documents, temperature, query_query):
    query, document = unit_rows(queries, 8, seed=0), unit_rows(documents, 8, seed=1)
    positive = torch.arange(queries)

    loss = info_nce(query, document, positive, options=InfoNCEOptions(temperature, query_query=query_query))

    assert loss.item() == pytest.approx(
        info_nce_by_hand(query, document, positive, temperature, query_query), rel=1e-9
    )


def test_masked_documents_and_queries_leave_the_denominator():
    query, document, positive = (unit_rows(3, 8, seed=0), unit_rows(5, 8, seed=1), torch.tensor([0, 1, 2]))
    blocked = torch.zeros(3, 5, dtype=torch.bool)
    blocked[0, 3] = blocked[2, 1] = True
    twins = torch.zeros(3, 3, dtype=torch.bool)
    twins[0, 1] = twins[1, 0] = True

    masks = InfoNCEMasks(blocked, twins)
    loss = info_nce(query, document, positive, masks=masks, options=InfoNCEOptions(0.1))

    by_hand = info_nce_by_hand(query, document, positive, 0.1, blocked=blocked, blocked_query=twins)
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_widths_that_differ_are_refused():
    with pytest.raises(DataError, match=r"\(2, 4\).*\(2, 8\)"):
        info_nce(unit_rows(2, 4, 0), unit_rows(2, 8, 0), torch.arange(2))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scores", [[1.0, 0.0], [0.0, 1.0, 2.0, 2.0, 5.0], [3.0, 3.0]])
def test_cosent_matches_the_formula(scores, temperature):
    a, b = unit_rows(len(scores), 8, seed=0), unit_rows(len(scores), 8, seed=1)

    loss = cosent(a, b, torch.tensor(scores), temperature=temperature)

    total = 1.0
    for k, higher in enumerate(scores):
        for other, lower in enumerate(scores):
            if higher > lower:
                total += math.exp((cosine(a[other], b[other]) - cosine(a[k], b[k])) / temperature)
    assert loss.item() == pytest.approx(math.log(total), rel=1e-9)


def test_cosent_equals_the_library():
    a, b, score = (unit_rows(6, 8, 0), unit_rows(6, 8, 1), torch.tensor([0.0, 1.0, 0.5, 2.0, 2.0, 0.0]))

    theirs = CoSENTLoss(model=None, scale=20.0).compute_loss_from_embeddings([a, b], score)

    assert cosent(a, b, score, temperature=0.05).item() == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_classification_matches_equation_three(temperature):
    labels, negative_labels = [0, 1, 0, 2], [1, 2, 0, 2, 1]
    text, positive, negative = unit_rows(4, 8, 0), unit_rows(4, 8, 1), unit_rows(5, 8, 2)

    loss = classification_info_nce(
        text, positive, negative, torch.tensor(labels), torch.tensor(negative_labels), temperature=temperature
    )

    total = 0.0
    for i in range(4):
        own = math.exp(cosine(text[i], positive[i]) / temperature)
        others = sum(
            math.exp(cosine(text[i], negative[n]) / temperature)
            for n in range(5)
            if labels[i] != negative_labels[n]
        )
        queries = sum(
            math.exp(cosine(text[i], text[j]) / temperature) for j in range(4) if j != i and labels[i] != labels[j]
        )
        total -= math.log(own / (own + others + queries))
    assert loss.item() == pytest.approx(total / 4, rel=1e-9)


def test_a_text_of_the_same_class_never_pushes():
    text = unit_rows(2, 8, 0).requires_grad_()
    same = torch.tensor([0, 0])

    loss = classification_info_nce(text, unit_rows(2, 8, 1), unit_rows(2, 8, 2), same, same, temperature=0.1)

    assert loss.item() == 0.0


def optional_terms_by_hand(query, document, positive, temperature, terms, blocked, blocked_query, own):
    """InfoNCE with every optional term, in loops."""
    total = 0.0
    for i in range(len(query)):
        score = cosine(query[i], document[positive[i]])
        ceiling = math.inf if terms.false_negative_margin is None else score + terms.false_negative_margin
        own_term = denominator = math.exp(score / temperature)
        for m in range(len(document)):
            s = cosine(query[i], document[m])
            if m != positive[i] and not blocked[i][m] and s <= ceiling:
                denominator += math.exp(s / temperature + (terms.hardness * s if own[i][m] else 0.0))
            v = cosine(document[positive[i]], document[m])
            if terms.document_document and m != positive[i] and not blocked[i][m] and v <= ceiling:
                denominator += math.exp(v / temperature)
        for j in range(len(query)):
            u = cosine(query[i], query[j])
            if terms.query_query and j != i and not blocked_query[i][j] and u <= ceiling:
                denominator += math.exp(u / temperature)
        p = own_term / denominator
        total -= (1 - p) ** terms.focal * math.log(p)
    return total / len(query)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "terms",
    [
        InfoNCEOptions(document_document=True),
        InfoNCEOptions(false_negative_margin=0.1),
        InfoNCEOptions(false_negative_margin=-0.2, document_document=True),
        InfoNCEOptions(hardness=5.0),
        InfoNCEOptions(focal=2.0, query_query=False),
        InfoNCEOptions(
            query_query=True, document_document=True, false_negative_margin=0.05, hardness=2.0, focal=0.5
        ),
    ],
)
def test_every_optional_term_matches_its_formula(terms, temperature):
    query, document, positive = (unit_rows(4, 8, seed=0), unit_rows(10, 8, seed=1), torch.tensor([0, 1, 2, 3]))
    blocked = torch.zeros(4, 10, dtype=torch.bool)
    blocked[0, 5] = blocked[3, 1] = True
    twins = torch.zeros(4, 4, dtype=torch.bool)
    twins[1, 2] = twins[2, 1] = True
    own = torch.zeros(4, 10, dtype=torch.bool)
    own[0, 4] = own[1, 6] = own[2, 7] = own[2, 8] = True

    loss = info_nce(
        query,
        document,
        positive,
        masks=InfoNCEMasks(blocked, twins, own),
        options=dataclasses.replace(terms, temperature=temperature),
    )

    by_hand = optional_terms_by_hand(query, document, positive, temperature, terms, blocked, twins, own)
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_the_mask_and_the_hardness_weight_carry_no_gradient():
    """Their cosines are read, not trained: the gradient is that of the same loss with constants in their place."""
    query, document = unit_rows(3, 8, 0).requires_grad_(), unit_rows(6, 8, 1)
    own = torch.zeros(3, 6, dtype=torch.bool)
    own[:, 3:] = torch.eye(3, dtype=torch.bool)
    options = InfoNCEOptions(0.1, hardness=3.0, false_negative_margin=0.1, query_query=False)
    masks = InfoNCEMasks(hard_negative_BM=own)
    info_nce(query, document, torch.arange(3), masks=masks, options=options).backward()

    again = query.detach().clone().requires_grad_()
    cosines = again @ document.T
    constant = cosines.detach()
    logits = cosines / 0.1 + 3.0 * constant * own
    logits = logits.masked_fill(constant > constant.gather(1, torch.arange(3)[:, None]) + 0.1, -torch.inf)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()

    assert torch.allclose(query.grad, again.grad, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_spread_out_is_the_mean_squared_cosine_of_different_texts(count):
    rows = unit_rows(count, 8, 0)

    expected = [cosine(rows[i], rows[j]) ** 2 for i in range(count) for j in range(count) if i != j]

    assert orthogonal_regularisation(rows).item() == pytest.approx(
        sum(expected) / len(expected) if expected else 0.0, rel=1e-9
    )
