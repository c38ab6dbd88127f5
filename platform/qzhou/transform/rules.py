"""One rule per source shape: a raw row becomes a record, or a drop with its reason.

A rule reads fields; ``columns`` of the dataset says which column of the row holds each. Defaults:

    title_body        query = title,    positive = body
    question_answer   query = question, positive = answer
    labeled           text, label
    scored_pair       text_a, text_b, score
    nli               text_a, text_b, label

Retrieval rules take a list of texts as positives as well as one text, and, where ``columns`` names
it, a field ``negative`` of the same kind (claim-evidence data: what refutes the claim).

Source: QZhou-Embedding (arXiv:2508.21632), section 3.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qzhou.errors import RecipeError
from qzhou.recipe import Dataset, Rule
from qzhou.records import Drop, Example, LabeledExample, Negative, PairExample, RetrievalExample, stable_id, text_key
from qzhou.transform.cleaning import clean_text, cut

Row = Mapping[str, Any]

DEFAULT_COLUMNS: Mapping[Rule, Mapping[str, str]] = {
    "title_body": {"query": "title", "positive": "body"},
    "question_answer": {"query": "question", "positive": "answer"},
    "labeled": {"text": "text", "label": "label"},
    "scored_pair": {"text_a": "text_a", "text_b": "text_b", "score": "score"},
    "nli": {"text_a": "text_a", "text_b": "text_b", "label": "label"},
}
OPTIONAL_FIELDS: Mapping[Rule, tuple[str, ...]] = {"title_body": ("negative",), "question_answer": ("negative",)}

# GLUE's label order; the scores are the paper's.
NLI_SCORES = {"entailment": 2.0, "neutral": 1.0, "contradiction": 0.0, "0": 2.0, "1": 1.0, "2": 0.0}
BINARY_SCORES = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}

DROPPED_RECORD_CHARS = 2000
DROPPED_DETAIL_CHARS = 500


def columns_of(dataset: Dataset) -> dict[str, str]:
    """Field of the dataset's rule -> column of its rows, defaults filled in.

    Raises:
        RecipeError: ``columns`` names a field that the rule does not have.
    """
    defaults = DEFAULT_COLUMNS[dataset.rule]
    known = (*defaults, *OPTIONAL_FIELDS.get(dataset.rule, ()))
    unknown = [field for field in dataset.columns if field not in known]
    if unknown:
        raise RecipeError(
            f"dataset '{dataset.name}': columns.{unknown[0]}: the rule '{dataset.rule}' has no such field. "
            f"Known: {', '.join(known)}"
        )
    return {**defaults, **dataset.columns}


def title_body(row: Row, dataset: Dataset, max_chars: int) -> RetrievalExample | Drop:
    """A title asks for the text below it."""
    return _retrieval(row, dataset, max_chars)


def question_answer(row: Row, dataset: Dataset, max_chars: int) -> RetrievalExample | Drop:
    """A question, claim or user turn asks for its answer, evidence or reply."""
    return _retrieval(row, dataset, max_chars)


def labeled(row: Row, dataset: Dataset, max_chars: int) -> LabeledExample | Drop:
    """A text and its class; the label may be a number."""
    columns = columns_of(dataset)
    text, label = (_text(row.get(columns[field]), max_chars) for field in ("text", "label"))
    for field, value in (("text", text), ("label", label)):
        if not value:
            return drop(dataset.name, f"blank_{field}", f"column '{columns[field]}' is empty", row)
    return LabeledExample(id=stable_id(dataset.name, text, label), dataset=dataset.name, text=text, label=label)


def scored_pair(row: Row, dataset: Dataset, max_chars: int) -> PairExample | Drop:
    """Two texts and a number, higher for closer; yes/true is 1 and no/false is 0. Only the order counts."""
    value = row.get(columns_of(dataset)["score"])
    score = _number(value)
    if score is None:
        return drop(dataset.name, "score_not_a_number", f"score is {value!r}", row)
    return _pair(row, dataset, max_chars, score)


def nli(row: Row, dataset: Dataset, max_chars: int) -> PairExample | Drop:
    """Premise and hypothesis: entailment scores 2, neutral 1, contradiction 0.

    Numeric labels are in GLUE's order: 0 entailment, 1 neutral, 2 contradiction.
    """
    label = row.get(columns_of(dataset)["label"])
    score = NLI_SCORES.get(str(label).strip().casefold())
    if score is None:
        return drop(dataset.name, "unknown_label", f"label is {label!r}; known: {', '.join(NLI_SCORES)}", row)
    return _pair(row, dataset, max_chars, score)


RULES: Mapping[Rule, Callable[[Row, Dataset, int], Example | Drop]] = {
    "title_body": title_body,
    "question_answer": question_answer,
    "labeled": labeled,
    "scored_pair": scored_pair,
    "nli": nli,
}


def swapped(example: PairExample) -> PairExample:
    """The same pair with its sides exchanged; training sees both, evaluation one."""
    text_a, text_b = example.text_b, example.text_a
    return replace(example, id=stable_id(example.dataset, text_a, text_b, example.score), text_a=text_a, text_b=text_b)


def drop(dataset: str, reason: str, detail: str, content: object) -> Drop:
    """A refused row, or any other content, as it is written to ``dropped/``."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return Drop(
        stage="transform",
        dataset=dataset,
        reason=reason,
        detail=_printable(detail[:DROPPED_DETAIL_CHARS]),
        record=_printable(text[:DROPPED_RECORD_CHARS]),
    )


def _retrieval(row: Row, dataset: Dataset, max_chars: int) -> RetrievalExample | Drop:
    columns = columns_of(dataset)
    query = _text(row.get(columns["query"]), max_chars)
    if not query:
        return drop(dataset.name, "blank_query", f"column '{columns['query']}' is empty", row)
    given = _texts(row.get(columns["positive"]), max_chars)
    if not given:
        return drop(dataset.name, "blank_positive", f"column '{columns['positive']}' is empty", row)
    long_enough = [text for text in given if len(text) >= dataset.min_positive_chars]
    if not long_enough:
        detail = f"{max(map(len, given))} characters; min_positive_chars is {dataset.min_positive_chars}"
        return drop(dataset.name, "short_positive", detail, row)
    query_key = text_key(query)
    positives = tuple(text for text in long_enough if text_key(text) != query_key)
    if not positives:
        return drop(dataset.name, "query_equals_positive", cut(query, 80), row)
    return RetrievalExample(
        id=stable_id(dataset.name, query, *positives),
        dataset=dataset.name,
        query=query,
        positives=positives,
        negatives=_given_negatives(row.get(columns["negative"]), positives, max_chars) if "negative" in columns else (),
    )


def _given_negatives(value: Any, positives: Sequence[str], max_chars: int) -> tuple[Negative, ...]:
    """A text that is also a positive never stands among the negatives."""
    taken = {text_key(text) for text in positives}
    texts = (text for text in _texts(value, max_chars) if text_key(text) not in taken)
    return tuple(Negative(text=text, origin="given") for text in texts)


def _pair(row: Row, dataset: Dataset, max_chars: int, score: float) -> PairExample | Drop:
    columns = columns_of(dataset)
    text_a, text_b = (_text(row.get(columns[field]), max_chars) for field in ("text_a", "text_b"))
    for field, value in (("text_a", text_a), ("text_b", text_b)):
        if not value:
            return drop(dataset.name, f"blank_{field}", f"column '{columns[field]}' is empty", row)
    if text_key(text_a) == text_key(text_b):
        # Their cosine is 1 whatever the encoder learns, so the pair could only teach that a score is wrong.
        return drop(dataset.name, "texts_equal", cut(text_a, 80), row)
    identity = stable_id(dataset.name, text_a, text_b, score)
    return PairExample(id=identity, dataset=dataset.name, text_a=text_a, text_b=text_b, score=score)


def _text(value: Any, max_chars: int) -> str:
    """Cleaned text of a cell; an empty string where the cell holds none."""
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        return ""
    return clean_text(value if isinstance(value, str) else str(value), max_chars)


def _texts(value: Any, max_chars: int) -> list[str]:
    """The distinct cleaned texts of a cell that holds one text or a list of them."""
    cells = value if isinstance(value, list) else [value]
    return [text for text in dict.fromkeys(_text(cell, max_chars) for cell in cells) if text]


def _number(value: Any) -> float | None:
    if isinstance(value, str) and value.strip().casefold() in BINARY_SCORES:
        return BINARY_SCORES[value.strip().casefold()]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _printable(text: str) -> str:
    """UTF-8 cannot hold a lone surrogate, and a dropped row must not stop the run."""
    return text.encode("utf-8", "replace").decode("utf-8")
