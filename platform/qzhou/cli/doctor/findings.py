"""What a check found, and the page of all findings."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from qzhou.errors import QzhouError, first_line

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page.

    Attributes:
        name: What was looked at.
        status: ``warn`` may cost time or fails later, ``fail`` ends a run.
        said: What was found, both values where one is too low.
        way_out: What to do about it; empty where all is well.
    """

    name: str
    status: Status
    said: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"  {self.status:4}  {self.name}: {self.said}{f'. {self.way_out}' if self.way_out else ''}"


def failed(name: str, error: Exception) -> Finding:
    """The finding of a check that ended with an error; one of ours names its way out itself."""
    said = str(error) if isinstance(error, QzhouError) else f"{type(error).__name__}: {first_line(error)}"
    return Finding(name, "fail", " ".join(said.split()))


def guarded(name: str, check: Callable[[], Iterable[Finding] | Finding]) -> Iterator[Finding]:
    """What a check finds; whatever it ends with is a finding, too."""
    try:
        found = check()
        yield from [found] if isinstance(found, Finding) else found
    except Exception as error:  # noqa: BLE001 - a page with the other checks is worth more than a traceback
        yield failed(name, error)


def summary(findings: Iterable[Finding]) -> str:
    """``12 ok, 1 warning, no failure``."""
    counts = Counter(one.status for one in findings)
    parts = [f"{counts['ok']} ok"]
    for count, name in ((counts["warn"], "warning"), (counts["fail"], "failure")):
        parts.append(f"{count or 'no'} {name}{'s' if count > 1 else ''}")
    return ", ".join(parts)
