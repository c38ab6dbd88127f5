"""Tables as they stand in the page: each cell knows what it shows and what it sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

Value = str | float | None
NOTHING = "–"


class Cell(NamedTuple):
    """``sort`` is empty for a missing value, which stands last in either order."""

    text: str
    sort: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: Its heading.
        show: How its numbers are written; None for a column of texts.
        style: ``prose`` for long texts, ``code`` for fingerprints and settings.
    """

    title: str
    show: Callable[[float], str] | None = None
    style: str = ""

    @property
    def classes(self) -> str:
        return "number" if self.show else self.style

    def cell(self, value: Value) -> Cell:
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            return Cell(NOTHING, "")
        if self.show is None or isinstance(value, str):
            return Cell(str(value), str(value))
        return Cell(self.show(value), repr(value))


@dataclass(frozen=True, slots=True)
class Table:
    """A table that sorts by a click on a heading.

    Attributes:
        label: What it shows, for those who do not see it.
        rows: Values in the order of the columns; None where there is none.
        total: A last row that stays where it is.
    """

    kind: ClassVar[str] = "table"
    label: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    total: Sequence[Value] = ()

    def cells(self, row: Sequence[Value]) -> list[tuple[Column, Cell]]:
        """A row, each value beside its column."""
        return [
            (column, column.cell(value)) for column, value in zip(self.columns, row, strict=True)
        ]


def count(value: float) -> str:
    """With separators of thousands."""
    return f"{value:,.0f}"


def score(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    return f"{value:+.4f}"


def percent(value: float) -> str:
    """Of a value that is in percent already."""
    return f"{value:.2f}"


def tenths(value: float) -> str:
    return f"{value:,.1f}"


def scientific(value: float) -> str:
    """Four significant digits, however small."""
    return f"{value:.4g}"


def share(part: float, whole: float) -> float | None:
    """In percent; None of nothing."""
    return 100 * part / whole if whole else None


def counts(found: dict[str, int], most: int = 12) -> str:
    """``12 short, 3 blank``: the commonest first."""
    ordered = sorted(found.items(), key=lambda one: -one[1])
    more = ", ..." if len(ordered) > most else ""
    return ", ".join(f"{number:,} {name}" for name, number in ordered[:most]) + more
