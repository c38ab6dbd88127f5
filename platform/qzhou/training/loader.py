"""Batches made ahead of the step that trains on them."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.encoder.encoder import token_ids
from qzhou.training.batches import Batch, build_batches
from qzhou.training.data import TrainingSet
from qzhou.training.deal import Deal, deal
from qzhou.training.plan import BatchPlan, PlannedBatch


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's batch, ready to be encoded."""

    planned: PlannedBatch
    batches: list[Batch]
    deal: Deal
    teacher_deal: Deal | None


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a step becomes a batch: examples, texts, token ids, shares. From any thread.

    Attributes:
        micro_batch_tokens: Padded tokens of one forward pass.
        teacher_tokenizer: Where a teacher reads the same texts.
    """

    plan: BatchPlan
    data: Mapping[str, TrainingSet]
    recipe: Recipe
    tokenizer: Any
    rank: int
    world: int
    micro_batch_tokens: int
    teacher_tokenizer: Any = None

    def __call__(self, step: int) -> Prepared:
        recipe, planned = self.recipe, self.plan.at(step)
        batches = build_batches(
            planned,
            self.data,
            negatives_per_query=recipe.training.negatives_per_query,
            seed=recipe.training_seed,
        )
        teacher = (
            None if self.teacher_tokenizer is None else self._dealt(batches, self.teacher_tokenizer)
        )
        return Prepared(planned, batches, self._dealt(batches, self.tokenizer), teacher)

    def _dealt(self, batches: list[Batch], tokenizer: Any) -> Deal:
        model = self.recipe.model
        limit = {"query": model.max_query_tokens, "document": model.max_document_tokens}
        own = _own_tokenizer(tokenizer)
        ids = [
            one
            for batch in batches
            for side, texts in batch.kinds
            for one in token_ids(own, texts, max_tokens=limit[side])
        ]
        return deal(
            ids, rank=self.rank, world=self.world, micro_batch_tokens=self.micro_batch_tokens
        )


def ahead(
    prepare: Callable[[int], Prepared], first: int, last: int, *, threads: int
) -> Iterator[tuple[Prepared, float]]:
    """The batches of steps in [first, last), and how many seconds the step waited for its own.

    Args:
        threads: That make batches; each is at most one batch ahead, and one more is ready.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        waiting: deque[Future[Prepared]] = deque()
        following = iter(range(first, last))
        try:
            for step in following:
                waiting.append(pool.submit(prepare, step))
                if len(waiting) <= threads:
                    continue
                yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            for one in waiting:
                one.cancel()


def _next(waiting: deque[Future[Prepared]]) -> tuple[Prepared, float]:
    started = monotonic()
    found = waiting.popleft().result()
    return found, monotonic() - started


_of_thread = threading.local()


def _own_tokenizer(tokenizer: Any) -> Any:
    """This thread's copy: a tokenizer keeps the truncation of its last call and cannot be shared."""
    copies: list[tuple[Any, Any]] = _of_thread.__dict__.setdefault("copies", [])
    for original, own in copies:
        if original is tokenizer:
            return own
    copies.append((tokenizer, copy.deepcopy(tokenizer)))
    return copies[-1][1]
