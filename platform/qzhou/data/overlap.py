"""Overlap of training with evaluation texts: shared n-grams, exact matches of short texts.

The n-grams of all evaluation texts make one sorted array of 64-bit hashes with the task each came from.

One n-gram in common is often a common phrase. So the copies are counted too: examples that
repeat most of a text.

Source: the 13-gram test of GPT-3 (arXiv:2005.14165, appendix C); a share of n-grams as in
PaLM (arXiv:2204.02311, section 8); sampling by hash as in FracMinHash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from qzhou.data.ngrams import NgramSizes, Tokens, windows
from qzhou.data.records import Task
from qzhou.data.storage import Folder

TEXTS_PER_BATCH = 5_000
EXAMPLES = 5  # of each dataset and task
SHOWN_CHARS = 200
INDEX = "index.json"
COPIED_SHARE = 0.7  # of a text's n-grams, as in PaLM

TEXT_COLUMNS: dict[Task, tuple[str, ...]] = {
    "retrieval": ("query", "positives"),
    "pair": ("text_a", "text_b"),
    "classification": ("text",),
}


def grams_of(texts: Sequence[str], sizes: NgramSizes) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of each text, by words or by characters as its script asks; a short text is one by itself.

    Returns: Hashes (uint64), and for each the position of its text (int64).
    """
    tokens = Tokens.of(texts)
    found, owners = [], []
    for is_cjk, size in ((False, sizes.words), (True, sizes.chars)):
        grams, ends = windows(tokens, size, whole_if_shorter=True)
        owner = np.repeat(np.arange(len(texts)), np.diff(ends))
        chosen = tokens.is_cjk[owner] == is_cjk
        found.append(grams[chosen])
        owners.append(owner[chosen])
    return np.concatenate(found), np.concatenate(owners)


@dataclass(frozen=True)
class Index:
    """The n-grams of the evaluation's texts.

    Attributes:
        tasks: Names of the evaluation tasks.
        hashes: uint64, sorted; one that two tasks share stands twice.
        owners: uint16, position of the task in ``tasks`` for each hash.
        kept_of: One in how many hashes is kept.
    """

    tasks: tuple[str, ...]
    hashes: np.ndarray
    owners: np.ndarray
    kept_of: int
    sizes: NgramSizes

    @classmethod
    def read(cls, folder: Folder) -> Index | None:
        """What :meth:`write` wrote; None where there is none."""
        if not folder.exists(INDEX):
            return None
        content = folder.read_json(INDEX)
        arrays = folder.read_array("hashes.npy"), folder.read_array("owners.npy")
        return cls(tuple(content["tasks"]), *arrays, content["kept_of"], NgramSizes(*content["sizes"]))

    def write(self, folder: Folder) -> None:
        """Write the index; 10 bytes an n-gram."""
        folder.write_array("hashes.npy", self.hashes)
        folder.write_array("owners.npy", self.owners)
        content = {"tasks": self.tasks, "kept_of": self.kept_of, "sizes": [self.sizes.words, self.sizes.chars]}
        folder.write_json(INDEX, content)

    def lookup(self, grams: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions in ``grams``, positions of tasks) of what is known; several times where tasks share n-grams."""
        places = np.searchsorted(self.hashes, grams)
        waiting = np.flatnonzero(places < len(self.hashes))
        while waiting.size:
            waiting = waiting[self.hashes[places[waiting]] == grams[waiting]]
            yield waiting, self.owners[places[waiting]].astype(np.int64)
            places[waiting] += 1
            waiting = waiting[places[waiting] < len(self.hashes)]


@dataclass(slots=True)
class Overlap:
    """How many of a dataset's examples overlap with each evaluation task, and some of them.

    ``copied`` counts examples with a text most of whose n-grams the task has; of a pair,
    both texts. ``asked`` counts those whose query is such a text: a document alone
    (Wikipedia's, say) is in many corpora and gives no answer away.
    """

    dataset: str
    compared: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    copied: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def compare(self, table: pa.Table, task: Task, index: Index) -> np.ndarray:
        """Count the examples of a table that overlap with evaluation texts; whether each does with any task (bool)."""
        texts, owners = texts_in(table, task)
        hit = np.zeros((table.num_rows, len(index.tasks)), dtype=bool)
        copies = np.zeros((len(texts), len(index.tasks)), dtype=bool)
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            grams, gram_owners = grams_of(texts[start : start + TEXTS_PER_BATCH], index.sizes)
            some = owners[start : start + TEXTS_PER_BATCH]
            known = np.zeros((len(some), len(index.tasks)), dtype=np.int32)
            for positions, tasks in index.lookup(grams):
                text_places = gram_owners[positions]
                np.add.at(known, (text_places, tasks), 1)
                hit[some[text_places], tasks] = True
                self._remember(texts, text_places + start, tasks, index)
            indexable = grams % np.uint64(index.kept_of) == 0
            least_shared = COPIED_SHARE * np.bincount(gram_owners[indexable], minlength=len(some))
            copies[start : start + len(some)] = (known > 0) & (known >= least_shared[:, None])
        self.compared += table.num_rows
        least = 2 if task == "pair" else 1  # official splits of pairs share single sentences
        queries = table.num_rows if task == "retrieval" else len(texts)  # they come first
        for number, name in enumerate(index.tasks):
            self.tasks[name] = self.tasks.get(name, 0) + int(hit[:, number].sum())
            for counts, until in ((self.copied, len(texts)), (self.asked, queries)):
                copied = copies[:until, number]
                by_row = np.bincount(owners[:until], copied, minlength=table.num_rows)
                counts[name] = counts.get(name, 0) + int((by_row >= least).sum())
        return np.asarray(hit.any(axis=1))

    def add(self, other: Overlap) -> None:
        """Add the counts of another part of the dataset."""
        self.compared += other.compared
        for name in ("tasks", "copied", "asked"):
            own = getattr(self, name)
            for task, count in getattr(other, name).items():
                own[task] = own.get(task, 0) + count
        for name, texts in other.examples.items():
            shown = self.examples.setdefault(name, [])
            shown += texts[: EXAMPLES - len(shown)]

    def _remember(self, texts: Sequence[str], places: np.ndarray, tasks: np.ndarray, index: Index) -> None:
        for number, name in enumerate(index.tasks):
            shown = self.examples.setdefault(name, [])
            for place in places[tasks == number][: 20 * EXAMPLES]:
                text = texts[place][:SHOWN_CHARS]
                if len(shown) < EXAMPLES and text not in shown:
                    shown.append(text)


def overlap_rows(overlaps: Mapping[str, Overlap]) -> list[dict[str, Any]]:
    """A row per training set and evaluation task that overlap, the largest share first."""
    rows = [
        {
            "dataset": name,
            "task": task,
            "examples": count,
            "copied": overlap.copied.get(task, 0),
            "asked": overlap.asked.get(task, 0),
            "compared": overlap.compared,
            "percent": round(100 * count / overlap.compared, 3),
            "shown": overlap.examples.get(task, []),
        }
        for name, overlap in overlaps.items()
        for task, count in overlap.tasks.items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row["percent"], row["dataset"], row["task"]))


def texts_in(table: pa.Table, task: Task) -> tuple[list[str], np.ndarray]:
    """The texts of a table, and for each the row it belongs to."""
    texts: list[str] = []
    owners = []
    for name in TEXT_COLUMNS[task]:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            owners.append(np.repeat(np.arange(table.num_rows), column.value_lengths().to_numpy()))
            texts += column.flatten().to_pylist()
        else:
            owners.append(np.arange(table.num_rows))
            texts += column.to_pylist()
    return texts, np.concatenate(owners)
