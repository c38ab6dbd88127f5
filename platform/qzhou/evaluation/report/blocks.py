"""What a section of the page is made of. ``kind`` tells the template how a block is drawn."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Above what belongs together inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A row of labels, each with a number as it is shown."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Panels:
    """Plots side by side, as many as fit."""

    kind: ClassVar[str] = "panels"
    plots: Sequence[Plot]


@dataclass(frozen=True, slots=True)
class Source:
    """Text shown letter by letter."""

    kind: ClassVar[str] = "source"
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to act on: what it is, in what numbers it shows, and what to change."""

    kind: ClassVar[str] = "notice"
    title: str
    text: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are seen when their summary is clicked."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block = Text | Heading | Figures | Panels | Source | Notice | Folded | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with an entry in its table of contents; ``id`` is the anchor."""

    id: str
    title: str
    blocks: Sequence[Block]


def missing(name: str) -> Text:
    """Why a section is empty."""
    return Text(f"{name} is not there: its stage has not finished, or an older version ran it.")
