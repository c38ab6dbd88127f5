"""How many replicas the waiting tokens want."""

import math
from typing import Any


class ByWaitingTokens:
    """A Ray Serve autoscaling policy; its delays, factors and bounds apply to what it says.

    Requests are a poor measure for an encoder: one may hold a word, another two thousand
    pages. ``target`` is how many tokens wait at a replica.
    """

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas for an ``AutoscalingContext``, and the state that Serve keeps for the policy."""
        by_replica = (context.aggregated_metrics or {}).get("waiting_tokens", {})
        waiting = sum(by_replica.values())
        wanted = math.ceil(waiting / self._target)
        busy = context.total_num_requests > 0
        return max(wanted, int(busy)), context.policy_state or {}
