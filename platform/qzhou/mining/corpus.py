"""The texts of one retrieval dataset, where they lie: queries, and the documents among which negatives are mined."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qzhou.config.dataset import Dataset
from qzhou.data.prompts import Prompt
from qzhou.data.records import Document, Origin, RetrievalExample
from qzhou.data.storage import Folder, batched, count_rows, read_records, read_table, row_count, write_records
from qzhou.data.text_digests import Digests, Groups, Ints, RelevantTexts, RowLookup, digests, key_digests
from qzhou.encoder.vectors import CHUNK_ROWS

# a chunk of texts on its way to an encoder, and the instruction of each text if it has one of its own
CHUNKS = pa.schema({"id": pa.int64(), "texts": pa.list_(pa.string()), "instructions": pa.list_(pa.string())})
SHOWN_EXAMPLES = 500  # whose given and written negatives are scored for the report, where not all are
EXAMPLES_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of texts of a Parquet file, and the instruction of each, if it is a column of queries."""

    texts: list[str]
    instructions: list[str]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Texts of a Parquet file that are encoded together, rows ``start`` to ``stop`` - 1."""

    folder: Folder
    file: str
    column: str
    start: int
    stop: int
    prompt: Prompt
    are_queries: bool

    @property
    def rows(self) -> int:
        """How many texts."""
        return self.stop - self.start

    def prompted(self, texts: Texts, own: Prompt | None = None) -> list[str]:
        """The texts with their prompt, as the encoder reads them.

        Args:
            texts: Those of the chunk.
            own: Prompts of the encoder, in place of all instructions.
        """
        prompt = own or self.prompt
        if self.are_queries and texts.instructions and own is None:
            asked = zip(texts.texts, texts.instructions, strict=True)
            return [prompt.with_instruction(instruction).query(text) for text, instruction in asked]
        as_queries = self.are_queries or self.prompt.symmetric
        present = prompt.query if as_queries else prompt.document
        return [present(text) for text in texts.texts]


def chunks_of(
    folder: Folder, column: str, prompt: Prompt, *, are_queries: bool, chunk_rows: int = CHUNK_ROWS
) -> list[Chunk]:
    """All texts of a column of a folder's Parquet files, cut into chunks."""
    found = []
    for file in folder.files(".parquet"):
        rows = row_count(folder, file)
        for start in range(0, rows, chunk_rows):
            stop = min(start + chunk_rows, rows)
            found.append(Chunk(folder, file, column, start, stop, prompt, are_queries))
    return found


def read_chunks(_: object, part: Sequence[tuple[int, Chunk]]) -> Iterator[pa.Table]:
    """The texts of numbered chunks of one column of a file, a chunk a row: ``id``, ``texts`` and ``instructions``."""
    chunk = part[0][1]
    column = read_column(chunk.folder, chunk.file, chunk.column)
    for number, chunk in part:
        rows = slice(chunk.start, chunk.stop)
        texts, instructions = column.texts[rows], column.instructions[rows]
        yield pa.table({"id": [number], "texts": [texts], "instructions": [instructions]}, schema=CHUNKS)


def read_column(folder: Folder, file: str, column: str) -> Texts:
    """All texts of a column of a Parquet file."""
    names = [column, "instruction"] if column == "query" else [column]
    texts, *instructions = (one.to_pylist() for one in read_table(folder, file, names).select(names).columns)
    return Texts(texts, instructions[0] if instructions else [])


def read_texts(folder: Folder, file: str, rows: Ints) -> list[str]:
    """Some documents of a file, by their rows in it."""
    texts: list[str] = pc.take(read_table(folder, file, ["text"]).column("text"), rows).to_pylist()
    return texts


def document_digests(folder: Folder, file: str) -> tuple[Digests, Digests]:
    """Digests of the documents of a file: of the texts, and of their keys."""
    texts = read_column(folder, file, "text").texts
    return digests(texts), key_digests(texts)


@dataclass(frozen=True, slots=True)
class OwnNegatives:
    """Negatives that some or all examples came with, to be scored; ``owner`` is the example of each, ascending."""

    chunks: list[Chunk]
    owner: Ints
    origins: list[Origin]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One retrieval dataset on its way through the stage. 24 bytes a document and 32 a positive are in memory.

    Attributes:
        queries: In the order of the examples.
        documents: The dataset's own corpus, then the positives that are not in it; rows count through all of them.
        shown: Negatives that some of the examples came with, or all of them.
        key_M: Of each document; equal where two texts count as the same.
        copies: Rows for which another document stands that counts as the same; they are not searched.
        most_relevant: Texts that are relevant to one query, at the most.
        row_lookup: Digest of a text -> its row.
        relevant: The texts that are relevant to each query.
    """

    dataset: Dataset
    examples: Folder
    queries: list[Chunk]
    documents: list[Chunk]
    shown: OwnNegatives
    key_M: Digests
    copies: Ints
    most_relevant: int
    row_lookup: RowLookup
    relevant: RelevantTexts

    def blocks(self, chunks: int) -> Iterator[list[RetrievalExample]]:
        """The examples, as many chunks of queries at a time as asked for."""
        examples = read_records(self.examples, RetrievalExample)
        for start in range(0, len(self.queries), chunks):
            count = sum(one.rows for one in self.queries[start : start + chunks])
            yield list(islice(examples, count))

    def places(self, rows: Ints) -> list[tuple[Folder, str, Ints, Ints]]:
        """Where documents stand: for each file, places in ``rows`` and rows of the file."""
        sizes = np.array([chunk.rows for chunk in self.documents])
        ends = np.cumsum(sizes)
        chunk = np.searchsorted(ends, rows, side="right")
        # what to add to a row of the corpus for the row of the file
        shift = np.array([one.start for one in self.documents]) - (ends - sizes)
        files = {(one.folder.path, one.file): one for one in self.documents}
        number_of = {name: number for number, name in enumerate(files)}
        file_of_chunk = np.array([number_of[one.folder.path, one.file] for one in self.documents])
        found = []
        for number, one in enumerate(files.values()):
            place = np.flatnonzero(file_of_chunk[chunk] == number)
            if len(place):
                found.append((one.folder, one.file, place, rows[place] + shift[chunk[place]]))
        return found

    def positive_rows(self, examples: Sequence[RetrievalExample]) -> tuple[Ints, Ints]:
        """The documents that are examples' positives: rows, and the example of each."""
        owner = np.repeat(np.arange(len(examples)), [len(one.positives) for one in examples])
        return self.row_lookup(digests(text for one in examples for text in one.positives)), owner


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the texts of a dataset lie: its examples, its corpus, and what is written ``beside`` it."""

    examples: Folder
    corpus: Folder
    beside: Folder


def prepared(
    dataset: Dataset,
    sources: Sources,
    known: Sequence[tuple[Digests, Digests]],
    *,
    chunk_rows: int = CHUNK_ROWS,
    all_negatives: bool = False,
) -> Corpus:
    """The queries and documents of a dataset; positives in no corpus are written beside it.

    So are negatives that examples came with: those of a sample, for the report, or
    ``all_negatives``. ``known`` are the :func:`document_digests` of each file of the
    corpus, which may be empty.
    """
    examples, beside = sources.examples, sources.beside
    stride = 1 if all_negatives else max(1, count_rows(examples) // SHOWN_EXAMPLES)
    gathered = _gathered(examples, stride)
    corpus_text = _joined([text for text, _ in known])
    corpus_key = _joined([key for _, key in known])
    _, first_P = np.unique(gathered.text_P, return_index=True)
    new_P = np.sort(first_P[~np.isin(gathered.text_P[first_P], corpus_text)])
    write_records(beside / "positives", _documents(examples, new_P), Document)
    write_records(beside / "negatives", _negatives(examples, stride), Document)

    def chunks(folder: Folder, column: str = "text") -> list[Chunk]:
        return chunks_of(folder, column, dataset.prompt, are_queries=column == "query", chunk_rows=chunk_rows)

    text_M = np.concatenate([corpus_text, gathered.text_P[new_P]])
    key_M = np.concatenate([corpus_key, gathered.key_P[new_P]])
    relevant = RelevantTexts(gathered.groups, gathered.key_P, gathered.owner_P)
    return Corpus(
        dataset=dataset,
        examples=examples,
        queries=chunks(examples, "query"),
        documents=chunks(sources.corpus) + chunks(beside / "positives"),
        shown=OwnNegatives(chunks(beside / "negatives"), gathered.shown_owner, gathered.shown_origins),
        key_M=key_M,
        copies=_copies(key_M, text_M),
        most_relevant=int(np.bincount(relevant.of(gathered.groups)[0]).max(initial=0)),
        row_lookup=RowLookup(text_M),
        relevant=relevant,
    )


@dataclass(frozen=True, slots=True)
class _Gathered:
    """The outcome of one pass over a dataset's examples: digests of its positives and of their keys, and the rest.

    ``owner_P`` says which example a positive belongs to, and ``shown_owner`` the same of a
    negative.
    """

    text_P: Digests
    key_P: Digests
    owner_P: Ints
    groups: Groups
    shown_owner: Ints
    shown_origins: list[Origin]


def _gathered(examples: Folder, stride: int) -> _Gathered:
    texts, keys, owners, groups = [], [], [], []
    shown_owner: list[int] = []
    shown_origins: list[Origin] = []
    first = 0
    for some in _batches(examples):
        positives = [text for one in some for text in one.positives]
        texts.append(digests(positives))
        keys.append(key_digests(positives))
        owners.append(first + np.repeat(np.arange(len(some)), [len(one.positives) for one in some]))
        groups.append(Groups.of(some))
        for n in range(-first % stride, len(some), stride):
            shown_owner += [first + n] * len(some[n].negatives)
            shown_origins += [negative.origin for negative in some[n].negatives]
        first += len(some)
    return _Gathered(
        text_P=_joined(texts),
        key_P=_joined(keys),
        owner_P=np.concatenate([np.empty(0, np.int64), *owners]),
        groups=Groups(_joined([one.query_N for one in groups]), _joined([one.origin_N for one in groups])),
        shown_owner=np.array(shown_owner, dtype=np.int64),
        shown_origins=shown_origins,
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


def _negatives(examples: Folder, stride: int) -> Iterator[Document]:
    """The negatives that every ``stride``-th example came with."""
    first = number = 0
    for some in _batches(examples):
        for one in some[-first % stride :: stride]:
            for negative in one.negatives:
                yield Document(id=f"negative-{number}", text=negative.text)
                number += 1
        first += len(some)


def _batches(examples: Folder) -> Iterator[list[RetrievalExample]]:
    return batched(read_records(examples, RetrievalExample), EXAMPLES_AT_ONCE)


def _joined(parts: Sequence[Digests]) -> Digests:
    return np.concatenate([np.empty(0, np.uint64), *parts])
