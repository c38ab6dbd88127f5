"""Prepare the batches of the next steps in threads while a step trains."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.encoder.encoder import token_ids
from qzhou.training.batch_plan import BatchPlan, PlannedBatch
from qzhou.training.batches import Batch, build_batches
from qzhou.training.examples import TrainingSet
from qzhou.training.sharding import ShardedBatch, shard_batch


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A step's batch, ready to be encoded by the model and, if there is one, by its teacher."""

    planned: PlannedBatch
    batches: list[Batch]
    sharded: ShardedBatch
    for_teacher: ShardedBatch | None


@dataclass(frozen=True, slots=True)
class BatchPreparer:
    """Makes the batch of a step, from any thread: examples, texts, token ids, this rank's share.

    Attributes:
        plan: Says which rows a step trains on.
        data: Dataset name -> its examples.
        recipe: Of the run.
        tokenizer: Of the model.
        rank: Whose share is prepared.
        world: Number of ranks.
        chunk_tokens: Padded tokens of one forward pass.
        teacher_tokenizer: Of the teacher, if there is one.
    """

    plan: BatchPlan
    data: Mapping[str, TrainingSet]
    recipe: Recipe
    tokenizer: Any
    rank: int
    world: int
    chunk_tokens: int
    teacher_tokenizer: Any = None

    def __call__(self, step: int) -> PreparedBatch:
        """The batch of a step."""
        planned = self.plan.at(step)
        batches = build_batches(
            planned,
            self.data,
            negatives_per_query=self.recipe.training.negatives_per_query,
            seed=self.recipe.training_seed,
        )
        for_teacher = None
        if self.teacher_tokenizer is not None:
            for_teacher = self._sharded(batches, self.teacher_tokenizer)
        return PreparedBatch(planned, batches, self._sharded(batches, self.tokenizer), for_teacher)

    def _sharded(self, batches: Sequence[Batch], tokenizer: Any) -> ShardedBatch:
        model = self.recipe.model
        limit = {"query": model.max_query_tokens, "document": model.max_document_tokens}
        own = _own_tokenizer(tokenizer)
        ids: list[list[int]] = []
        for batch in batches:
            for side, texts in batch.text_groups:
                ids += token_ids(own, texts, max_tokens=limit[side])
        return shard_batch(ids, rank=self.rank, world=self.world, chunk_tokens=self.chunk_tokens)


def prefetch(
    prepare: Callable[[int], PreparedBatch], first: int, last: int, *, threads: int
) -> Iterator[tuple[PreparedBatch, float]]:
    """The batches of steps in [first, last), and for how many seconds each was waited for.

    Args:
        prepare: Makes the batch of a step.
        first: First step.
        last: The step after the last one.
        threads: Number of threads; so many batches are under way while one more is trained on.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        waiting: deque[Future[PreparedBatch]] = deque()
        try:
            for step in range(first, last):
                waiting.append(pool.submit(prepare, step))
                if len(waiting) > threads:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            for one in waiting:
                one.cancel()


def _next(waiting: deque[Future[PreparedBatch]]) -> tuple[PreparedBatch, float]:
    started = monotonic()
    prepared = waiting.popleft().result()
    return prepared, monotonic() - started


_of_thread = threading.local()


def _own_tokenizer(tokenizer: Any) -> Any:
    """This thread's copy: a tokenizer remembers the truncation of its last call and cannot be shared."""
    copies: list[tuple[Any, Any]] = _of_thread.__dict__.setdefault("copies", [])
    for original, own in copies:
        if original is tokenizer:
            return own
    copies.append((tokenizer, copy.deepcopy(tokenizer)))
    return copies[-1][1]
