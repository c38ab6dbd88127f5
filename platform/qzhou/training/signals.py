"""What passes between the driver and the ranks of a training stage, also over a restart of the ranks.

A request to stop, lines that ranks say, an error that training again would only repeat, and
how often a rank ran out of memory.
"""

from typing import cast

import ray

from qzhou.cluster.relay import Lines, Relay
from qzhou.errors import QzhouError, from_json, to_json


class _Board(Lines):
    """The actor that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self._is_requested = False
        self._last_step: int | None = None
        self._failure = ""
        self._halvings: dict[int, int] = {}

    def request(self) -> None:
        self._is_requested = True

    def is_last_step(self, step: int, rank: int) -> bool:
        if rank == 0 and self._last_step is None and self._is_requested:
            self._last_step = step + 1
        return self._last_step == step

    def fail(self, failure: str) -> None:
        self._failure = self._failure or failure

    def failure(self) -> str:
        return self._failure

    def halve(self, halvings: int) -> None:
        # several ranks of one group may report what they met together
        self._halvings[halvings] = halvings + 1

    def halvings(self) -> int:
        return max(self._halvings.values(), default=0)


class Signals(Relay):
    """Reaches every rank of a stage, and those that take its place.

    A stage that is stopped ends with a checkpoint, after the same step on all ranks: 1. The
    driver makes the request. 2. Rank 0 asks at the end of a step, and the next step becomes
    the last one. 3. Every rank asks at the end of each step. Ranks meet in the gradients of
    a step, so no rank can have passed the last step before it was known.

    Attributes:
        was_requested: Whether this process asked to stop.
    """

    kind = _Board

    def __init__(self) -> None:
        super().__init__()
        self.was_requested = False

    def request_stop(self) -> None:
        """Ask all ranks to stop."""
        self.was_requested = True
        self._actor.request.remote()

    def is_last_step(self, step: int, rank: int) -> bool:
        """Whether the stage ends after ``step``; a rank asks at the end of the step."""
        return bool(ray.get(self._actor.is_last_step.remote(step, rank)))

    def fail(self, error: QzhouError) -> None:
        """Say that the stage cannot go on: Ray Train starts the ranks again, and they shall not train."""
        ray.get(self._actor.fail.remote(to_json(error)))

    def failure(self) -> QzhouError | None:
        """The error for which the stage cannot go on."""
        said = str(ray.get(self._actor.failure.remote()))
        return from_json(said) if said else None

    def halve(self, halvings: int) -> None:
        """Say that a rank ran out of memory, after as many halvings of what ranks hold."""
        ray.get(self._actor.halve.remote(halvings))

    def halvings(self) -> int:
        """How often ranks shall halve what they hold in memory."""
        return cast("int", ray.get(self._actor.halvings.remote()))
