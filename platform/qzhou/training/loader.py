"""What a stage trains on, and the next steps' batches, prepared in threads meanwhile."""

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
from qzhou.training.batch_plan import BatchPlan, PlannedBatch
from qzhou.training.batches import Batch, build_batches
from qzhou.training.best_model import BestModel
from qzhou.training.distillation import Teacher
from qzhou.training.engine import Engine
from qzhou.training.examples import TrainingSet
from qzhou.training.sharding import ShardedBatch, shard_batch


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """What one stage trains on.

    ``data`` has the examples of every dataset of the plan by name. ``validate`` returns
    validation scores of the model as it is; every rank calls it. ``best`` keeps the weights
    that score highest.
    """

    name: str
    plan: BatchPlan
    data: Mapping[str, TrainingSet]
    recipe: Recipe
    tokenizer: Any
    teacher: Teacher | None = None
    validate: Callable[[], Mapping[str, float]] | None = None
    best: BestModel | None = None


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A step's batch, ready to be encoded by the model and its teacher, if any."""

    planned: PlannedBatch
    batches: list[Batch]
    sharded: ShardedBatch
    for_teacher: ShardedBatch | None


def prepare_batch(stage: TrainingStage, engine: Engine, step: int) -> PreparedBatch:
    """A step's batch, with this rank's share of texts as token ids; from any thread."""
    planned, training = stage.plan.at(step), stage.recipe.training
    batches = build_batches(
        planned, stage.data, negatives_per_query=training.negatives_per_query, seed=stage.recipe.training_seed
    )

    def sharded(tokenizer: Any, *, packed: bool) -> ShardedBatch:
        model = stage.recipe.model
        limit = {"query": model.max_query_tokens, "document": model.max_document_tokens}
        own = _own_tokenizer(tokenizer)
        groups = [group for batch in batches for group in batch.text_groups]
        ids = [one for side, texts in groups for one in token_ids(own, texts, max_tokens=limit[side])]
        return shard_batch(
            ids, rank=engine.rank, world=engine.world, micro_batch_tokens=engine.micro_batch_tokens, packed=packed
        )

    teacher = stage.teacher
    for_teacher = sharded(teacher.tokenizer, packed=teacher.collate.packed) if teacher else None
    return PreparedBatch(planned, batches, sharded(stage.tokenizer, packed=engine.packed), for_teacher)


def prefetch(
    prepare: Callable[[int], PreparedBatch], first: int, last: int, *, threads: int
) -> Iterator[tuple[PreparedBatch, float]]:
    """The batches of steps in [first, last), and for how many seconds each was waited for.

    Each of the threads prepares one batch while a step trains.
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
    """This thread's copy: tokenizers keep their last truncation and cannot be shared."""
    copies: list[tuple[Any, Any]] = _of_thread.__dict__.setdefault("copies", [])
    for original, own in copies:
        if original is tokenizer:
            return own
    copies.append((tokenizer, copy.deepcopy(tokenizer)))
    return copies[-1][1]
