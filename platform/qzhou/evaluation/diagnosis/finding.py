"""What a check returns."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 4  # numbers of one kind, before "and 3 more"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign of trouble.

    Attributes:
        check: The name of the check that found it.
        message: One sentence for a person.
        evidence: The file and the numbers in it.
        setting: Which setting of the recipe to change, and in which direction.
    """

    check: str
    message: str
    evidence: str
    setting: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that could not be made, and why."""

    check: str
    reason: str


CheckResult = list[Finding] | Skipped


def shown(parts: Sequence[str]) -> str:
    """The first few parts, and how many more there are."""
    rest = f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return "; ".join(parts[:SHOWN]) + rest
