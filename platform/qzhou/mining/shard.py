"""Nearest documents by cosine in part of a corpus, from its vector files. No ray in here.

Scores are always exact: what the index ranks first is scored again from the vectors
themselves, so that neither the number of shards nor half precision changes one.

Shape letters in this file: N queries, P positives of theirs, M documents, D embedding
width, K ranks.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from qzhou.data.storage import Folder
from qzhou.data.text_digests import Floats, Ints
from qzhou.encoder.arithmetic import this_processor
from qzhou.errors import RecipeError, first_line

EXACT = "Flat"
NO_ROWS: Ints = np.empty(0, dtype=np.int64)
# of an index that has to learn its cells, and for each cell (FAISS asks for 39 at least)
TRAINING_ROWS, TRAINING_ROWS_PER_CELL = 200_000, 64
MAPPED_FILES = 256  # at the same time: each is an open file
SPARE = 8  # ranks beyond those asked for: rounding may exchange neighbours at the last one


@dataclass(frozen=True, slots=True)
class VectorFile:
    """Vectors of consecutive documents, as one ``.npy`` file of a folder."""

    name: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries that are searched together, with the vectors of their positives.

    Attributes:
        query_ND: Unit rows.
        positive_PD: Unit rows.
        owner_P: Which query each positive belongs to, ascending.
    """

    query_ND: Floats
    positive_PD: Floats
    owner_P: Ints

    def only(self, queries: Ints) -> QueryBlock:
        """Some of the queries; ``queries`` is ascending."""
        mine = np.isin(self.owner_P, queries)
        owner_P = np.searchsorted(queries, self.owner_P[mine])
        return QueryBlock(self.query_ND[queries], self.positive_PD[mine], owner_P)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best documents for each query, the best first; ties in the order of the corpus.

    Attributes:
        score_NK: Cosine to the query; -inf where there is no document.
        row_NK: Row of the corpus.
        positive_cosine_NK: Highest cosine to one of the query's positives.
    """

    score_NK: Floats
    row_NK: Ints
    positive_cosine_NK: Floats

    @classmethod
    def merged(cls, parts: Sequence[SearchResult], count: int) -> SearchResult:
        """The best ``count`` of what several shards found."""
        score, row, cosine = (
            np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("score_NK", "row_NK", "positive_cosine_NK")
        )
        best = np.lexsort((row, -score), axis=1)[:, :count]
        return cls(*(np.take_along_axis(one, best, axis=1) for one in (score, row, cosine)))


@dataclass(frozen=True, slots=True)
class ExactSearch:
    """How an exact search works; results do not depend on it.

    Attributes:
        device: ``cuda`` where a GPU was given to the searcher: Ray hides none from those that asked for none.
        block_bytes: Document vectors that are searched at once.
        prefilters: Whether candidates come from products in 16 bits; a GPU, or a CPU with instructions for them, makes
            them twice as fast and more (LOG.md). None: on these.
        least_products: Of queries and documents; fewer are not worth the import of torch.
        spare: Candidates beyond the ranks asked for; more prove more and cost more.
        queries_at_once: Their products with a block of documents are in memory together.
    """

    device: str = "cpu"
    block_bytes: int = 64 << 20
    prefilters: bool | None = None
    least_products: int = 1_000_000_000
    spare: int = 40
    queries_at_once: int = 1024


class Shard:
    """Consecutive vector files of a corpus.

    An exact search streams them, whatever their size; an approximate index is built once
    and held in memory.

    Args:
        folder: Where the files are; remote ones are copied to this machine once.
        files: In the order of the corpus.
        index: FAISS factory string; ``Flat`` is exact.
        parameters: Of the search, as FAISS reads them: ``nprobe=32``.
        copies: Rows of the corpus for which another one stands; they are never found.
        exact: Settings of an exact search.

    Raises:
        RecipeError: FAISS knows no such index or parameter, or the shard is too small.
    """

    def __init__(
        self,
        folder: Folder,
        files: Sequence[VectorFile],
        index: str = EXACT,
        parameters: str = "",
        copies: Ints = NO_ROWS,
        exact: ExactSearch | None = None,
    ) -> None:
        self._exact_search = exact or ExactSearch()
        self._files = list(files)
        self._starts = np.array([one.first for one in files])
        self._end = files[0].first + sum(one.rows for one in files)
        self.first = files[0].first
        self.searched = np.setdiff1d(np.arange(self.first, self._end), copies)
        self.rows = len(self.searched)
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        if not folder.is_local:
            self._copies = tempfile.TemporaryDirectory(prefix="qzhou-vectors-")
        self._paths = [self._local(folder, one.name) for one in files]
        # what is read is in the system's cache
        self._map = functools.lru_cache(MAPPED_FILES)(self._mapped)
        self._width = int(self._map(0).shape[1])
        # FAISS has a GPU for an index that it builds; an exact search takes torch's products
        takes_gpu = index != EXACT and self._exact_search.device == "cuda"
        has_gpu = takes_gpu and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()
        self._gpu = faiss.StandardGpuResources() if has_gpu else None
        self._index = None if index == EXACT else self._built(index, parameters)

    def close(self) -> None:
        """Remove the copies of remote files."""
        if self._copies is not None:
            self._copies.cleanup()

    def vectors(self, rows: Ints) -> Floats:
        """Vectors of some documents [len(rows), D], by their rows in the corpus."""
        found = np.empty((len(rows), self._width), dtype=np.float32)
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], [*self._starts[1:], self._end])
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if start < end:
                wanted = order[start:end]
                found[wanted] = self._map(number)[rows[wanted] - self._files[number].first]
        return found

    def search(self, block: QueryBlock, count: int, *, exactly: bool = False) -> SearchResult:
        """The nearest ``count`` documents to each query, or all where the shard has fewer.

        Args:
            block: Of queries.
            count: Ranks wanted.
            exactly: Pass by the index, to measure it.
        """
        kept, wanted = min(count, self.rows), min(count + SPARE, self.rows)
        if self._index is not None and not exactly:
            return self._scored(block, self._approximate(block, wanted), kept)
        if len(block.query_ND) * self.rows >= self._exact_search.least_products:
            asked, on_gpu = self._exact_search.prefilters, self._exact_search.device == "cuda"
            if asked or (asked is None and (on_gpu or this_processor().bfloat16_unit)):
                return self._prefiltered(block, kept)
        return self._scored(block, self._exact(block.query_ND, wanted), kept)

    def _prefiltered(self, block: QueryBlock, count: int) -> SearchResult:
        """The exact search by way of 16 bits; queries for which it proves nothing are searched again in float32."""
        import torch

        from qzhou.mining.prefilter import prefilter

        settings, device = self._exact_search, self._exact_search.device
        candidates = prefilter(
            block.query_ND,
            self._blocks(),
            count + settings.spare,
            queries_at_once=settings.queries_at_once,
            device=device,
        )
        found = self._scored(block, candidates.row_NC, count)
        open_N = np.flatnonzero(found.score_NK[:, -1] <= candidates.outside_N)
        if len(open_N):
            again = block.only(open_N)
            wanted = min(count + SPARE, self.rows)
            if device == "cpu":
                rows = self._exact(again.query_ND, wanted)
            else:
                rows = prefilter(again.query_ND, self._blocks(), wanted, device=device, dtype=torch.float32).row_NC
            exact = self._scored(again, rows, count)
            for name in ("score_NK", "row_NK", "positive_cosine_NK"):
                getattr(found, name)[open_N] = getattr(exact, name)
        return found

    def _exact(self, query_ND: Floats, count: int) -> Ints:
        """Rows [N, count] by brute force, one block of documents after the other."""
        best_score = np.full((len(query_ND), 0), -np.inf, dtype=np.float32)
        best_row = np.zeros((len(query_ND), 0), dtype=np.int64)
        for row_M, document_MD in self._blocks():
            score, place = faiss.knn(
                query_ND, document_MD, min(count, len(document_MD)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best_score = np.hstack([best_score, score])
            best_row = np.hstack([best_row, row_M[place]])
            if best_score.shape[1] > count:
                kept = np.argpartition(-best_score, count - 1, axis=1)[:, :count]
                best_score = np.take_along_axis(best_score, kept, axis=1)
                best_row = np.take_along_axis(best_row, kept, axis=1)
        return best_row

    def _approximate(self, block: QueryBlock, count: int) -> Ints:
        """Rows [N, count] that the index names; -1 where it finds fewer."""
        assert self._index is not None
        _, place = self._index.search(block.query_ND, count)
        return np.where(place < 0, -1, self.searched[place])

    def _scored(self, block: QueryBlock, row_NK: Ints, count: int) -> SearchResult:
        """Exact cosines of candidates, sorted, the best ``count``; a row of -1 is none."""
        queries, ranks = row_NK.shape
        query_J = np.repeat(np.arange(queries), ranks)
        score_NK = self._cosines(block.query_ND, query_J, row_NK.ravel()).reshape(queries, ranks)
        positive_J = np.repeat(np.arange(len(block.owner_P)), ranks)
        cosine_J = self._cosines(block.positive_PD, positive_J, row_NK[block.owner_P].ravel())
        cosine_PK = cosine_J.reshape(-1, ranks)
        cosine_NK = np.full(row_NK.shape, -np.inf, dtype=np.float32)
        owners, starts = np.unique(block.owner_P, return_index=True)
        if len(owners):
            cosine_NK[owners] = np.maximum.reduceat(cosine_PK, starts, axis=0)
        return SearchResult.merged([SearchResult(score_NK, np.maximum(row_NK, 0), cosine_NK)], count)

    def _cosines(self, vector_XD: Floats, which_J: Ints, row_J: Ints) -> Floats:
        """Cosines of pairs: row ``which_J[j]`` of some vectors and document ``row_J[j]``; -inf where that is -1.

        FAISS takes each product by itself, from where the vectors lie: none depends on what
        else is asked.
        """
        found = np.full(len(row_J), -np.inf, dtype=np.float32)
        vector_XD = np.ascontiguousarray(vector_XD, dtype=np.float32)
        order = np.argsort(row_J, kind="stable")
        ends = np.searchsorted(row_J[order], [*self._starts, self._end])
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            if start == end:
                continue
            pairs = order[start:end]
            product = np.empty(len(pairs), dtype=np.float32)
            which, row = which_J[pairs], row_J[pairs] - self._files[number].first
            # FAISS holds pointers to them, no references
            arrays = (vector_XD, which, self._map(number), row, product)
            pointers = [faiss.swig_ptr(one) for one in arrays]
            faiss.pairwise_indexed_inner_product(self._width, len(pairs), *pointers)  # type: ignore[attr-defined]
            found[pairs] = product
        return found

    def _built(self, factory: str, parameters: str) -> Any:
        try:
            index = faiss.index_factory(self._width, factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                spread = np.linspace(0, self.rows - 1, min(self.rows, training_rows(index)))
                rows = self.searched[np.unique(spread.astype(np.int64))]
                index.train(self.vectors(rows))
            for _, document_MD in self._blocks():
                index.add(document_MD)
            if self._gpu is not None:
                options = faiss.GpuClonerOptions()
                options.useFloat16 = True
                index = faiss.index_cpu_to_gpu(self._gpu, 0, index, options)
            if parameters:
                space = faiss.ParameterSpace() if self._gpu is None else faiss.GpuParameterSpace()
                space.set_index_parameters(index, parameters)  # type: ignore[arg-type]  # its stub is wrong
        except RuntimeError as error:
            raise RecipeError(
                f"mining.index '{factory}' with mining.index_parameters '{parameters}' does not work for {self.rows:,} "
                f"documents of {self._width} dimensions: {first_line(error)}. 'Flat' always does."
            ) from None
        return index

    def _blocks(self) -> Iterator[tuple[Ints, Floats]]:
        """Rows and vectors of the documents of some files, as many at a time as ``block_bytes`` hold."""
        together: list[int] = []
        size = 0
        for number, file in enumerate(self._files):
            together.append(number)
            size += file.rows * self._width * 4
            if size >= self._exact_search.block_bytes or number == len(self._files) - 1:
                first, end = self._files[together[0]].first, file.first + file.rows
                row_M = self.searched[slice(*np.searchsorted(self.searched, [first, end]))]
                vectors_MD = np.concatenate([np.load(self._paths[one]) for one in together])
                if len(row_M) < len(vectors_MD):
                    vectors_MD = vectors_MD[row_M - first]
                if len(row_M):
                    yield row_M, vectors_MD
                together, size = [], 0

    def _mapped(self, number: int) -> Floats:
        return np.load(self._paths[number], mmap_mode="r")  # type: ignore[no-any-return]

    def _local(self, folder: Folder, name: str) -> Path:
        if self._copies is None:
            return Path(folder.path) / name
        copy = Path(self._copies.name) / name.replace("/", "-")
        copy.write_bytes(folder.read_bytes(name))
        return copy


def training_rows(index: Any) -> int:
    """Vectors from which an index learns its cells."""
    cells = index.nlist if isinstance(index, faiss.IndexIVF) else 0
    return max(TRAINING_ROWS, TRAINING_ROWS_PER_CELL * cells)


def vectors_at(folder: Folder, files: Sequence[VectorFile], rows: Ints) -> Floats:
    """Vectors of some texts [len(rows), D]; only the files that hold them are read."""
    parts: list[tuple[Ints, Floats]] = []
    for file in files:
        wanted = np.flatnonzero((rows >= file.first) & (rows < file.first + file.rows))
        if len(wanted):
            parts.append((wanted, folder.read_array(file.name)[rows[wanted] - file.first]))
    order = np.argsort(np.concatenate([wanted for wanted, _ in parts]), kind="stable")
    found: Floats = np.concatenate([part for _, part in parts])[order]
    return found


def divided(files: Sequence[VectorFile], shards: int) -> list[list[VectorFile]]:
    """Files in ``shards`` runs of about equal rows, or fewer if there are fewer files."""
    total = sum(one.rows for one in files)
    runs: list[list[VectorFile]] = []
    done = 0
    for file in files:
        if not runs or (done >= total * len(runs) / shards and len(runs) < shards):
            runs.append([])
        runs[-1].append(file)
        done += file.rows
    return runs


def recall(found_NK: Ints, exact_NK: Ints) -> float:
    """The share of the exact nearest documents that a search found."""
    there = [len(set(found.tolist()) & set(best.tolist())) for found, best in zip(found_NK, exact_NK, strict=True)]
    return float(np.sum(there)) / max(1, exact_NK.size)
