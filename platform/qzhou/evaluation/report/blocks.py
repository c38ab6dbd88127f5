"""The parts of a section of the page; the template draws each by its ``kind``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qzhou.evaluation.report.plots import Plot
from qzhou.evaluation.report.tables import Table


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class KeyNumbers:
    """A row of key figures: labels with formatted numbers."""

    kind: ClassVar[str] = "figures"
    values: Mapping[str, int | str]

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Labels and numbers as they are shown."""
        return [(name, one if isinstance(one, str) else f"{one:,}") for name, one in self.values.items()]


@dataclass(frozen=True, slots=True)
class Panels:
    """Plots side by side, as many as fit."""

    kind: ClassVar[str] = "panels"
    plots: Sequence[Plot]


@dataclass(frozen=True, slots=True)
class Source:
    """Text in a fixed-width font, as it is."""

    kind: ClassVar[str] = "source"
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to act on: its name, its message, the numbers behind it, what to change."""

    kind: ClassVar[str] = "notice"
    title: str
    text: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that a click on their summary opens."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block = Text | Heading | KeyNumbers | Panels | Source | Notice | Folded | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with an entry in its table of contents; ``id`` is the anchor."""

    id: str
    title: str
    blocks: Sequence[Block]


def missing(name: str) -> Text:
    """The text of a section whose file is missing."""
    return Text(f"{name} is not there: its stage has not finished.")
