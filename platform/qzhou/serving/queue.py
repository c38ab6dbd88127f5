"""Which texts go through the model next: fair to every request, alike in length, within a token budget.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, SIGCOMM 1996): a text's turn comes by the tokens that its own
request has had before it. A request of thousands of texts has the model to itself while nobody else asks, and a single
text passes between two of its batches. Memory is bounded by the budget whatever the requests look like.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Content = TypeVar("Content")

LOOK_AHEAD = 4  # budgets: among so many tokens of those whose turn comes next, a batch finds texts of like length


@dataclass(order=True, slots=True)
class Entry(Generic[Content]):
    """A text that waits.

    Attributes:
        turn: Smaller is sooner; in tokens.
        arrival: Among equal turns, in order of arrival.
        tokens: How long the text is.
    """

    turn: float
    arrival: int
    tokens: int = field(compare=False)
    content: Content = field(compare=False)


class FairQueue(Generic[Content]):
    """Texts that wait for the model.

    Args:
        budget: Tokens of one batch, padding included; a text above it goes alone.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._heap: list[Entry[Content]] = []
        self._arrivals = 0
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, texts: Iterable[tuple[Content, int]]) -> None:
        """Let the texts of one request wait, each with its tokens."""
        turn = self._now
        for content, tokens in texts:
            heapq.heappush(self._heap, Entry(turn, self._arrivals, tokens, content))
            self._arrivals += 1
            turn += tokens

    def take(self) -> list[Content]:
        """The next batch: the text whose turn it is, and those like it in length that come soon; none if none waits."""
        if not self._heap:
            return []
        window = self._window()
        first = window[0]
        self._now = max(self._now, first.turn)
        batch, longest = [first], first.tokens
        left = []
        for entry in sorted(window[1:], key=lambda one: (abs(one.tokens - first.tokens), one)):
            reach = max(longest, entry.tokens)
            if (len(batch) + 1) * reach <= self.budget:
                batch.append(entry)
                longest = reach
            else:
                left.append(entry)
        for entry in left:
            heapq.heappush(self._heap, entry)
        return [entry.content for entry in batch]

    def _window(self) -> list[Entry[Content]]:
        found, tokens = [heapq.heappop(self._heap)], 0
        while self._heap and tokens < LOOK_AHEAD * self.budget:
            found.append(heapq.heappop(self._heap))
            tokens += found[-1].tokens
        return found
