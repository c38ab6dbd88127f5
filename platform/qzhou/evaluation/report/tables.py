"""Tables of the page: each cell has the text that it shows and the value it sorts by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

Value = str | float | None
NOTHING = "–"
FORMATS = {
    "count": ",.0f",
    "score": ".4f",
    "signed": "+.4f",
    "percent": ".2f",  # of a value that is in percent already
    "tenths": ",.1f",
    "scientific": ".4g",
}


class Cell(NamedTuple):
    """``sort`` is empty for a missing value, which stands last in either order."""

    text: str
    sort: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        title: Its heading.
        number: Key in ``FORMATS`` by which numbers are written; empty for columns of texts.
        style: ``prose`` for long texts, ``code`` for fingerprints and settings.
    """

    title: str
    number: str = ""
    style: str = ""

    @property
    def classes(self) -> str:
        """The CSS class of its cells."""
        return "number" if self.number else self.style

    def cell(self, value: Value) -> Cell:
        """A value as it is shown and sorted."""
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            return Cell(NOTHING, "")
        if not self.number or isinstance(value, str):
            return Cell(str(value), str(value))
        return Cell(format(value, FORMATS[self.number]), repr(value))


def texts(*titles: str, style: str = "") -> list[Column]:
    """Columns of texts."""
    return [Column(title, style=style) for title in titles]


def numbers(number: str, *titles: str) -> list[Column]:
    """Columns of numbers that are written alike, by a key in ``FORMATS``."""
    return [Column(title, number) for title in titles]


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a click on a heading sorts.

    Attributes:
        label: What the table shows, for screen readers.
        rows: Values in the order of the columns; None where there is none.
        total: A last row that sorting does not move.
    """

    kind: ClassVar[str] = "table"
    label: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    total: Sequence[Value] = ()

    def cells(self, row: Sequence[Value]) -> list[tuple[Column, Cell]]:
        """A row, each cell beside its column."""
        return [(column, column.cell(value)) for column, value in zip(self.columns, row, strict=True)]


def share(part: float, whole: float) -> float | None:
    """A part in percent; None where the whole is nothing."""
    return 100 * part / whole if whole else None


def counts(found: Mapping[str, int], most: int = 12) -> str:
    """``12 short, 3 blank``: the commonest first."""
    ordered = sorted(found.items(), key=lambda one: -one[1])
    more = ", ..." if len(ordered) > most else ""
    return ", ".join(f"{number:,} {name}" for name, number in ordered[:most]) + more
