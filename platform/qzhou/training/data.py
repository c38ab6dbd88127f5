"""Training examples of a dataset: on disk, memory-mapped, a copy a node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import EXAMPLE_TYPES, TASKS, Example, LabeledExample, Task
from qzhou.data.storage import Folder, from_row
from qzhou.errors import DataError
from qzhou.training.permutation import Ints

ROWS_AT_ONCE = 1_000  # of a record batch: what one row is looked up in
TASK_OF: dict[type[Example], Task] = {record: task for task, record in EXAMPLE_TYPES.items()}


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
    def of(cls, labels: Sequence[str]) -> Classes:
        _, number_N = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
        counts = np.bincount(number_N)
        ends = np.concatenate([[0], np.cumsum(counts)])
        return cls(
            number_N.astype(np.int64), np.argsort(number_N, kind="stable"), ends.astype(np.int64)
        )

    def __len__(self) -> int:
        return len(self.ends) - 1

    def members(self, number: int) -> Ints:
        """Rows of one class, at least one."""
        return self.rows[self.ends[number] : self.ends[number + 1]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The examples of one dataset, and how their texts are presented.

    Attributes:
        take: Rows to examples; from any thread.
        classes: For classification alone.
    """

    name: str
    task: Task
    prompt: Prompt
    rows: int
    take: Callable[[Ints], list[Example]]
    classes: Classes | None = None

    @classmethod
    def of(cls, name: str, prompt: Prompt, examples: Sequence[Example]) -> TrainingSet:
        """Examples that are in memory, at least one."""
        labels = [one.label for one in examples if isinstance(one, LabeledExample)]
        task = TASK_OF[type(examples[0])]
        return cls._of(
            name, task, prompt, len(examples), lambda rows: [examples[row] for row in rows], labels
        )

    @classmethod
    def stored(cls, name: str, task: Task, prompt: Prompt, file: Path) -> TrainingSet:
        """Examples in an Arrow file that :func:`local_copy` made; they stay on disk until they are taken."""
        from datasets import Dataset

        rows = Dataset.from_file(str(file))
        labels = rows.data.column("label").to_pylist() if task == "classification" else []

        def take(numbers: Ints) -> list[Example]:
            columns = rows[numbers.tolist()]
            values = zip(*columns.values(), strict=True)
            return [
                from_row(EXAMPLE_TYPES[task], dict(zip(columns, one, strict=True)))
                for one in values
            ]

        return cls._of(name, task, prompt, len(rows), take, labels)

    @classmethod
    def _of(
        cls,
        name: str,
        task: Task,
        prompt: Prompt,
        rows: int,
        take: Callable[[Ints], list[Example]],
        labels: Sequence[str],
    ) -> TrainingSet:
        """Classes with a single text are left out: it could have no positive."""
        if task != "classification":
            return cls(name, task, prompt, rows, take)
        _, number_N, counts = np.unique(
            np.asarray(labels).astype(str), return_inverse=True, return_counts=True
        )
        kept = np.flatnonzero(counts[number_N] > 1)
        classes = Classes.of([labels[row] for row in kept.tolist()])
        return cls(name, task, prompt, len(kept), lambda numbers: take(kept[numbers]), classes)


def training_sets(
    recipe: Recipe, run_folder: Folder, *, mined: str, retrieval_only: bool
) -> dict[str, TrainingSet]:
    """The mined examples of every dataset, in the recipe's order.

    Args:
        mined: What tells this making of them from others (:attr:`qzhou.data.records.Manifest.making`).
        retrieval_only: Leave out the other tasks.

    Raises:
        DataError: There are none.
    """
    tasks: tuple[Task, ...] = ("retrieval",) if retrieval_only else TASKS
    found: dict[str, tuple[Task, Folder]] = {}
    for task in tasks:
        parent = run_folder / "mining" / "examples" / task
        found |= {name: (task, parent / name) for name in parent.folders()}
    place = cache_folder(run_folder, mined)
    sets = {
        dataset.name: TrainingSet.stored(
            dataset.name,
            found[dataset.name][0],
            dataset.prompt,
            local_copy(found[dataset.name][1], place / f"{dataset.name}.arrow"),
        )
        for dataset in recipe.trained_datasets
        if dataset.name in found
    }
    if not sets:
        raise DataError(
            f"{run_folder.uri}/mine/examples holds no example to train on ({', '.join(tasks)}): all rows were dropped "
            "or held out.\n       Lower eval_fraction of a dataset, or see transform/dropped for the reasons."
        )
    return sets


def cache_folder(run_folder: Folder, mined: str) -> Path:
    """Where this node keeps its copies: below the folder of Hugging Face datasets (HF_DATASETS_CACHE)."""
    from datasets import config

    run = hashlib.sha256(run_folder.uri.encode()).hexdigest()[:16]
    return Path(config.HF_DATASETS_CACHE) / "qzhou" / run / mined


def local_copy(folder: Folder, file: Path) -> Path:
    """One Arrow file of all Parquet files of a folder, made by the first rank of a node that asks.

    Copies of the same run whose examples have changed since are removed.

    Raises:
        StorageError: The folder cannot be read.
        DataError: This node has no room for the copy.
    """
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    for other in file.parent.parent.iterdir():
        if other != file.parent:
            shutil.rmtree(other, ignore_errors=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            partial = file.with_suffix(".writing")
            partial.unlink(missing_ok=True)
            try:
                if not _linked(file, partial):
                    _write_arrow(folder, partial)
            except OSError as error:
                raise DataError(
                    f"{folder.uri} cannot be copied to {file.parent}: {error}. Set HF_DATASETS_CACHE to a folder with "
                    "room on every node."
                ) from None
            partial.replace(file)
    return file


def _linked(file: Path, target: Path) -> bool:
    """Take the copy that another run has of the same examples, which are told by the making of their stage."""
    mined, runs = file.parent, file.parents[2]
    for twin in runs.glob(f"*/{mined.name}/{file.name}"):
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
                for batch in source.iter_batches(ROWS_AT_ONCE):
                    writer.write_batch(batch)
        if writer is not None:
            writer.close()
