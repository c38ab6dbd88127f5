"""Cleaned texts to examples, with the checks that all rules share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from qzhou.data.records import (
    Drop,
    Example,
    Negative,
    PairExample,
    RetrievalExample,
    normalized_text,
    stable_id,
)
from qzhou.transform.cleaning import cut
from qzhou.transform.columns import Row
from qzhou.transform.fields import Fields

Outcome = Example | Drop

YES_NO = {
    "yes": True,
    "true": True,
    "1": True,
    "duplicate": True,
    "no": False,
    "false": False,
    "0": False,
}
YES_NO |= {"not_duplicate": False}


class Scored(NamedTuple):
    """A text with the score that the data gives it, if it gives one."""

    text: str
    score: float | None = None


class Judged(NamedTuple):
    """A raw row with its grade, if it has a valid one, and its text."""

    row: Row
    grade: float | None
    text: str


def swapped(example: PairExample) -> PairExample:
    """The same pair with its sides exchanged; training sees both, evaluation one."""
    return replace(example, id=swapped_id(example), text_a=example.text_b, text_b=example.text_a)


def swapped_id(example: PairExample) -> str:
    """The id of :func:`swapped`."""
    return stable_id(example.dataset, example.text_b, example.text_a, example.score)


def retrieval(
    rows: Sequence[Row],
    fields: Fields,
    query: str,
    positives: Sequence[Scored],
    negatives: Sequence[Scored],
    names: tuple[str, str],
) -> list[Outcome]:
    """An example of cleaned texts, or a drop for each of its rows.

    A positive that only repeats the query, a negative that is a positive or the query, and a text that stands twice
    on one side are left out.

    Args:
        rows: The raw rows behind the example, for the drops.
        fields: Of the dataset.
        query: May be blank.
        positives: Never blank.
        negatives: Never blank.
        names: What the query's and the positives' fields are called, for the reasons.
    """
    reason = _refusal(fields, query, positives)
    if reason:
        return [fields.drop(*_named(reason, names, fields), row) for row in rows]
    query_key, least = normalized_text(query), fields.dataset.min_positive_chars
    keyed: dict[str, Scored] = {}
    for one in positives:
        if (key := normalized_text(one.text)) != query_key:
            keyed.setdefault(key, one)
    kept = [one for one in keyed.values() if len(one.text) >= least]
    if not kept:
        return [fields.drop("query_equals_positive", cut(query, 80), row) for row in rows]
    drops: list[Outcome] = [
        fields.drop("short_positive", f"min_positive_chars is {least}", one.text, part=True)
        for one in keyed.values()
        if len(one.text) < least
    ]
    wrong = []
    for one in _distinct(negatives):
        if (key := normalized_text(one.text)) in keyed or key == query_key:
            detail = "a negative repeats a positive or the query"
            drops.append(fields.drop("negative_is_positive", detail, one.text, part=True))
        else:
            wrong.append(Negative(text=one.text, origin="given", score=one.score))
    scores = tuple(one.score for one in kept if one.score is not None)
    texts = tuple(one.text for one in kept)
    example = RetrievalExample(
        id=stable_id(fields.dataset.name, query, *texts),
        dataset=fields.dataset.name,
        query=query,
        positives=texts,
        negatives=tuple(wrong),
        positive_scores=scores if len(scores) == len(kept) else (),
    )
    return [example, *drops]


def _refusal(fields: Fields, query: str, positives: Sequence[Scored]) -> tuple[str, str] | None:
    """(reason, detail) why a query and its positives make no example; no detail where a field is empty."""
    dataset = fields.dataset
    if not query:
        return "blank_query", ""
    if len(query) < dataset.min_query_chars:
        return (
            "short_query",
            f"{len(query)} characters; min_query_chars is {dataset.min_query_chars}",
        )
    if not positives:
        return "blank_positive", ""
    longest = max(len(one.text) for one in positives)
    if longest < dataset.min_positive_chars:
        return (
            "short_positive",
            f"{longest} characters; min_positive_chars is {dataset.min_positive_chars}",
        )
    return None


def _named(reason: tuple[str, str], names: tuple[str, str], fields: Fields) -> tuple[str, str]:
    """The refusal with the name of the empty column."""
    if reason[1]:
        return reason
    name = names[0] if reason[0] == "blank_query" else names[1]
    return reason[0], f"column '{fields.columns.get(name, name)}' is empty"


def by_grade(
    judged: Sequence[Judged], fields: Fields, query: str, names: tuple[str, str, str]
) -> list[Outcome]:
    """The example of a query and its judged texts; ``names`` are the fields of query, text and judgement."""
    sides: tuple[list[Scored], list[Scored]] = ([], [])
    drops: list[Outcome] = []
    kept = []
    for row, grade, text in judged:
        if grade is None and names[2] == "label":
            drops.append(unknown_label(row, fields, YES_NO))
        elif grade is None:
            drops.append(
                fields.drop("grade_not_a_number", f"column '{fields.columns[names[2]]}'", row)
            )
        elif not text:
            drops.append(fields.blank(names[1], row))
        elif fields.dataset.negative_grade < grade < fields.dataset.positive_grade:
            drops.append(fields.drop("between_grades", f"grade is {grade:g}", row))
        else:
            sides[grade < fields.dataset.positive_grade].append(Scored(text))
            kept.append(row)
    if kept and not sides[0]:
        return drops + [
            fields.drop("no_positive", f"none of {len(kept)} texts is relevant", row)
            for row in kept
        ]
    return drops + (retrieval(kept, fields, query, *sides, names[:2]) if kept else [])


def pair(row: Row, fields: Fields, score: float) -> PairExample | Drop:
    text_a, text_b = fields.text(row, "text_a"), fields.text(row, "text_b")
    if not text_a or not text_b:
        return fields.blank("text_b" if text_a else "text_a", row)
    least = fields.dataset.min_query_chars
    if len(text_a) < least or len(text_b) < least:
        return short("text", min(text_a, text_b, key=len), row, fields)
    if normalized_text(text_a) == normalized_text(text_b):
        # Their cosine is 1 whatever the encoder learns, so the pair could only teach that a score is wrong.
        return fields.drop("texts_equal", cut(text_a, 80), row)
    name = fields.dataset.name
    identity = stable_id(name, text_a, text_b, score)
    return PairExample(id=identity, dataset=name, text_a=text_a, text_b=text_b, score=score)


def _distinct(texts: Sequence[Scored]) -> list[Scored]:
    """Each text once, in order."""
    if len(texts) == 1:
        return list(texts)
    return list({one.text: one for one in reversed(texts)}.values())[::-1]


def short(name: str, text: str, row: Row, fields: Fields) -> Drop:
    least = fields.dataset.min_query_chars
    return fields.drop(f"short_{name}", f"{len(text)} characters; min_query_chars is {least}", row)


def unknown_label(row: Row, fields: Fields, known: Iterable[str]) -> Drop:
    detail = f"label is {fields.raw(row, 'label')!r}; known: {', '.join(known)}; 'labels' translates others"
    return fields.drop("unknown_label", detail, row)
