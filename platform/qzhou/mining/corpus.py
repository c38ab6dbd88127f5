"""The texts of one retrieval dataset, where they lie: queries, and the documents among which negatives are mined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.prompts import DeclaredPrompts, Prompt
from qzhou.data.records import Document, Negative, RetrievalExample
from qzhou.data.storage import (
    Folder,
    count_rows,
    read_records,
    read_table,
    row_count,
    write_records,
)
from qzhou.mining.identity import Answers, Digests, Groups, Ints, RowOf, digests, key_digests

SHOWN_EXAMPLES = 500  # whose given and written negatives are scored for the report
CHUNK_ROWS = 1024  # texts of one vector file: what is encoded again when an encoder dies
EXAMPLES_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive texts of one Parquet file that are encoded together.

    Attributes:
        prompt: Of the dataset.
        asks: Whether they are queries.
    """

    folder: Folder
    file: str
    column: str
    start: int
    stop: int
    prompt: Prompt
    asks: bool

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def prompted(self, column: Sequence[str], own: DeclaredPrompts | None = None) -> list[str]:
        """What the encoder reads, from the whole column of the file.

        Args:
            column: Of the file.
            own: What the encoder reads before its texts in place of the dataset's instruction.
        """
        prompt = own or self.prompt
        present = prompt.query if self.asks or self.prompt.symmetric else prompt.document
        return [present(text) for text in column[self.start : self.stop]]


def chunks_of(folder: Folder, column: str, prompt: Prompt, *, asks: bool) -> list[Chunk]:
    """All texts of a column of a folder's Parquet files, cut into chunks."""
    found = []
    for file in folder.files(".parquet"):
        rows = row_count(folder, file)
        starts = range(0, rows, CHUNK_ROWS)
        found += [
            Chunk(folder, file, column, one, min(one + CHUNK_ROWS, rows), prompt, asks)
            for one in starts
        ]
    return found


def read_column(folder: Folder, file: str, column: str) -> list[str]:
    texts: list[str] = read_table(folder, file, [column]).column(column).to_pylist()
    return texts


def read_texts(folder: Folder, file: str, rows: Ints) -> list[str]:
    """Some documents of a file, by their rows in it."""
    texts: list[str] = pc.take(read_table(folder, file, ["text"]).column("text"), rows).to_pylist()
    return texts


def document_digests(folder: Folder, file: str) -> tuple[Digests, Digests]:
    """Digests of the documents of a file: of the texts, and of their keys."""
    texts = read_column(folder, file, "text")
    return digests(texts), key_digests(texts)


@dataclass(frozen=True, slots=True)
class Shown:
    """Negatives that some examples came with, to be scored for the report: which example's each is, and its origin."""

    chunks: list[Chunk]
    owner: Ints
    origins: list[str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One retrieval dataset on its way through the stage. 24 bytes a document and 32 a positive are in memory.

    Attributes:
        queries: In the order of the examples.
        documents: The dataset's own corpus, then the positives that are not in it; rows count through all of them.
        shown: Negatives of some of the examples.
        key_M: Of each document; equal where two texts count as the same.
        copies: Rows for which another document stands that counts as the same; they are not searched.
        most_answers: That one query has, at the most.
        row_of: Digest of a text -> its row.
        answers: What answers which query.
    """

    dataset: Dataset
    examples: Folder
    queries: list[Chunk]
    documents: list[Chunk]
    shown: Shown
    key_M: Digests
    copies: Ints
    most_answers: int
    row_of: RowOf
    answers: Answers

    def blocks(self, chunks: int) -> Iterator[list[RetrievalExample]]:
        """The examples, as many chunks of queries at a time as asked for."""
        examples = read_records(self.examples, RetrievalExample)
        for start in range(0, len(self.queries), chunks):
            yield list(
                islice(examples, sum(one.rows for one in self.queries[start : start + chunks]))
            )

    def places(self, rows: Ints) -> list[tuple[Folder, str, Ints, Ints]]:
        """Where some documents stand: for each file, places in ``rows`` and rows of the file."""
        ends = np.cumsum([chunk.rows for chunk in self.documents])
        chunk = np.searchsorted(ends, rows, side="right")
        begins = np.array([one.start for one in self.documents]) - (
            ends - [one.rows for one in self.documents]
        )
        files = {(one.folder.path, one.file): one for one in self.documents}
        number_of = {name: number for number, name in enumerate(files)}
        file_of_chunk = np.array([number_of[one.folder.path, one.file] for one in self.documents])
        found = []
        for number, one in enumerate(files.values()):
            place = np.flatnonzero(file_of_chunk[chunk] == number)
            if len(place):
                found.append((one.folder, one.file, place, rows[place] + begins[chunk[place]]))
        return found

    def positive_rows(self, examples: Sequence[RetrievalExample]) -> tuple[Ints, Ints]:
        """The documents that are some examples' positives: rows, and which example each belongs to."""
        owner = np.repeat(np.arange(len(examples)), [len(one.positives) for one in examples])
        return self.row_of(digests(text for one in examples for text in one.positives)), owner


def prepared(
    dataset: Dataset,
    examples: Folder,
    corpus: Folder,
    extra: Folder,
    known: Sequence[tuple[Digests, Digests]],
) -> Corpus:
    """Find out which documents a dataset has.

    Args:
        dataset: Of the recipe.
        examples: Of the dataset, as Parquet.
        corpus: Of the dataset; may be empty.
        extra: Where the positives are written that are not in the corpus, and the negatives that are shown.
        known: :func:`document_digests` of each file of the corpus.
    """
    gathered = _gathered(examples)
    corpus_text, corpus_key = (
        _joined([text for text, _ in known]),
        _joined([key for _, key in known]),
    )
    _, first_P = np.unique(gathered.text_P, return_index=True)
    new_P = np.sort(first_P[~np.isin(gathered.text_P[first_P], corpus_text)])
    write_records(extra / "positives", _documents(examples, new_P), Document)
    negatives = (
        Document(id=f"negative-{n}", text=one.text) for n, (_, one) in enumerate(gathered.shown)
    )
    write_records(extra / "negatives", negatives, Document)
    text_M = np.concatenate([corpus_text, gathered.text_P[new_P]])
    key_M = np.concatenate([corpus_key, gathered.key_P[new_P]])
    answers = Answers(gathered.groups, gathered.key_P, gathered.owner_P)
    return Corpus(
        dataset=dataset,
        examples=examples,
        queries=chunks_of(examples, "query", dataset.prompt, asks=True),
        documents=[
            chunk
            for folder in (corpus, extra / "positives")
            for chunk in chunks_of(folder, "text", dataset.prompt, asks=False)
        ],
        shown=Shown(
            chunks=chunks_of(extra / "negatives", "text", dataset.prompt, asks=False),
            owner=np.array([owner for owner, _ in gathered.shown], dtype=np.int64),
            origins=[negative.origin for _, negative in gathered.shown],
        ),
        key_M=key_M,
        copies=_copies(key_M, text_M),
        most_answers=int(np.bincount(answers.of(gathered.groups)[0]).max(initial=0)),
        row_of=RowOf(text_M),
        answers=answers,
    )


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What one pass over a dataset's examples tells.

    Attributes:
        text_P: Digest of each positive.
        key_P: Digest of its key.
        owner_P: Which example it belongs to.
        groups: Of all examples.
        shown: Negatives of some examples, and which example each belongs to.
    """

    text_P: Digests
    key_P: Digests
    owner_P: Ints
    groups: Groups
    shown: list[tuple[int, Negative]]


def _gathered(examples: Folder) -> _Gathered:
    stride = max(1, count_rows(examples) // SHOWN_EXAMPLES)
    texts, keys, owners, groups = [], [], [], []
    shown: list[tuple[int, Negative]] = []
    first = 0
    for some in _batches(examples):
        positives = [text for one in some for text in one.positives]
        texts.append(digests(positives))
        keys.append(key_digests(positives))
        owners.append(first + np.repeat(np.arange(len(some)), [len(one.positives) for one in some]))
        groups.append(Groups.of(some))
        shown += [
            (first + n, negative)
            for n in range(-first % stride, len(some), stride)
            for negative in some[n].negatives
        ]
        first += len(some)
    return _Gathered(
        text_P=_joined(texts),
        key_P=_joined(keys),
        owner_P=np.concatenate([np.empty(0, np.int64), *owners]),
        groups=Groups(
            _joined([one.query_N for one in groups]), _joined([one.family_N for one in groups])
        ),
        shown=shown,
    )


def _copies(key_M: Digests, text_M: Digests) -> Ints:
    """Rows of documents that count as the same as another; the one with the lowest digest stands for them all."""
    order = np.lexsort((text_M, key_M))
    is_copy = np.concatenate([[False], np.diff(key_M[order]) == 0])[: len(key_M)]
    return np.sort(order[is_copy])


def _documents(examples: Folder, wanted_P: Ints) -> Iterator[Document]:
    """The positives with these numbers, counted through all examples."""
    wanted, first = wanted_P, 0
    for some in _batches(examples):
        positives = [text for one in some for text in one.positives]
        here = int(np.searchsorted(wanted, first + len(positives)))
        for number in wanted[:here]:
            yield Document(id=f"positive-{number}", text=positives[number - first])
        wanted, first = wanted[here:], first + len(positives)


def _batches(examples: Folder) -> Iterator[list[RetrievalExample]]:
    records = read_records(examples, RetrievalExample)
    while some := list(islice(records, EXAMPLES_AT_ONCE)):
        yield some


def _joined(parts: Sequence[Digests]) -> Digests:
    return np.concatenate([np.empty(0, np.uint64), *parts])
