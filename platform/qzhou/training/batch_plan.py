"""Which rows each step trains on: a pure function of (seed, step).

Every rank computes the same plan and no state is kept, so resuming is an integer and the global
batches do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.config.training import SHARE_UNIT, Grouping, StageSection
from qzhou.data.records import TASKS, Task
from qzhou.errors import DataError
from qzhou.training.permutation import Ints, permuted


@dataclass(frozen=True, slots=True)
class DatasetSize:
    """A dataset as the plan sees it."""

    name: str
    task: Task
    rows: int


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """Rows of one dataset."""

    dataset: str
    task: Task
    rows: Ints


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """What one step trains on, over all ranks: one dataset's rows, or several's where batches are not grouped so."""

    step: int
    parts: tuple[PlannedRows, ...]

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def task(self) -> str:
        """The task, or ``mixed``."""
        tasks = {part.task for part in self.parts}
        return next(iter(tasks)) if len(tasks) == 1 else "mixed"

    @property
    def dataset(self) -> str:
        """The dataset, or ``mixed``."""
        return self.parts[0].dataset if len(self.parts) == 1 else "mixed"


class BatchPlan:
    """Task by share of steps, dataset by rows ** alpha within the task group, rows by seeded permutation.

    Source: QZhou-Embedding (arXiv:2508.21632), sections 5.1 and 5.2. The paper gives eta as a
    probability; here exactly that share of any run of steps is retrieval (within one step), because a
    short stage would otherwise miss it by chance.

    ``grouping`` says what a batch's rows have in common: their ``dataset`` (the paper's), their ``task`` (as in
    SFR-Embedding), or nothing; then each row is drawn for itself and eta is a share of rows.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetSize],
        stage: StageSection,
        *,
        alpha: float,
        seed: int,
        grouping: Grouping = "dataset",
    ) -> None:
        """Raises: DataError: a group that the stage draws from has no dataset, or a dataset has no rows."""
        for dataset in datasets:
            if dataset.rows == 0:
                raise DataError(f"the dataset '{dataset.name}' has no training examples")
        self.datasets, self.stage, self.seed = list(datasets), stage, seed
        weights = _weights(self.datasets, stage.retrieval_share, alpha)
        groups = _groups(self.datasets, grouping)
        if grouping == "none":
            self._group = np.zeros(stage.steps, dtype=np.int64)
        else:
            self._group = _drawn_groups(self.datasets, groups, weights, stage, seed)
        self._turn = np.zeros(stage.steps, dtype=np.int64)
        for number in range(len(groups)):
            drawn = self._group == number
            self._turn[drawn] = np.arange(drawn.sum())
        self._counts = [
            self._rows_by_turn(group, weights, number) for number, group in enumerate(groups)
        ]
        self._groups = groups

    def at(self, step: int) -> PlannedBatch:
        """The batch of a step, in [0, steps)."""
        group, turn = int(self._group[step]), int(self._turn[step])
        members = self._groups[group]
        counts = self._counts[group]
        if counts is None:  # a group of one
            size = self._size(members)
            return PlannedBatch(step, (self._rows(members[0], turn * size, size),))
        before = counts[turn - 1] if turn else np.zeros(len(members), dtype=np.int64)
        parts = [
            self._rows(member, int(start), int(end - start))
            for member, start, end in zip(members, before, counts[turn], strict=True)
            if end > start
        ]
        return PlannedBatch(step, tuple(parts))

    def _size(self, members: Sequence[int]) -> int:
        """Rows of a batch of these datasets; a single one smaller than the batch gives all it has."""
        pairs = all(self.datasets[member].task == "pair" for member in members)
        size = self.stage.cosent_batch_size if pairs else self.stage.batch_size
        return min(size, sum(self.datasets[member].rows for member in members))

    def _rows(self, number: int, start: int, count: int) -> PlannedRows:
        """The next ``count`` rows of a dataset of which ``start`` have been drawn; not more than it has."""
        dataset = self.datasets[number]
        positions = start + np.arange(min(count, dataset.rows), dtype=np.int64)
        epochs = positions // dataset.rows
        rows = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = (self.seed, 2, number, int(epoch))
            rows[here] = permuted(positions[here] % dataset.rows, rows=dataset.rows, key=key)
        return PlannedRows(dataset.name, dataset.task, rows)

    def _rows_by_turn(
        self, group: Sequence[int], weights: np.ndarray[Any, Any], number: int
    ) -> Ints | None:
        """How many rows each member of a group has given by the end of each of its turns [turns, members]."""
        if len(group) == 1:
            return None
        share = weights[list(group)] / weights[list(group)].sum()
        generator = np.random.default_rng([self.seed, 4, number])
        turns = int((self._group == number).sum())
        return np.cumsum(
            generator.multinomial(self._size(group), share, size=turns), axis=0, dtype=np.int64
        )


def _weights(
    datasets: Sequence[DatasetSize], retrieval_share: float, alpha: float
) -> np.ndarray[Any, Any]:
    """Each dataset's share of the batches: eta among retrieval, the rest among the others, by rows ** alpha."""
    weight = np.array([dataset.rows for dataset in datasets], dtype=np.float64) ** alpha
    retrieval = np.array([dataset.task == "retrieval" for dataset in datasets])
    both = (
        ("retrieval", retrieval, retrieval_share),
        ("pair or classification", ~retrieval, 1 - retrieval_share),
    )
    for name, group, share in both:
        if share > 0 and not group.any():
            raise DataError(
                f"retrieval_share is {retrieval_share}, but there are no {name} examples to train on"
            )
        weight[group] *= share / max(weight[group].sum(), np.finfo(float).tiny)
    return weight


def _groups(datasets: Sequence[DatasetSize], grouping: Grouping) -> list[list[int]]:
    """Numbers of the datasets whose rows may share a batch."""
    everyone = range(len(datasets))
    if grouping == "dataset":
        return [[number] for number in everyone]
    if grouping == "task":
        by_task = [
            [number for number in everyone if datasets[number].task == task] for task in TASKS
        ]
        return [group for group in by_task if group]
    return [list(everyone)]


def _drawn_groups(
    datasets: Sequence[DatasetSize],
    groups: Sequence[Sequence[int]],
    weights: np.ndarray[Any, Any],
    stage: StageSection,
    seed: int,
) -> Ints:
    """The group of each step; a prefix does not depend on the number of steps."""
    steps = np.arange(stage.steps, dtype=np.int64)
    share = round(stage.retrieval_share * SHARE_UNIT)
    is_retrieval = (steps + 1) * share // SHARE_UNIT > steps * share // SHARE_UNIT
    draw = np.random.default_rng([seed, 1]).random(stage.steps)
    of_retrieval = [
        number for number, group in enumerate(groups) if datasets[group[0]].task == "retrieval"
    ]
    others = [number for number in range(len(groups)) if number not in of_retrieval]
    weight = np.array([weights[list(group)].sum() for group in groups])
    return np.where(is_retrieval, _pick(of_retrieval, weight, draw), _pick(others, weight, draw))


def _pick(
    candidates: Sequence[int], weight: np.ndarray[Any, Any], draw: np.ndarray[Any, Any]
) -> Ints:
    """A candidate for each draw in [0, 1), in proportion to its weight."""
    if not candidates or not weight[list(candidates)].sum():
        return np.full(len(draw), -1, dtype=np.int64)
    upper = np.cumsum(weight[list(candidates)] / weight[list(candidates)].sum())
    places = np.minimum(np.searchsorted(upper, draw, side="right"), len(candidates) - 1)
    return np.asarray(candidates, dtype=np.int64)[places]
