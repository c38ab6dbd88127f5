"""Training examples of a dataset: on disk and memory-mapped, one copy on each node."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import EXAMPLE_TYPES, TASKS, Example, LabeledExample, Task
from qzhou.data.storage import Folder, from_row
from qzhou.errors import DataError
from qzhou.training.node_copies import cache_folder, copied_once
from qzhou.training.permutation import Ints
from qzhou.training.set_aside import RowGroups, all_left_out

# rows of a record batch, in which one row is looked up
ROWS_PER_BATCH = 1_000
NO_ROWS = np.empty(0, np.int64)
TASK_OF: dict[type[Example], Task] = {record: task for task, record in EXAMPLE_TYPES.items()}

Take = Callable[[Ints], list[Example]]


@dataclass(frozen=True, slots=True)
class Classes:
    """Which rows have the same label.

    Attributes:
        number_N: Class of each row.
        rows: All rows, class after class.
        ends: Where the classes end in ``rows``, beginning with 0.
    """

    number_N: Ints
    rows: Ints
    ends: Ints

    @classmethod
    def of(cls, number_N: Ints) -> Classes:
        """The classes of rows by the number of each row's class, from 0 without gaps."""
        ends = np.concatenate([[0], np.cumsum(np.bincount(number_N))])
        return cls(number_N, np.argsort(number_N, kind="stable"), ends.astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def members(self, number: int) -> Ints:
        """Rows of one class, at least one."""
        return self.rows[self.ends[number] : self.ends[number + 1]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The examples of one dataset, and how their texts are presented.

    Attributes:
        rows: Number of examples.
        take: Examples of some rows; from any thread.
        classes: For classification only.
        set_aside: Examples that are not among the rows: the best weights are chosen by them.
        left_out: How many of the dataset's examples are not among the rows for that.
    """

    name: str
    task: Task
    prompt: Prompt
    rows: int
    take: Take
    classes: Classes | None = None
    set_aside: tuple[Example, ...] = ()
    left_out: int = 0

    def spread(self, count: int) -> Ints:
        """At most ``count`` rows, evenly spaced."""
        return np.unique(np.linspace(0, self.rows - 1, min(count, self.rows)).astype(np.int64))

    @classmethod
    def of(cls, name: str, prompt: Prompt, examples: Sequence[Example]) -> TrainingSet:
        """A set of examples in memory, at least one."""
        task = TASK_OF[type(examples[0])]
        labels = [one.label for one in examples if isinstance(one, LabeledExample)]
        whole = cls(name, task, prompt, len(examples), lambda rows: [examples[row] for row in rows])
        return _with_classes(whole, labels) if labels else whole

    @classmethod
    def stored(
        cls, name: str, task: Task, prompt: Prompt, file: Path, *, aside: Ints = NO_ROWS, left_out: Ints = NO_ROWS
    ) -> TrainingSet:
        """A set of examples in an Arrow file of :func:`local_copy`; rows stay on disk until they are taken.

        ``aside`` are rows to choose weights by, and ``left_out`` all that are not trained on
        (:mod:`qzhou.training.set_aside`); both ascending.
        """
        from datasets import Dataset as Stored

        stored = Stored.from_file(str(file))
        record = EXAMPLE_TYPES[task]
        # how many rows are left out before each that is kept: removed ones count where they would have stood
        before = left_out - np.arange(len(left_out))

        def take(numbers: Ints) -> list[Example]:
            columns = stored[numbers.tolist()]
            rows = zip(*columns.values(), strict=True)
            return [from_row(record, dict(zip(columns, row, strict=True))) for row in rows]

        def take_kept(numbers: Ints) -> list[Example]:
            return take(numbers + np.searchsorted(before, numbers, side="right"))

        rows, examples = len(stored) - len(left_out), tuple(take(aside))
        whole = cls(name, task, prompt, rows, take_kept, set_aside=examples, left_out=len(left_out))
        if task != "classification":
            return whole
        labels = np.delete(np.asarray(stored.data.column("label").to_pylist(), dtype=object), left_out)
        return _with_classes(whole, labels.tolist())


def _with_classes(whole: TrainingSet, labels: Sequence[str]) -> TrainingSet:
    """The same set without classes of a single text, which could have no positive."""
    _, number_N, counts = np.unique(np.asarray(labels).astype(str), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[number_N] > 1)
    _, kept_number_N = np.unique(number_N[kept], return_inverse=True)
    return dataclasses.replace(
        whole,
        rows=len(kept),
        take=lambda rows: whole.take(kept[rows]),
        classes=Classes.of(kept_number_N.astype(np.int64)),
    )


def training_sets(
    recipe: Recipe, run_folder: Folder, *, mined: str, retrieval_only: bool
) -> dict[str, TrainingSet]:
    """The mined examples of every dataset, in the recipe's order.

    Args:
        recipe: Names the datasets that are trained on.
        run_folder: Folder of the run.
        mined: The execution of mining whose examples are read (:attr:`qzhou.data.records.Manifest.execution_id`).
        retrieval_only: For stage 1.

    Raises:
        DataError: There are none.
    """
    tasks: tuple[Task, ...] = ("retrieval",) if retrieval_only else TASKS
    found: dict[str, tuple[Task, Folder]] = {}
    for task in tasks:
        parent = run_folder / "mining" / "examples" / task
        found |= {name: (task, parent / name) for name in parent.folders()}
    cache = cache_folder(run_folder, mined)
    files: dict[str, tuple[Dataset, Task, Path]] = {}
    for dataset in recipe.trained_datasets:
        if dataset.name in found:
            task, folder = found[dataset.name]
            file = local_copy(folder, cache / f"{dataset.name}.arrow")
            if not is_uniform(file, task):  # else the transform has said so
                files[dataset.name] = (dataset, task, file)
    if not files:
        raise DataError(
            f"{run_folder.uri}/mining/examples holds no example to train on ({', '.join(tasks)}): all rows were "
            "dropped or held out.\n       Lower eval_fraction of a dataset, or see transform/dropped for the reasons."
        )
    aside = _set_aside(recipe, files) if recipe.training.select == "best" else {}
    return {
        name: TrainingSet.stored(name, task, dataset.prompt, file, **aside.get(name, {}))
        for name, (dataset, task, file) in files.items()
    }


def _set_aside(recipe: Recipe, files: Mapping[str, tuple[Dataset, Task, Path]]) -> dict[str, dict[str, Ints]]:
    """For each dataset the rows to choose weights by, and those that are left out of training for that."""
    groups = [RowGroups.of(_table(file), task) for _, task, file in files.values()]
    found = all_left_out(groups, recipe.training_seed)
    return {name: {"aside": aside, "left_out": out} for name, (aside, out) in zip(files, found, strict=True)}


def _table(file: Path) -> pa.Table:
    from datasets import Dataset as Stored

    return Stored.from_file(str(file)).data.table


def is_uniform(file: Path, task: Task) -> bool:
    """Whether all rows of an Arrow file have the same label or score: a step of such a dataset has a loss of 0."""
    column = {"pair": "score", "classification": "label"}.get(task)
    return column is not None and pc.count_distinct(_table(file).column(column)).as_py() < 2


def local_copy(folder: Folder, file: Path) -> Path:
    """One Arrow file with the rows of all Parquet files of a folder.

    The first rank of a node that asks makes the file. Copies of the same run whose examples
    have changed since are removed.

    Raises:
        StorageError: The folder cannot be read.
        DataError: This node has no room for the copy.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for other in file.parent.parent.iterdir():
        if other != file.parent:
            shutil.rmtree(other, ignore_errors=True)

    def copy(target: Path) -> None:
        if not _link_copy_of_another_run(file, target):
            _write_arrow(folder, target)

    return copied_once(folder, file, copy)


def _link_copy_of_another_run(file: Path, target: Path) -> bool:
    """Whether another run has a copy of the same making of the examples, which is then linked to ``target``."""
    for twin in file.parents[2].glob(f"*/{file.parent.name}/{file.name}"):  # <run>/<mined>/<file>
        with contextlib.suppress(OSError):  # it may be removed meanwhile
            os.link(twin, target)
            return True
    return False


def _write_arrow(folder: Folder, file: Path) -> None:
    writer = None
    with pa.OSFile(str(file), "wb") as sink:
        for name in folder.files(".parquet"):
            with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
                source = pq.ParquetFile(stream)
                writer = writer or pa.ipc.new_stream(sink, source.schema_arrow)
                for batch in source.iter_batches(ROWS_PER_BATCH):
                    writer.write_batch(batch)
        if writer is not None:
            writer.close()
