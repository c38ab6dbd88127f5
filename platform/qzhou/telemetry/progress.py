"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise; meters, and how long it took."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tqdm import tqdm

from qzhou.telemetry.events import as_json, log_event
from qzhou.telemetry.metrics import PROGRESS, ROWS, UNITS, measure

LINE_EVERY_S = 10.0
NO_ROWS: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Phase:
    """Work whose progress was shown, and how long it took.

    Attributes:
        label: What was done.
        unit: What ``done`` and ``first_done`` count.
        seconds: From beginning to end, the start of workers included.
        first_s: Until the first units were done, which says how long the start took; 0 where nothing was done.
        advances: How often some units were done.
        worker_s: What the workers say they spent on the units together; 0 if they do not.
    """

    label: str
    unit: str
    done: int
    seconds: float
    first_done: int
    first_s: float
    advances: int
    worker_s: float = 0.0


_phases: ContextVar[list[Phase] | None] = ContextVar("phases", default=None)


@contextmanager
def recorded() -> Iterator[list[Phase]]:
    """Collect the phases of the enclosed work in this process, in the order they end."""
    found: list[Phase] = []
    token = _phases.set(found)
    try:
        yield found
    finally:
        _phases.reset(token)


class Progress:
    """Counts units of work done; ``advance`` is cheap enough to call for every batch.

    Args:
        label: What is done: ``stage: step``, or the stage alone.
        total: Units of work in all; None where it is not known (no ETA then).
        unit: What is counted, in the plural.
        line_every_s: Seconds between two lines where there is no terminal.
    """

    def __init__(self, label: str, *, total: int | None, unit: str, line_every_s: float = LINE_EVERY_S) -> None:
        self._line_every_s = line_every_s
        self.label, self.total, self.unit = label, total, unit
        self.done = self.advances = self.first_done = 0
        self._first_s = self._worker_s = 0.0
        self._stage, _, step = label.partition(": ")
        self._step = step or self._stage
        self._started = self._last_line = time.monotonic()
        bar = sys.stderr.isatty() and not as_json()
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}") if bar else None

    def advance(self, count: int, note: str = "", *, rows: Mapping[str, int] = NO_ROWS) -> None:
        """Record ``count`` more units.

        Args:
            count: Units done since the last call.
            note: Shown beside them: a loss, say.
            rows: Dataset -> its rows among them, for the meters.
        """
        self.done += count
        self.advances += 1
        if self.advances == 1:
            self.first_done, self._first_s = count, time.monotonic() - self._started
        self._measure(count, rows)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= self._line_every_s:
            self._last_line = time.monotonic()
            self._say(note)

    def add_worker_seconds(self, seconds: float) -> None:
        """Record a worker's time on units; it may be heard of late, and all at once."""
        self._worker_s += seconds

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()

    def phase(self) -> Phase:
        """What was done so far, and how long it took."""
        seconds = round(time.monotonic() - self._started, 3)
        first_s, worker_s = round(self._first_s, 3), round(self._worker_s, 3)
        return Phase(self.label, self.unit, self.done, seconds, self.first_done, first_s, self.advances, worker_s)

    def _measure(self, count: int, rows: Mapping[str, int]) -> None:
        measure(UNITS, count, stage=self._stage, step=self._step, unit=self.unit)
        if self.total:
            measure(PROGRESS, self.done / self.total, stage=self._stage, step=self._step)
        for dataset, number in rows.items():
            measure(ROWS, number, stage=self._stage, dataset=dataset)

    def _say(self, note: str) -> None:
        elapsed_s = time.monotonic() - self._started
        rate = self.done / elapsed_s if elapsed_s else 0.0
        left_s = (self.total - self.done) / rate if self.total is not None and rate else None
        known = f"/{self.total}" if self.total is not None else ""
        eta = f", {left_s:.0f} s left" if left_s is not None else ""
        log_event(
            f"{self.label}: {self.done}{known} {self.unit}, {rate:.1f}/s{eta}{f', {note}' if note else ''}",
            "progress",
            step=self._step,
            done=self.done,
            total=self.total,
            unit=self.unit,
            per_s=round(rate, 3),
            left_s=None if left_s is None else round(left_s, 1),
        )


@contextmanager
def progress(label: str, *, total: int | None, unit: str) -> Iterator[Progress]:
    """Show the enclosed work's progress; label, total and unit as in :class:`Progress`."""
    bar = Progress(label, total=total, unit=unit)
    try:
        yield bar
    finally:
        bar.close()
        if (phases := _phases.get()) is not None:
            phases.append(bar.phase())
