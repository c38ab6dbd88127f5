"""What a diagnosis says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 4  # numbers of one kind, before "and 3 more"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign of trouble.

    Attributes:
        sign: Its short name.
        says: One sentence for a person.
        evidence: The numbers, after the file in which they stand.
        setting: Which setting of the recipe to change, and in which direction.
    """

    sign: str
    says: str
    evidence: str
    setting: str


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A sign that could not be looked for, and why."""

    sign: str
    why: str


Looked = list[Finding] | str  # what a look for one sign finds, or why it could not be looked for


def shown(parts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return "; ".join(parts[:SHOWN]) + rest
