"""What the first rows of a dataset become, by the rules of a run and before there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

from qzhou.config.dataset import Dataset
from qzhou.config.model import ModelSection
from qzhou.data.records import Example
from qzhou.transform.reading.columns import Row, as_text, getter
from qzhou.transform.rules.candidates import Candidate, Converter
from qzhou.transform.rules.fields import GROUPED_BY, columns_of
from qzhou.transform.rules.filters import refusals

MAX_CHARS = 32_768


@dataclass(frozen=True, slots=True)
class Preview:
    """What became of some raw rows.

    Attributes:
        examples: In the order of the rows.
        kept: Raw rows behind the examples.
        read: Raw rows in all.
        dropped: Reason -> raw rows, or parts of them.
    """

    examples: Sequence[Example]
    kept: int
    read: int
    dropped: Mapping[str, int]

    @property
    def reasons(self) -> str:
        """The most frequent reasons with their counts."""
        return ", ".join(f"{count:,} {reason}" for reason, count in Counter(self.dropped).most_common(3))


def preview_of(
    dataset: Dataset,
    rows: Sequence[Row],
    rejected: Mapping[str, int] = MappingProxyType({}),
    *,
    model: ModelSection | None = None,
    max_chars: int = MAX_CHARS,
) -> Preview:
    """Convert raw rows as a run does; repeats are not looked for.

    Args:
        dataset: Any but one of judgements (``qrels``), whose texts lie elsewhere.
        rows: As its reader gives them.
        rejected: Reason -> rows that could not be read.
        model: Whose tokenizer counts for ``max_tokens``; without it, neither tokens nor languages are looked at.
        max_chars: Longer texts are cut.
    """
    made, dropped = candidates_of(dataset, rows, max_chars)
    dropped.update(rejected)
    found = refusals([one.example for one in made], dataset, model) if model else [None] * len(made)
    for candidate, refusal in zip(made, found, strict=True):
        if refusal:
            dropped[refusal[0]] += len(candidate.rows)
    kept = [one for one, refusal in zip(made, found, strict=True) if refusal is None]
    read = len(rows) + sum(rejected.values())
    return Preview([one.example for one in kept], sum(len(one.rows) for one in kept), read, dropped)


def candidates_of(
    dataset: Dataset, rows: Sequence[Row], max_chars: int = MAX_CHARS
) -> tuple[list[Candidate], Counter[str]]:
    """The candidates that raw rows become before any filter, and how often each reason dropped one or a part of it."""
    convert, dropped = Converter(dataset, max_chars), Counter[str]()
    made: list[Candidate] = []
    for group in _grouped(dataset, rows):
        candidate, drops = convert(group)
        dropped.update(one.reason for one in drops)
        if candidate is not None:
            made.append(candidate)
    return made, dropped


def _grouped(dataset: Dataset, rows: Sequence[Row]) -> Iterable[list[Row]]:
    """The rows of each example of a dataset."""
    if dataset.rule not in GROUPED_BY:
        return ([row] for row in rows)
    read = getter(columns_of(dataset)[GROUPED_BY[dataset.rule]])
    keyed = sorted(((as_text(read(row)), place) for place, row in enumerate(rows)), key=lambda one: one[0])
    return [[rows[place] for _, place in group] for _, group in groupby(keyed, key=lambda one: one[0])]
