"""How the driver's Ctrl-C reaches the ranks of a training stage."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Stop:
    """An actor that knows whether a stage shall end, and after which step."""

    def __init__(self) -> None:
        self._is_requested = False
        self._last_step: int | None = None

    def request(self) -> None:
        self._is_requested = True

    def is_last_step(self, step: int, rank: int) -> bool:
        if rank == 0 and self._last_step is None and self._is_requested:
            self._last_step = step + 1
        return self._last_step == step


class StopSignal:
    """A request to end a stage with a checkpoint, which reaches all ranks at the same step.

    1. The driver makes the request. 2. Rank 0 asks at the end of a step, and the next step
    becomes the last one. 3. Every rank asks at the end of each step. Ranks meet in the
    gradients of a step, so no rank can have passed the last step before it was known.

    It travels to the ranks, and ends with the driver that has made it.

    Attributes:
        was_requested: By this process.
    """

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(_Stop)
        self._actor, self.was_requested = actor.remote(), False

    def request(self) -> None:
        """Ask all ranks to stop."""
        self.was_requested = True
        self._actor.request.remote()

    def is_last_step(self, step: int, rank: int) -> bool:
        """Whether the stage ends after ``step``; a rank asks at the end of the step."""
        return bool(ray.get(self._actor.is_last_step.remote(step, rank)))
