"""Which rows each step trains on: a pure function of (seed, step).

Every rank computes the same plan and no state is kept, so resuming is an integer and the
global batches do not depend on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qzhou.config.training import SHARE_UNIT, Grouping, StageSection
from qzhou.data.records import TASKS, Task
from qzhou.errors import DataError
from qzhou.training.permutation import Ints, permuted

Floats = np.ndarray[Any, np.dtype[np.float64]]


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
        return self.parts[0].task if len({part.task for part in self.parts}) == 1 else "mixed"

    @property
    def dataset(self) -> str:
        """The dataset, or ``mixed``."""
        return self.parts[0].dataset if len(self.parts) == 1 else "mixed"


class BatchPlan:
    """Task by share of steps, dataset by rows ** alpha in its task, rows by seeded order.

    The paper gives eta as a probability. Here exactly that share of any run of steps is
    retrieval (within one step), because a short stage would otherwise miss it by chance.

    Source: QZhou-Embedding (arXiv:2508.21632), sections 5.1 and 5.2.
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
        """Draw the datasets of all steps.

        ``grouping`` says what the rows of a batch have in common: their ``dataset`` (the
        paper's), their ``task`` (as in SFR-Embedding), or nothing; then each row is drawn
        for itself and eta is a share of rows.

        Raises:
            DataError: A group that the stage draws from is empty, or a dataset has no rows.
        """
        for dataset in datasets:
            if dataset.rows == 0:
                raise DataError(f"the dataset '{dataset.name}' has no training examples")
        self.datasets, self.stage, self.seed = list(datasets), stage, seed
        weights = _weights(self.datasets, stage.retrieval_share, alpha)
        self._groups = _groups(self.datasets, grouping)
        self._group_of_step = np.zeros(stage.steps, dtype=np.int64)
        if grouping != "none":
            self._group_of_step = _drawn_groups(self.datasets, self._groups, weights, stage, seed)
        # how often a step's group was drawn before: rows go on where that draw ended
        self._earlier_draws = np.zeros(stage.steps, dtype=np.int64)
        for number in range(len(self._groups)):
            is_drawn = self._group_of_step == number
            self._earlier_draws[is_drawn] = np.arange(is_drawn.sum())
        self._rows_before = [self._rows_by_draw(number, weights) for number in range(len(self._groups))]

    def at(self, step: int) -> PlannedBatch:
        """The batch of a step, in [0, steps)."""
        group, draw = int(self._group_of_step[step]), int(self._earlier_draws[step])
        starts, ends = self._rows_before[group][draw : draw + 2].tolist()
        parts = [
            self._rows(member, start, end - start)
            for member, start, end in zip(self._groups[group], starts, ends, strict=True)
            if end > start
        ]
        return PlannedBatch(step, tuple(parts))

    @property
    def epochs(self) -> dict[str, float]:
        """How many times the stage reads the rows of each dataset, by its name."""
        return {
            self.datasets[member].name: int(rows) / self.datasets[member].rows
            for members, before in zip(self._groups, self._rows_before, strict=True)
            for member, rows in zip(members, before[-1], strict=True)
        }

    def _size(self, members: Sequence[int]) -> int:
        """Rows of a batch of these datasets; fewer where they have fewer in all."""
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

    def _rows_by_draw(self, number: int, weights: Floats) -> Ints:
        """How many rows each member of a group has given before each of its draws [draws + 1, members]."""
        group = self._groups[number]
        size, draws = self._size(group), int((self._group_of_step == number).sum())
        if len(group) == 1:
            return size * np.arange(draws + 1, dtype=np.int64)[:, None]
        share = weights[group] / weights[group].sum()
        generator = np.random.default_rng([self.seed, 4, number])
        rows = generator.multinomial(size, share, size=draws).cumsum(axis=0, dtype=np.int64)
        return np.concatenate([np.zeros((1, len(group)), dtype=np.int64), rows])


def _weights(datasets: Sequence[DatasetSize], retrieval_share: float, alpha: float) -> Floats:
    """Each dataset's share of the batches: eta among retrieval, the rest among the others, by rows ** alpha."""
    weight = np.array([dataset.rows for dataset in datasets], dtype=np.float64) ** alpha
    retrieval = np.array([dataset.task == "retrieval" for dataset in datasets])
    both = (("retrieval", retrieval, retrieval_share), ("pair or classification", ~retrieval, 1 - retrieval_share))
    for name, group, share in both:
        if share > 0 and not group.any():
            raise DataError(f"retrieval_share is {retrieval_share}, but there are no {name} examples to train on")
        weight[group] *= share / max(weight[group].sum(), np.finfo(float).tiny)
    return weight


def _groups(datasets: Sequence[DatasetSize], grouping: Grouping) -> list[list[int]]:
    """Numbers of the datasets whose rows may share a batch."""
    numbers = list(range(len(datasets)))
    if grouping == "none":
        return [numbers]
    if grouping == "dataset":
        return [[number] for number in numbers]
    by_task = [[number for number in numbers if datasets[number].task == task] for task in TASKS]
    return [group for group in by_task if group]


def _drawn_groups(
    datasets: Sequence[DatasetSize], groups: Sequence[list[int]], weights: Floats, stage: StageSection, seed: int
) -> Ints:
    """The group of each step; a prefix does not depend on the number of steps."""
    steps = np.arange(stage.steps, dtype=np.int64)
    share = round(stage.retrieval_share * SHARE_UNIT)
    is_retrieval = (steps + 1) * share // SHARE_UNIT > steps * share // SHARE_UNIT
    draw = np.random.default_rng([seed, 1]).random(stage.steps)
    of_retrieval = [number for number, group in enumerate(groups) if datasets[group[0]].task == "retrieval"]
    others = [number for number in range(len(groups)) if number not in of_retrieval]
    weight = np.array([weights[group].sum() for group in groups])
    return np.where(is_retrieval, _pick(of_retrieval, weight, draw), _pick(others, weight, draw))


def _pick(candidates: list[int], weight: Floats, draw: Floats) -> Ints:
    """A candidate for each draw in [0, 1), in proportion to its weight."""
    own = weight[candidates]
    if not own.sum():
        return np.full(len(draw), -1, dtype=np.int64)
    upper = np.cumsum(own / own.sum())
    places = np.minimum(np.searchsorted(upper, draw, side="right"), len(candidates) - 1)
    return np.asarray(candidates, dtype=np.int64)[places]
