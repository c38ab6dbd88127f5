"""Cleaned texts to examples, with the checks that all rules share."""

from collections.abc import Sequence
from typing import NamedTuple

from qzhou.data.cleaning import cut
from qzhou.data.records import (
    Drop,
    Example,
    LabeledExample,
    Negative,
    PairExample,
    RetrievalExample,
    normalized_text,
    stable_id,
)
from qzhou.transform.reading.columns import Row
from qzhou.transform.rules.fields import Fields

Outcome = Example | Drop

YES_NO = dict.fromkeys(("yes", "true", "1", "duplicate"), True)
YES_NO |= dict.fromkeys(("no", "false", "0", "not_duplicate"), False)


class Scored(NamedTuple):
    """A text with the score that the data gives it, if it gives one."""

    text: str
    score: float | None = None


class GradedText(NamedTuple):
    """A raw row with its grade, if it has a valid one, and its text."""

    row: Row
    grade: float | None
    text: str


def texts_of(example: Example) -> tuple[str, ...]:
    """The texts of an example that an evaluation could ask about; a query comes first."""
    if isinstance(example, RetrievalExample):
        return (example.query, *example.positives)
    if isinstance(example, LabeledExample):
        return (example.text,)
    return (example.text_a, example.text_b)


def swapped_id(example: PairExample) -> str:
    """The id of the pair with its sides exchanged; training sees both, evaluation one."""
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

    Left out are a positive that only repeats the query, a negative that is a positive or
    the query, and the second of two equal texts on one side.

    ``positives`` and ``negatives`` are never blank. ``names`` are the fields of query and
    positives, for the reasons.
    """
    if refusal := _refusal(fields, query, positives, names):
        return [fields.drop(*refusal, row) for row in rows]
    query_key, least = normalized_text(query), fields.dataset.min_positive_chars
    keyed: dict[str, Scored] = {}
    for one in positives:
        key = normalized_text(one.text)
        if key != query_key:
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
        key = normalized_text(one.text)
        if key in keyed or key == query_key:
            detail = "a negative repeats a positive or the query"
            drops.append(fields.drop("negative_is_positive", detail, one.text, part=True))
        else:
            wrong.append(Negative(text=one.text, origin="given", score=one.score))
    scores = tuple(one.score for one in kept if one.score is not None)
    texts = tuple(one.text for one in kept)
    instruction = fields.text(rows[0], "instruction") if fields.has("instruction") else ""
    own = [instruction] if instruction else []
    example = RetrievalExample(
        id=stable_id(fields.dataset.name, query, *texts, *own),
        dataset=fields.dataset.name,
        query=query,
        positives=texts,
        negatives=tuple(wrong),
        positive_scores=scores if len(scores) == len(kept) else (),
        instruction=instruction,
    )
    return [example, *drops]


def _refusal(
    fields: Fields, query: str, positives: Sequence[Scored], names: tuple[str, str]
) -> tuple[str, str] | None:
    """(reason, detail) why a query and its positives make no example."""
    dataset = fields.dataset
    if not query:
        return "blank_query", fields.empty(names[0])
    if len(query) < dataset.min_query_chars:
        return "short_query", f"{len(query)} characters; min_query_chars is {dataset.min_query_chars}"
    if not positives:
        return "blank_positive", fields.empty(names[1])
    longest = max(len(one.text) for one in positives)
    if longest < dataset.min_positive_chars:
        return "short_positive", f"{longest} characters; min_positive_chars is {dataset.min_positive_chars}"
    return None


def by_grade(
    graded: Sequence[GradedText], fields: Fields, query: str, names: tuple[str, str, str]
) -> list[Outcome]:
    """The example of a query and graded texts; ``names``: query, text and grade fields."""
    dataset = fields.dataset
    positives: list[Scored] = []
    negatives: list[Scored] = []
    drops: list[Outcome] = []
    kept = []
    for row, grade, text in graded:
        if grade is None and names[2] == "label":
            drops.append(fields.unknown_label(row, YES_NO))
        elif grade is None:
            drops.append(
                fields.drop("grade_not_a_number", f"column '{fields.columns[names[2]]}'; see 'decimal'", row)
            )
        elif not text:
            drops.append(fields.blank(names[1], row))
        elif dataset.negative_grade < grade < dataset.positive_grade:
            drops.append(fields.drop("between_grades", f"grade is {grade:g}", row))
        else:
            side = positives if grade >= dataset.positive_grade else negatives
            side.append(Scored(text))
            kept.append(row)
    if not kept:
        return drops
    if not positives:
        detail = f"none of {len(kept)} texts is relevant"
        return drops + [fields.drop("no_positive", detail, row) for row in kept]
    return drops + retrieval(kept, fields, query, positives, negatives, names[:2])


def pair(row: Row, fields: Fields, score: float) -> PairExample | Drop:
    """The pair of a row's two texts, or its drop."""
    text_a, text_b = fields.text(row, "text_a"), fields.text(row, "text_b")
    if not text_a or not text_b:
        return fields.blank("text_b" if text_a else "text_a", row)
    least = fields.dataset.min_query_chars
    if len(text_a) < least or len(text_b) < least:
        return fields.short_text(min(text_a, text_b, key=len), row)
    if normalized_text(text_a) == normalized_text(text_b):
        # Their cosine is 1 with any weights, so the pair could only teach that a score is wrong.
        return fields.drop("texts_equal", cut(text_a, 80), row)
    name = fields.dataset.name
    identity = stable_id(name, text_a, text_b, score)
    return PairExample(id=identity, dataset=name, text_a=text_a, text_b=text_b, score=score)


def _distinct(texts: Sequence[Scored]) -> list[Scored]:
    """Each text once, in order, with its first score."""
    return list({one.text: one for one in reversed(texts)}.values())[::-1]
