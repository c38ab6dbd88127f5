"""Waiting for one's turn: the :class:`Throttle` of a job, for the coroutines of one process or of several."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from qzhou.errors import EndpointError
from qzhou.synthesis.throttle import Result, Throttle

SLOTS_AT_ONCE = 64  # asked for in one call
TOLD_EVERY_S = 0.005  # slots that are given back travel together


class Gate(Protocol):
    """Who may send: in this process, or in another one of the cluster."""

    async def enter(self, lanes: tuple[str, ...], *, tokens: float, cost: float) -> str: ...

    async def leave(self, lane: str, result: Result, **amounts: Any) -> bool: ...


class LocalGate:
    """Lets requests through in the order in which they came, as soon as the throttle allows.

    Args:
        throttle: Shared by all that pass.
        clock: Seconds, monotonic.
    """

    def __init__(self, throttle: Throttle, clock: Callable[[], float] = time.monotonic) -> None:
        self.throttle, self._clock = throttle, clock
        self._turns: dict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changed = asyncio.Event()

    async def enter(self, lanes: tuple[str, ...], *, tokens: float, cost: float) -> str:
        """Wait for a slot at one of some endpoints that are as good as each other; gives the one to send to.

        Raises:
            EndpointError: None of them is left, or ``max_cost`` is spent.
        """
        async with self._turns[lanes]:
            while True:
                wait_s = self._attempt(lanes, tokens, cost)
                if isinstance(wait_s, str):
                    return wait_s
                await self._change(wait_s)

    def try_enter(self, lanes: tuple[str, ...], *, tokens: float, cost: float) -> str | None:
        """A slot if one is free now and nobody waits for it."""
        if self._turns[lanes].locked():
            return None
        try:
            found = self._attempt(lanes, tokens, cost)
        except EndpointError:
            return None
        return found if isinstance(found, str) else None

    async def leave(self, lane: str, result: Result, **amounts: Any) -> bool:
        """Give a slot back; tells whether a failure is the endpoint's and not the request's."""
        rests = self.throttle.end(self._clock(), lane, result, **amounts)
        self._changed.set()
        self._changed = asyncio.Event()
        return rests

    def _attempt(self, lanes: tuple[str, ...], tokens: float, cost: float) -> str | float:
        """The endpoint whose slot was taken, or seconds to wait."""
        throttle, now = self.throttle, self._clock()
        lane = throttle.choose(lanes)
        if lane is None:
            said = "; ".join(f"{name} {throttle.lanes[name].gave_up}" for name in lanes)
            raise EndpointError(said)
        if throttle.is_spent(cost):
            if throttle.under_way:
                return float("inf")  # what is under way may cost less than expected
            raise EndpointError(
                f"synthesis.max_cost ({throttle.max_cost:g}) is spent: {throttle.spent:.4f} for what was answered. "
                "Raise it to go on, or ask for fewer rows."
            )
        return throttle.start(now, lane, tokens=tokens, cost=cost) or lane

    async def _change(self, wait_s: float) -> None:
        if wait_s == float("inf"):
            await self._changed.wait()
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), wait_s)


class GateActor:
    """The gate of a job that several processes send for: lives in an actor of its own, takes many calls at once."""

    def __init__(self, throttle: Throttle) -> None:
        self._gate = LocalGate(throttle)

    async def enter_some(
        self, lanes: tuple[str, ...], wanted: Sequence[tuple[float, float]]
    ) -> tuple[list[str], str]:
        """Slots for the first of some requests, given as (tokens, cost): one at least, more if they are free now.

        Returns: The endpoints to send to, and what is wrong if there will be none. (An exception would come out
            wrapped.)
        """
        try:
            granted = [await self._gate.enter(lanes, tokens=wanted[0][0], cost=wanted[0][1])]
        except EndpointError as error:
            return [], str(error)
        for tokens, cost in wanted[1:]:
            lane = self._gate.try_enter(lanes, tokens=tokens, cost=cost)
            if lane is None:
                break
            granted.append(lane)
        return granted, ""

    async def leave_some(self, ended: Sequence[tuple[str, Result, dict[str, Any]]]) -> bool:
        """Give slots back; tells what :meth:`LocalGate.leave` says of the last one."""
        return [await self._gate.leave(lane, result, **amounts) for lane, result, amounts in ended][
            -1
        ]


class RemoteGate:
    """The gate in a :class:`GateActor`: asks for many slots and gives many back in one call.

    Args:
        actor: Ray's handle of it.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._waiting: dict[tuple[str, ...], deque[tuple[asyncio.Future[str], float, float]]] = (
            defaultdict(deque)
        )
        self._asking: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._ended: list[tuple[str, Result, dict[str, Any]]] = []
        self._telling: asyncio.Task[None] | None = None

    async def enter(self, lanes: tuple[str, ...], *, tokens: float, cost: float) -> str:
        """As :meth:`LocalGate.enter`."""
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[lanes].append((turn, tokens, cost))
        if lanes not in self._asking:
            self._asking[lanes] = asyncio.create_task(self._ask(lanes))
        return await turn

    async def leave(self, lane: str, result: Result, **amounts: Any) -> bool:
        """As :meth:`LocalGate.leave`; only a failure waits for what the gate says."""
        if result not in {"answered", "rejected"}:
            return bool(await self._actor.leave_some.remote([(lane, result, amounts)]))
        self._ended.append((lane, result, amounts))
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell())
        return False

    async def _ask(self, lanes: tuple[str, ...]) -> None:
        queue = self._waiting[lanes]
        while queue:
            wanted = [(tokens, cost) for _, tokens, cost in islice(queue, SLOTS_AT_ONCE)]
            granted, problem = await self._actor.enter_some.remote(lanes, wanted)
            for lane in granted:
                queue.popleft()[0].set_result(lane)
            while problem and queue:
                queue.popleft()[0].set_exception(EndpointError(problem))
        del self._asking[lanes]

    async def _tell(self) -> None:
        await asyncio.sleep(TOLD_EVERY_S)
        ended, self._ended, self._telling = self._ended, [], None
        await self._actor.leave_some.remote(ended)
