"""The mining stage on Ray: encode every text once, search, select, write."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe
from qzhou.data.records import TASKS, Drop, Manifest, Negative, RetrievalExample
from qzhou.data.storage import Folder, count_rows, table_of, write_records, write_table
from qzhou.mining.blocks import Queries, depth_of, inconsistent, judged, ranking_of
from qzhou.mining.corpus import Chunk, Corpus, document_digests, prepared, read_texts
from qzhou.mining.encoding import encoded
from qzhou.mining.identity import Bools, Floats, Ints, is_among
from qzhou.mining.report import Report, picture, sentence
from qzhou.mining.searchers import Asked, Judges, Searchers, shards_of, share_of
from qzhou.mining.select import (
    Ranking,
    Selection,
    admitted_if_hidden,
    combine,
    is_consistent,
    select_negatives,
)
from qzhou.mining.shard import EXACT, Shard, VectorFile
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

BLOCK_CHUNKS = 16  # of queries that are searched and selected together
SEARCHED_AHEAD = 2  # blocks
RECALL_QUERIES = 1000


def mine(recipe: Recipe) -> Manifest:
    """Give every retrieval example its negatives; other tasks' examples pass through.

    Raises:
        DataError: Synthesis has not finished.
        ModelError: A teacher or the reranker cannot be loaded.
        RecipeError: FAISS cannot make the index that the recipe asks for.
    """
    run = Run.open(recipe)
    mining = recipe.mining
    models = {
        "teacher": weights_fingerprint(mining.teacher or recipe.model.backbone),
        **{f"teacher {name}": weights_fingerprint(name) for name in mining.extra_teachers},
        **({"reranker": weights_fingerprint(mining.reranker)} if mining.reranker else {}),
    }
    # how an approximate index is divided says which candidates it names; an exact search finds the same however it is
    divided = (
        {"shards": [recipe.cluster.encode_workers, mining.index_memory_gb]}
        if mining.index != EXACT
        else {}
    )
    return run.stage(
        Stage(
            name="mining",
            settings={
                "mining": recipe.mining.model_dump(
                    exclude={"teacher_api_key_env", "index_memory_gb"}
                ),
                "model": recipe.model.model_dump(),
                "prompts": {
                    dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets
                },
                "seed": recipe.training_seed,
                **divided,
            },
            inputs={
                **models,
                "transform": run.manifest("transform").fingerprint,
                "synthesis": run.manifest("synthesis").fingerprint,
            },
            code_of=("qzhou.mining.pipeline",),
            persistent=("embeddings",),
            shared=("embeddings",),
        ),
        lambda folder: _work(run, folder),
    )


def _work(run: Run, folder: Folder) -> dict[str, int]:
    recipe, source = run.recipe, run.folder / "synthesis" / "examples"
    for task in ("pair", "classification"):
        (source / task).copy_to(folder / "examples" / task)
    with session(resources_for(recipe, "mining")):
        corpora = [_prepared(run, folder, name) for name in (source / "retrieval").folders()]
        vectors = [
            _vectors(recipe, teacher, folder / "embeddings", corpora)
            for teacher in recipe.mining.teachers
        ]
        reports = {
            corpus.dataset.name: _Miner(recipe, folder, corpus, own).mined()
            for corpus, *own in zip(corpora, *vectors, strict=True)
        }
    folder.write_json("report.json", reports)
    if reports:
        folder.write_bytes("scores.svg", picture(reports).encode())
    return {f"{task} examples": count_rows(folder / "examples" / task) for task in TASKS}


def _prepared(run: Run, folder: Folder, name: str) -> Corpus:
    """The texts of a dataset, wherever they are."""
    corpus = run.folder / "transform" / "corpora" / name
    describe = ray.remote(num_cpus=1)(document_digests)
    known = ray.get([describe.remote(corpus, file) for file in corpus.files(".parquet")])
    examples = run.folder / "synthesis" / "examples" / "retrieval" / name
    return prepared(run.recipe.dataset(name), examples, corpus, folder / "documents" / name, known)


@dataclasses.dataclass(frozen=True, slots=True)
class _Vectors:
    """What one teacher made of a dataset."""

    folder: Folder
    queries: list[VectorFile]
    documents: list[VectorFile]
    shown: list[VectorFile]


def _vectors(
    recipe: Recipe, teacher: str, folder: Folder, corpora: Sequence[Corpus]
) -> list[_Vectors]:
    parts = [part for one in corpora for part in (one.queries, one.documents, one.shown.chunks)]
    names = iter(encoded(recipe, teacher, folder, [chunk for part in parts for chunk in part]))
    files = [_files(part, list(islice(names, len(part)))) for part in parts]
    return [_Vectors(folder, *files[start : start + 3]) for start in range(0, len(files), 3)]


def _files(chunks: Sequence[Chunk], names: Sequence[str]) -> list[VectorFile]:
    firsts = np.cumsum([0, *(chunk.rows for chunk in chunks)])[:-1].tolist()
    return [
        VectorFile(*one)
        for one in zip(names, firsts, (chunk.rows for chunk in chunks), strict=True)
    ]


class _Miner:
    """Mines one dataset, block by block."""

    def __init__(
        self, recipe: Recipe, folder: Folder, corpus: Corpus, vectors: Sequence[_Vectors]
    ) -> None:
        self._recipe, self._mining, self._folder, self._corpus = (
            recipe,
            recipe.mining,
            folder,
            corpus,
        )
        self._vectors = vectors
        self._searchers: list[Searchers] = []
        self._judges: Judges | None = None
        self._report, self._drops = Report(), list[Drop]()

    def mined(self) -> dict[str, Any]:
        """Write the examples with their negatives, unless an earlier attempt has; the dataset's part of the report."""
        name = self._corpus.dataset.name
        done = f"done/{name}.json"
        if self._folder.exists(done):
            return dict(self._folder.read_json(done))
        try:
            self._start_actors()
            write_records(
                self._folder / "examples" / "retrieval" / name, self._examples(), RetrievalExample
            )
            if not self._searchers[0].is_exact:
                self._report.measure(self._recall())
        finally:
            for searchers in self._searchers:
                searchers.close()
            if self._judges:
                self._judges.close()
        self._score_shown()
        if self._drops:
            write_table(self._folder / "dropped", f"{name}.parquet", table_of(self._drops, Drop))
        content = self._report.content()
        self._folder.write_json(done, content)
        log_event(sentence(name, content), "dataset_mined", dataset=name)
        return content

    def _start_actors(self) -> None:
        shards = [shards_of(self._recipe, one.folder, one.documents) for one in self._vectors]
        judges = self._recipe.cluster.encode_workers if self._mining.reranker else 0
        share = share_of(self._recipe, sum(map(len, shards)) + judges)
        for own, parts in zip(self._vectors, shards, strict=True):
            self._searchers.append(
                Searchers(self._mining, own.folder, parts, self._corpus.copies, share)
            )
        self._judges = Judges(self._recipe, share) if judges else None

    def _examples(self) -> Iterator[RetrievalExample]:
        total = sum(chunk.rows for chunk in self._corpus.queries)
        with progress(f"mining: {self._corpus.dataset.name}", total=total, unit="queries") as bar:
            for queries, asked in self._searched():
                yield from self._finished(queries, asked)
                bar.advance(
                    len(queries.examples), rows={self._corpus.dataset.name: len(queries.examples)}
                )

    def _searched(self) -> Iterator[tuple[Queries, list[Asked]]]:
        """Blocks in the order of the examples; the next ones are searched while one is selected from."""
        waiting: deque[tuple[Queries, list[Asked]]] = deque()
        chunk = 0
        for examples in self._corpus.blocks(BLOCK_CHUNKS):
            queries = Queries.of(self._corpus, examples, self._mining)
            asked = []
            for searchers, own in zip(self._searchers, self._vectors, strict=True):
                query_ND = np.concatenate([
                    own.folder.read_array(file.name) for file in own.queries[chunk : chunk + BLOCK_CHUNKS]
                ])  # fmt: skip
                depth = depth_of(self._corpus, self._mining)
                asked.append(
                    searchers.ask(query_ND, queries.positive_row_P, queries.owner_P, depth)
                )
            chunk += BLOCK_CHUNKS
            waiting.append((queries, asked))
            if len(waiting) > SEARCHED_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _finished(self, queries: Queries, asked: Sequence[Asked]) -> Iterator[RetrievalExample]:
        """The examples of a block that are kept, with their negatives; the report takes in what happened."""
        mining = self._mining
        rankings: list[Ranking] = []
        second_N = np.empty(0, np.float32)
        for searchers, one in zip(self._searchers, asked, strict=True):
            ranking, second = ranking_of(
                self._corpus, queries, one.block, searchers.answer(one), mining.max_positive_cosine
            )
            second_N = second if not rankings else second_N
            rankings.append(ranking)
        keep_N = np.ones(len(queries.examples), dtype=bool)
        if mining.consistency_top_k is not None:
            for ranking in rankings:
                keep_N &= is_consistent(ranking, top_k=mining.consistency_top_k)
        if self._judges is not None:
            rankings, second_N = judged(rankings, queries, mining, self._texts, self._judges.scores)
        selection = select_negatives(rankings, queries.seeds(self._recipe.training_seed), mining)
        examples = self._combined(queries, selection, keep_N)
        self._report.add(examples, selection.rejected, int((~keep_N).sum()))
        self._note_scores(rankings[0], second_N, queries)
        return iter(examples)

    def _combined(
        self, queries: Queries, selection: Selection, keep_N: Bools
    ) -> list[RetrievalExample]:
        rows = np.array([row for rows in selection.rows for row in rows], dtype=np.int64)
        texts = iter(self._texts(rows))
        found = []
        for number, example in enumerate(queries.examples):
            mined = [
                Negative(text=next(texts), origin="mined", score=score)
                for score in selection.scores[number]
            ]
            if not keep_N[number]:
                self._drops.append(inconsistent(example, self._mining.consistency_top_k))
                continue
            negatives = combine(
                queries.own[number],
                mined,
                queries.answering[number],
                count=self._mining.negatives_per_query,
            )
            found.append(dataclasses.replace(example, negatives=negatives))
        return found

    def _note_scores(self, ranking: Ranking, second_N: Floats, queries: Queries) -> None:
        self._report.score("positive", ranking.positive_score_N)
        several = np.bincount(queries.owner_P, minlength=len(queries.examples))
        own = is_among(queries.owner_P, self._corpus.key_M[queries.positive_row_P], ranking.key_NK)
        admitted = admitted_if_hidden(ranking, second_N, self._mining)
        self._report.hide(admitted & own, int(several[several > 1].sum()))

    def _score_shown(self) -> None:
        """Scores of given and LLM-written negatives of some examples, by the first teacher; not beside a reranker's."""
        own, shown = self._vectors[0], self._corpus.shown
        if not own.shown or self._mining.reranker:
            return
        query_ND = Shard(own.folder, own.queries).vectors(shown.owner)
        score = np.einsum(
            "nd,nd->n", query_ND, Shard(own.folder, own.shown).vectors(np.arange(len(shown.owner)))
        )
        for origin in sorted(set(shown.origins)):
            self._report.score(origin, score[np.array(shown.origins) == origin])

    def _recall(self) -> float:
        own = self._vectors[0]
        total = sum(file.rows for file in own.queries)
        some = np.unique(np.linspace(0, total - 1, min(total, RECALL_QUERIES)).astype(np.int64))
        return self._searchers[0].recall(
            Shard(own.folder, own.queries).vectors(some), self._mining.rank_to
        )

    def _texts(self, rows: Ints) -> list[str]:
        """The texts of some documents, read by tasks, a file each."""
        read = ray.remote(num_cpus=0)(read_texts)  # the actors may have taken every CPU
        wanted = self._corpus.places(rows)
        parts = ray.get([read.remote(folder, file, inside) for folder, file, _, inside in wanted])
        texts = [""] * len(rows)
        for (_, _, place, _), part in zip(wanted, parts, strict=True):
            for one, text in zip(place.tolist(), part, strict=True):
                texts[one] = text
        return texts
