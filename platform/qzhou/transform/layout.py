"""The layout of a transform: its shards, its shuffles, and the folders in which tasks leave files for each other.

It follows from the recipe and the sizes of the raw files alone. So a run that was killed
finds the same shards again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import pyarrow as pa

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.transform.pieces import Piece
from qzhou.transform.reading.discovery import INPUTS, Inputs, format_of
from qzhou.transform.reading.files import unpacked_bytes
from qzhou.transform.reading.parts import SPLIT_BYTES, FilePart, file_parts
from qzhou.transform.reading.readers import CustomReader, reads_together
from qzhou.transform.rules.fields import GROUPED_BY
from qzhou.transform.shuffling.partitions import PartitionRange, read_partition

PARTITION_BYTES = 64 * 2**20  # raw bytes whose rows meet in one task of a shuffle
# A file that cannot be cut (CSV, gzip) and is larger is distributed over several tasks.
LARGE_BYTES = 8 * SPLIT_BYTES
BUCKET_BYTES = 32 * 2**20  # raw bytes whose keys are compared together: some hundred thousand rows
MAX_PARTITIONS = 4096

Kind = Literal["file", "grouped", "joined", "spread"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a dataset that one task converts and one writes; numbered in recipe order.

    ``kind`` says where its rows are: in raw files, or in the partition ``part`` of a
    shuffle (grouped by query, joined with documents, or only spread).
    """

    number: int
    dataset: str
    kind: Kind
    part: int = 0
    files: FilePart | None = None

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.number:06d}"


@dataclass(frozen=True, slots=True)
class ShuffleTask:
    """A shuffle's task: it spreads part of an input, or joins a partition of documents."""

    dataset: str
    role: str  # one of INPUTS, or "join"
    part: int
    files: FilePart | None = None

    @property
    def name(self) -> str:
        """The name of its mark."""
        return f"{self.dataset}-{self.role}-{self.part:06d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that the tasks of a transform need to know.

    Attributes:
        recipe: Of the run.
        folder: Of the stage.
        shards: Of all datasets, in the order of the recipe.
        shuffle_phases: The tasks of a phase need the files of the phases before it.
        partitions: Dataset -> partitions of its shuffles and of its corpus.
        buckets: In how many parts the keys of all examples are compared.
        readers: ``module:function`` -> the function.
        merged: Datasets whose rows with the same query and positives become one example.
        pieces: Shard -> the pieces in which the last step has written it.
        partitioned: Folder of ``work`` -> the files that its partitions are read from.
    """

    recipe: Recipe
    folder: Folder
    shards: tuple[Shard, ...]
    shuffle_phases: tuple[tuple[ShuffleTask, ...], ...]
    partitions: Mapping[str, int]
    buckets: int
    readers: Mapping[str, CustomReader] = field(default_factory=dict)
    merged: frozenset[str] = frozenset()
    pieces: Mapping[int, Sequence[Piece]] = field(default_factory=dict)
    partitioned: Mapping[str, Sequence[PartitionRange]] = field(default_factory=dict)

    def dataset(self, name: str) -> Dataset:
        """The dataset of the recipe with this name."""
        return self.recipe.dataset(name)

    def shards_of(self, dataset: str) -> list[Shard]:
        """The shards of one dataset."""
        return [shard for shard in self.shards if shard.dataset == dataset]

    def without_files(self) -> Layout:
        """The same without the files of shards and shuffles: a task gets its own, and there may be many."""
        shards = tuple(replace(shard, files=None) for shard in self.shards)
        return replace(self, shards=shards, shuffle_phases=())

    @property
    def work(self) -> Folder:
        """The folder of intermediate files; it is deleted when the stage is done."""
        return self.folder / "work"

    def partition(self, place: str, partition: int) -> Iterator[pa.RecordBatch]:
        """One partition of the files in a folder of ``work``."""
        return read_partition(self.work / place, self.partitioned.get(place, ()), partition)

    def piece_files(self, shards: Iterable[Shard], suffix: str) -> list[str]:
        """The names of the files that the last step has written for some shards, in order."""
        return [f"{piece.file}{suffix}" for shard in shards for piece in self.pieces.get(shard.number, ())]

    def finished(self, step: str) -> set[str]:
        """Names of the shards, shuffle tasks, buckets or partitions that a step is done with."""
        return {name.removesuffix(".json") for name in self.marks(step).files(".json")}

    def marks(self, step: str) -> Folder:
        """Where a step marks what is done, so that a killed run does not do it again."""
        return self.work / "done" / step

    @property
    def has_held_out(self) -> bool:
        """Whether any dataset keeps rows for evaluation."""
        return any(dataset.eval_fraction for dataset in self.recipe.datasets)

    @property
    def compares_with_evaluation(self) -> bool:
        """Whether training texts are compared with those of evaluation tasks."""
        settings = self.recipe.transform.contamination
        return settings.action != "off" and (self.has_held_out or bool(settings.tasks))

    @property
    def has_contamination_pass(self) -> bool:
        """Whether candidates are read once more before they are written: to drop overlaps, or to draw a sample."""
        drops = self.recipe.transform.contamination.action == "drop"
        samples = any(
            one.max_rows is not None or one.max_rows_per_label is not None for one in self.recipe.datasets
        )
        return (self.compares_with_evaluation and drops) or samples

    @property
    def finds_duplicates(self) -> bool:
        """Whether examples are compared with each other at all."""
        drops_repeats = any(map(self.drops_repeats_of, self.recipe.datasets))
        return drops_repeats or self.recipe.transform.near_duplicates is not None or self.has_held_out

    def drops_repeats_of(self, dataset: Dataset) -> bool:
        """Whether exact repeats of a dataset's rows are dropped."""
        return self.recipe.transform.deduplicate if dataset.deduplicate is None else dataset.deduplicate


def make_layout(
    recipe: Recipe,
    folder: Folder,
    inputs: Inputs,
    readers: Mapping[str, CustomReader] = MappingProxyType({}),
    merged: Collection[str] = (),
) -> Layout:
    """The layout of a recipe's inputs: shards, and what is shuffled before conversion."""
    shards: list[Shard] = []
    phases: tuple[list[ShuffleTask], list[ShuffleTask]] = ([], [])
    partitions: dict[str, int] = {}
    total = 0
    for dataset in recipe.datasets:
        found = inputs[dataset.name]
        size = sum(unpacked_bytes(file) for files in found.values() for file in files)
        total += size
        count = min(MAX_PARTITIONS, max(1, -(-size // PARTITION_BYTES)))
        partitions[dataset.name] = count
        parts = {}
        for role, files in found.items():
            form = format_of(dataset, role)
            parts[role] = file_parts(form, files, together=reads_together(readers.get(form.reader)))
        if dataset.rule == "qrels":
            for role in INPUTS:
                phases[0].extend(_shuffle_tasks(dataset, role, parts[role]))
            phases[1].extend(ShuffleTask(dataset.name, "join", part) for part in range(count))
            shards += _partition_shards(len(shards), dataset, "joined", count)
        elif dataset.rule in GROUPED_BY or dataset.name in merged:
            phases[0].extend(_shuffle_tasks(dataset, "rows", parts["rows"]))
            shards += _partition_shards(len(shards), dataset, "grouped", count)
        else:
            large = [part for part in parts["rows"] if _is_large(part)]
            whole = [part for part in parts["rows"] if not _is_large(part)]
            for number, part in enumerate(whole):
                shards.append(Shard(len(shards), dataset.name, "file", number, part))
            if large:
                phases[0].extend(_shuffle_tasks(dataset, "rows", large))
                shards += _partition_shards(len(shards), dataset, "spread", count)
    buckets = min(MAX_PARTITIONS, max(1, -(-total // BUCKET_BYTES)))
    shuffle_phases = tuple(tuple(tasks) for tasks in phases if tasks)
    return Layout(recipe, folder, tuple(shards), shuffle_phases, partitions, buckets, readers, frozenset(merged))


def _shuffle_tasks(dataset: Dataset, role: str, parts: Sequence[FilePart]) -> list[ShuffleTask]:
    return [ShuffleTask(dataset.name, role, part, files) for part, files in enumerate(parts)]


def _partition_shards(start: int, dataset: Dataset, kind: Kind, count: int) -> list[Shard]:
    return [Shard(start + part, dataset.name, kind, part) for part in range(count)]


def _is_large(part: FilePart) -> bool:
    """Whether files that cannot be cut are too large for one task."""
    return part.end is None and sum(map(unpacked_bytes, part.files)) > LARGE_BYTES
