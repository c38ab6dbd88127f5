"""Which texts go through the model next: small requests before large ones, alike in length, within a token budget.

Each request is due when as many tokens have been computed as it holds itself, and what is due first goes first. So none
waits for many times its own work: a single text passes between two batches of a request of thousands, requests of one
size are answered one after the other, and a large one cannot be passed for ever. (Deadlines in proportion to size bound
the stretch: M. A. Bender, S. Chakrabarti, S. Muthukrishnan, Flow and stretch metrics, SODA 1998.) Memory is bounded by
the budget whatever the requests look like.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qzhou.encoder.batching import nearest_batch

Content = TypeVar("Content")

# budgets: among so many tokens of what is due next, a batch finds texts of like length
LOOK_AHEAD = 4


@dataclass(order=True, slots=True)
class Entry(Generic[Content]):
    """A text that waits.

    Attributes:
        due: In tokens that have been computed by then; smaller is sooner.
        arrival: Among what is due at the same time, in order of arrival.
        tokens: How long the text is.
    """

    due: int
    arrival: int
    tokens: int = field(compare=False)
    content: Content = field(compare=False)


class TextQueue(Generic[Content]):
    """Texts that wait for the model.

    Args:
        budget: Tokens of one batch, padding included; a text above it goes alone.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._heap: list[Entry[Content]] = []
        self._arrivals = 0
        self._waiting = 0  # tokens
        self.computed = 0  # tokens taken so far

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, texts: Iterable[tuple[Content, int]], *, size: int) -> int:
        """The virtual finish time of a request, by which its texts now wait in the queue.

        Args:
            texts: Each with its number of tokens.
            size: Tokens of the request.
        """
        due = self.computed + size
        for content, tokens in texts:
            heapq.heappush(self._heap, Entry(due, self._arrivals, tokens, content))
            self._arrivals += 1
            self._waiting += tokens
        return due

    def take(self, takers: int = 1) -> list[Content]:
        """The next batch: the text that is due first, and those like it in length that are due soon.

        Args:
            takers: So many take a batch now, this one included; what waits is shared among them.
        """
        if not self._heap:
            return []
        room = min(self.budget, self._waiting // takers)
        window = self._window()
        taken_rows = nearest_batch([entry.tokens for entry in window], room)
        batch = [window[row] for row in taken_rows]
        for row in set(range(len(window))).difference(taken_rows):
            heapq.heappush(self._heap, window[row])
        taken = sum(entry.tokens for entry in batch)
        self.computed += taken
        self._waiting -= taken
        return [entry.content for entry in batch]

    def _window(self) -> list[Entry[Content]]:
        found, tokens = [heapq.heappop(self._heap)], 0
        while self._heap and tokens < LOOK_AHEAD * self.budget:
            found.append(heapq.heappop(self._heap))
            tokens += found[-1].tokens
        return found
