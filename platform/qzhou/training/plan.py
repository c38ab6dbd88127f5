"""Which rows each step trains on: a pure function of (seed, step).

Every rank computes the same plan and no state is kept, so resuming is an integer and the global
batches do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qzhou.errors import DataError
from qzhou.learning import StageSection
from qzhou.records import Task

Ints = np.ndarray[Any, np.dtype[np.int64]]
SHARE_UNIT = 10**6  # eta is counted in millionths, so that its share of steps is exact


@dataclass(frozen=True, slots=True)
class DatasetSize:
    """A dataset as the plan sees it."""

    name: str
    task: Task
    rows: int


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The rows of one dataset that one step trains on, over all ranks."""

    step: int
    dataset: str
    task: Task
    rows: Ints


class BatchPlan:
    """Task by share of steps, dataset by rows ** alpha within the task group, rows by seeded permutation.

    Source: QZhou-Embedding (arXiv:2508.21632), sections 5.1 and 5.2. The paper gives eta as a
    probability; here exactly that share of any run of steps is retrieval (within one step), because a
    short stage would otherwise miss it by chance.
    """

    def __init__(self, datasets: Sequence[DatasetSize], stage: StageSection, *, alpha: float, seed: int) -> None:
        """Raises: DataError: a group that the stage draws from has no dataset, or a dataset has no rows."""
        for dataset in datasets:
            if dataset.rows == 0:
                raise DataError(f"the dataset '{dataset.name}' has no training examples")
        self.datasets, self.stage, self.seed = list(datasets), stage, seed
        retrieval = [number for number, dataset in enumerate(datasets) if dataset.task == "retrieval"]
        others = [number for number, dataset in enumerate(datasets) if dataset.task != "retrieval"]
        share = round(stage.retrieval_share * SHARE_UNIT)
        if (share > 0 and not retrieval) or (share < SHARE_UNIT and not others):
            missing = "retrieval" if not retrieval else "pair or classification"
            raise DataError(
                f"retrieval_share is {stage.retrieval_share}, but there are no {missing} examples to train on"
            )
        steps = np.arange(stage.steps, dtype=np.int64)
        is_retrieval = (steps + 1) * share // SHARE_UNIT > steps * share // SHARE_UNIT
        draw = np.random.default_rng([seed, 1]).random(stage.steps)  # a prefix does not depend on the length
        self._dataset = np.where(is_retrieval, self._pick(retrieval, draw, alpha), self._pick(others, draw, alpha))
        self._turn = np.empty(stage.steps, dtype=np.int64)
        for number in range(len(datasets)):
            mine = self._dataset == number
            self._turn[mine] = np.arange(mine.sum())

    def at(self, step: int) -> PlannedBatch:
        """The batch of a step, in [0, steps)."""
        number = int(self._dataset[step])
        dataset = self.datasets[number]
        size = self.stage.cosent_batch_size if dataset.task == "pair" else self.stage.batch_size
        size = min(size, dataset.rows)
        positions = int(self._turn[step]) * size + np.arange(size, dtype=np.int64)
        epochs = positions // dataset.rows
        rows = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = _permutation(self.seed, number, int(epoch), dataset.rows)[positions[here] % dataset.rows]
        return PlannedBatch(step, dataset.name, dataset.task, rows)

    def _pick(self, group: Sequence[int], draw: np.ndarray[Any, Any], alpha: float) -> Ints:
        """A dataset of the group for each draw in [0, 1), in proportion to rows ** alpha."""
        if not group:
            return np.full(len(draw), -1, dtype=np.int64)
        weight = np.array([self.datasets[number].rows for number in group], dtype=np.float64) ** alpha
        upper = np.cumsum(weight / weight.sum())
        return np.asarray(group, dtype=np.int64)[np.minimum(np.searchsorted(upper, draw, side="right"), len(group) - 1)]


@lru_cache(maxsize=64)
def _permutation(seed: int, dataset: int, epoch: int, rows: int) -> Ints:
    """The order in which an epoch visits the rows of a dataset."""
    return np.random.default_rng([seed, 2, dataset, epoch]).permutation(rows)
