"""A rate limit as a token bucket. Pure: the caller passes the time."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenBucket:
    """At most ``per_minute`` units: full at first, refilled evenly, negative if overdrawn.

    Attributes:
        per_minute: Units that are added in a minute.
        capacity: Units that an unused bucket holds at most.
        level: Units left at ``updated_at``.
        updated_at: Seconds of the caller's clock; None before the first use.
    """

    per_minute: float
    capacity: float
    level: float = field(init=False)
    updated_at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def level_at(self, now: float) -> float:
        """Units left at ``now``, in seconds of the caller's clock."""
        if self.updated_at is not None:
            added = (now - self.updated_at) * self.per_minute / 60
            self.level = min(self.capacity, self.level + added)
        self.updated_at = now
        return self.level

    def wait_s(self, now: float, units: float) -> float:
        """Seconds until ``units`` may be taken. A full bucket allows any number."""
        missing = min(units, self.capacity) - self.level_at(now)
        return missing * 60 / self.per_minute if missing > 1e-9 else 0.0

    def take(self, units: float) -> None:
        """Take units out; a negative number puts them back."""
        self.level -= units
