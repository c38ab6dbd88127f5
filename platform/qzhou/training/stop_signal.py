"""What passes between the driver and the ranks of a training stage: a request to stop, and what ranks say."""

import ray

from qzhou.cluster.relay import Lines, Relay


class _Stop(Lines):
    """An actor that knows besides whether a stage shall end, and after which step."""

    def __init__(self) -> None:
        super().__init__()
        self._is_requested = False
        self._last_step: int | None = None

    def request(self) -> None:
        self._is_requested = True

    def is_last_step(self, step: int, rank: int) -> bool:
        if rank == 0 and self._last_step is None and self._is_requested:
            self._last_step = step + 1
        return self._last_step == step


class StopSignal(Relay):
    """A request to end a stage with a checkpoint, which reaches all ranks at the same step.

    1. The driver makes the request. 2. Rank 0 asks at the end of a step, and the next step
    becomes the last one. 3. Every rank asks at the end of each step. Ranks meet in the
    gradients of a step, so no rank can have passed the last step before it was known.

    Attributes:
        was_requested: By this process.
    """

    kind = _Stop

    def __init__(self) -> None:
        super().__init__()
        self.was_requested = False

    def request(self) -> None:
        """Ask all ranks to stop."""
        self.was_requested = True
        self._actor.request.remote()

    def is_last_step(self, step: int, rank: int) -> bool:
        """Whether the stage ends after ``step``; a rank asks at the end of the step."""
        return bool(ray.get(self._actor.is_last_step.remote(step, rank)))
