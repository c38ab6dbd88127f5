"""The events of workers in the driver's output, line by line as they were said, without Ray's words around them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qzhou.telemetry.events import set_sink, write_line

PRINTED_EVERY_S = 0.5


class Lines:
    """The actor between workers and driver."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        """Keep a line for the driver."""
        self._lines.append(line)

    def said(self) -> list[str]:
        """What was said since the last call."""
        lines, self._lines = self._lines, []
        return lines


class Relay:
    """Carries lines to the driver that has made it; travels to workers as an argument, and ends with the driver.

    Attributes:
        kind: Of its actor; a subclass may carry something else besides.
    """

    kind: type[Lines] = Lines

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self._actor: Any = ray.remote(**options)(self.kind).remote()

    def speak(self) -> None:
        """In a worker: from now on its events are printed by the driver; by itself where that has gone."""

        def say(line: str) -> bool:
            try:
                ray.get(self._actor.say.remote(line))
            except ray.exceptions.RayError:
                return False
            return True

        set_sink(say)

    @contextmanager
    def printed(self) -> Iterator[Self]:
        """In the driver: print what workers say in the block."""
        ended = threading.Event()

        def print_lines() -> None:
            while not ended.wait(PRINTED_EVERY_S):
                self._print()

        thread = threading.Thread(target=print_lines, daemon=True, name="relay")
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            self._print()

    def _print(self) -> None:
        try:
            lines = ray.get(self._actor.said.remote())
        except ray.exceptions.RayError:  # the cluster has gone, and says so where it is asked for more
            return
        for line in lines:
            write_line(line)
