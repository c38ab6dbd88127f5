"""Fair queueing of texts: small requests before large ones, batches of similar lengths within a token budget.

A request is due when as many tokens have been computed as it holds itself (its virtual
finish time), and the earliest deadline goes first. So no request waits for many times its
own work: a single text passes between two batches of a request of thousands, requests of
one size are answered in order, and a large one is not overtaken for ever. Deadlines in
proportion to size bound the stretch: M. A. Bender, S. Chakrabarti, S. Muthukrishnan, Flow
and stretch metrics, SODA 1998. The budget bounds the memory, whatever the requests look
like.
"""

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
        due: Virtual finish time, in tokens computed by then; the smallest goes first.
        arrival: Number in the order of arrival, which decides between equal deadlines.
        tokens: Tokens of the text.
        content: What the caller put in.
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
        """Queue the texts of a request of ``size`` tokens, each with its number of tokens.

        Returns: The deadline of the texts, in tokens computed by then.
        """
        due = self.computed + size
        for content, tokens in texts:
            heapq.heappush(self._heap, Entry(due, self._arrivals, tokens, content))
            self._arrivals += 1
            self._waiting += tokens
        return due

    def take(self, takers: int = 1) -> list[Content]:
        """The next batch: the text that is due first, and texts of similar length that are due soon.

        Args:
            takers: Threads that take a batch now, this one included; they share what waits.
        """
        if not self._heap:
            return []
        room = min(self.budget, self._waiting // takers)
        window = self._window()
        rows = nearest_batch([entry.tokens for entry in window], room)
        batch = [window[row] for row in rows]
        for row in set(range(len(window))).difference(rows):
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
