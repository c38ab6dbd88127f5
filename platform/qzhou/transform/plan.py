"""What a transform is made of: shards, the partitions of its shuffles, and the folders they meet in.

The plan follows from the recipe and the sizes of the raw files alone, so that a run which was killed finds, with the
same inputs, the same shards again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from qzhou.config.dataset import Dataset, Format
from qzhou.config.recipe import Recipe
from qzhou.data.records import stable_id
from qzhou.data.storage import Folder
from qzhou.transform.fields import GROUPED_BY
from qzhou.transform.inputs import SPLIT_BYTES, InputFile, Split, splits_of, unpacked_bytes
from qzhou.transform.python_docs import SourceFile
from qzhou.transform.readers import OwnReader

PARTITION_BYTES = 64 * 2**20  # raw bytes whose rows meet in one task of a shuffle
# a file that cannot be cut (CSV, gzip) and is larger is dealt out to several tasks
LARGE_BYTES = 8 * SPLIT_BYTES
BUCKET_BYTES = 32 * 2**20  # raw bytes whose keys are judged together: some hundred thousand rows
MAX_PARTITIONS = 4096
PARSED_PARTS = 8  # tasks that parse Python packages: enough for all cores to finish together

Kind = Literal["split", "parsed", "grouped", "joined", "spread"]
INPUTS = ("rows", "corpus", "queries")


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a dataset that one task converts and one task writes; numbered in the order of the recipe.

    ``kind`` says where its rows are: in raw files, in rows that an earlier step parsed, or in the partition
    ``part`` of a shuffle (grouped by query, joined with documents, or only spread).
    """

    number: int
    dataset: str
    kind: Kind
    part: int = 0
    split: Split | None = None

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an input that has to be shuffled or parsed before it can be converted."""

    dataset: str
    role: str  # one of INPUTS, "packages", "pairs" or "join"
    part: int
    split: Split | None = None
    sources: tuple[SourceFile, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.part:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that tasks need to know."""

    recipe: Recipe
    folder: Folder
    shards: tuple[Shard, ...]
    rounds: tuple[tuple[Piece, ...], ...]  # pieces of a round need those of the rounds before
    partitions: Mapping[str, int]  # dataset -> partitions of its shuffles and of its corpus
    buckets: int
    own: Mapping[str, OwnReader] = field(default_factory=dict)

    def dataset(self, name: str) -> Dataset:
        return self.recipe.dataset(name)

    def shards_of(self, dataset: str) -> list[Shard]:
        return [shard for shard in self.shards if shard.dataset == dataset]

    @property
    def work(self) -> Folder:
        """What is taken away when the stage is done."""
        return self.folder / "work"

    @property
    def has_held_out(self) -> bool:
        return any(dataset.eval_fraction for dataset in self.recipe.datasets)

    @property
    def is_compared(self) -> bool:
        """Whether training texts are compared with those of evaluation tasks."""
        settings = self.recipe.transform.contamination
        return settings.action != "off" and (self.has_held_out or bool(settings.tasks))

    @property
    def is_surveyed(self) -> bool:
        """Whether candidates have to be looked at once more before they are written."""
        drops = self.is_compared and self.recipe.transform.contamination.action == "drop"
        return drops or any(dataset.max_rows is not None for dataset in self.recipe.datasets)

    @property
    def is_judged(self) -> bool:
        """Whether examples have to be compared with each other at all."""
        settings = self.recipe.transform
        return settings.deduplicate or settings.near_duplicates is not None or self.has_held_out


def format_of(dataset: Dataset, role: str) -> Format:
    """The format of one of INPUTS."""
    found = dataset if role == "rows" else getattr(dataset, role)
    assert isinstance(found, Format)
    return found


def packages_key(dataset: Dataset) -> str:
    """What datasets share that read the same packages."""
    return stable_id("packages", *dataset.packages)[:12]


Inputs = Mapping[str, Mapping[str, Sequence[InputFile]]]  # dataset -> input -> files
Sources = Mapping[tuple[str, ...], Sequence[SourceFile]]  # packages -> Python files


def make_plan(
    recipe: Recipe,
    folder: Folder,
    inputs: Inputs,
    sources: Sources,
    own: Mapping[str, OwnReader] | None = None,
) -> Plan:
    """Cut the inputs into shards and say what has to be shuffled first.

    Raises:
        DataError: An input cannot be opened.
    """
    shards: list[Shard] = []
    first: list[Piece] = []
    second: list[Piece] = []
    partitions: dict[str, int] = {}
    parsed: set[str] = set()
    for dataset in recipe.datasets:
        found = inputs[dataset.name]
        size = sum(map(unpacked_bytes, chain.from_iterable(found.values())))
        partitions[dataset.name] = min(MAX_PARTITIONS, max(1, -(-size // PARTITION_BYTES)))
        rows = [] if dataset.reader == "python_docs" else splits_of(dataset, found["rows"])
        if dataset.reader == "python_docs":
            if (key := packages_key(dataset)) not in parsed:
                parsed.add(key)
                first += _parse_pieces(key, sources[dataset.packages])
            if dataset.view == "pairs":
                second.append(Piece(dataset.name, "pairs", 0))
            shards += _numbered(shards, dataset, "parsed", PARSED_PARTS)
        elif dataset.rule == "qrels":
            for role in INPUTS:
                splits = (
                    rows if role == "rows" else splits_of(format_of(dataset, role), found[role])
                )
                first += [
                    Piece(dataset.name, role, part, split) for part, split in enumerate(splits)
                ]
            second += [
                Piece(dataset.name, "join", part) for part in range(partitions[dataset.name])
            ]
            shards += _numbered(shards, dataset, "joined", partitions[dataset.name])
        elif dataset.rule in GROUPED_BY:
            first += [Piece(dataset.name, "rows", part, split) for part, split in enumerate(rows)]
            shards += _numbered(shards, dataset, "grouped", partitions[dataset.name])
        else:
            whole, large = _by_size(rows)
            start = len(shards)
            shards += [
                Shard(start + part, dataset.name, "split", part, split)
                for part, split in enumerate(whole)
            ]
            first += [Piece(dataset.name, "rows", part, split) for part, split in enumerate(large)]
            shards += (
                _numbered(shards, dataset, "spread", partitions[dataset.name]) if large else []
            )
    total = sum(
        unpacked_bytes(file)
        for found in inputs.values()
        for files in found.values()
        for file in files
    )
    buckets = min(MAX_PARTITIONS, max(1, -(-total // BUCKET_BYTES)))
    rounds = tuple(tuple(pieces) for pieces in (first, second) if pieces)
    return Plan(recipe, folder, tuple(shards), rounds, partitions, buckets, own or {})


def _numbered(shards: Sequence[Shard], dataset: Dataset, kind: Kind, count: int) -> list[Shard]:
    return [Shard(len(shards) + part, dataset.name, kind, part) for part in range(count)]


def _by_size(splits: Sequence[Split]) -> tuple[list[Split], list[Split]]:
    """Splits that a task converts as they are, and files too large for one that cannot be cut: they are dealt out."""
    sizes = [
        0 if split.end is not None else sum(map(unpacked_bytes, split.files)) for split in splits
    ]
    both = list(zip(splits, sizes, strict=True))
    return [one for one, size in both if size <= LARGE_BYTES], [
        one for one, size in both if size > LARGE_BYTES
    ]


def _parse_pieces(key: str, files: Sequence[SourceFile]) -> list[Piece]:
    edges = [len(files) * part // PARSED_PARTS for part in range(PARSED_PARTS + 1)]
    return [
        Piece(key, "packages", part, sources=tuple(files[start:end]))
        for part, (start, end) in enumerate(itertools.pairwise(edges))
    ]
