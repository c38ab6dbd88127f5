"""The mining stage on Ray: encode every text once, search, select, write."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import refuse_what_never_comes, session
from qzhou.config.recipe import Recipe
from qzhou.data.records import TASKS, Drop, Manifest, Negative, RetrievalExample
from qzhou.data.storage import Folder, count_rows, table_of, write_records, write_table
from qzhou.data.text_digests import Bools, Floats, Ints, is_among
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import DataError
from qzhou.mining.corpus import Chunk, Corpus, Sources, document_digests, prepared, read_texts
from qzhou.mining.encode import encoded
from qzhou.mining.layout import DEFAULT, Layout
from qzhou.mining.negative_selection import (
    Ranking,
    Selection,
    combine,
    is_consistent,
    leave_one_out_false_negatives,
    select_negatives,
)
from qzhou.mining.query_block import (
    Queries,
    depth_of,
    inconsistent,
    ranking_of,
    relabelled,
    reranked,
    two_lowest,
    with_answers,
    with_one_judge,
)
from qzhou.mining.report import Report, sentence, shortage, wide_scores
from qzhou.mining.shard import EXACT, VectorFile, vectors_at
from qzhou.mining.sharded_index import PendingSearch, RerankerPool, ShardedIndex, actor_resources, shards_of
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

SEARCHED_AHEAD = 2  # blocks
RECALL_QUERIES = 1000


def mine(recipe: Recipe, layout: Layout = DEFAULT) -> Manifest:
    """Give every retrieval example its negatives; other tasks' examples pass through.

    Raises:
        DataError: Synthesis has not finished.
        ModelError: A teacher or the reranker cannot be loaded.
        RecipeError: FAISS cannot make the index that the recipe asks for.
    """
    run = with_arithmetic(Run.open(recipe))
    recipe, mining = run.recipe, run.recipe.mining
    models = {"teacher": weights_fingerprint(mining.teacher or recipe.model.backbone)}
    models |= {f"teacher {name}": weights_fingerprint(name) for name in mining.extra_teachers}
    if mining.reranker:
        models["reranker"] = weights_fingerprint(mining.reranker)
    settings: dict[str, object] = {
        "mining": mining.model_dump(exclude={"teacher_api_key_env", "index_memory_gb"}),
        "model": recipe.model.settings_for(*mining.teachers),
        "prompts": {one.name: dataclasses.astuple(one.prompt) for one in recipe.datasets},
        "seed": recipe.training_seed,
    }
    # where a stage learns the scores, all negatives get one
    if recipe.training.distillation.is_listwise:
        settings["writes_lists"] = True
    # the division of an approximate index changes its candidates; an exact search finds the same however it is divided
    if mining.index != EXACT:
        settings["shards"] = [resources_for(recipe, "search").workers, mining.index_memory_gb]
    inputs = {name: run.manifest(name).fingerprint for name in ("transform", "synthesis")}
    stage = Stage(
        name="mining",
        settings=settings,
        inputs=models | inputs,
        code_of=("qzhou.mining.pipeline",),
        persistent=("embeddings",),
        shared=("embeddings",),
    )
    return run.stage(stage, lambda folder: _work(run, folder, layout))


def _work(run: Run, folder: Folder, layout: Layout) -> dict[str, int]:
    recipe, source = run.recipe, run.folder / "synthesis" / "examples"
    for task in ("pair", "classification"):
        (source / task).link_to(folder / "examples" / task)
    with session(resources_for(recipe, "mining")):
        refuse_what_never_comes(resources_for(recipe, "search"))
        names = (source / "retrieval").folders()
        corpora = [_prepared(run, folder, name, layout) for name in names]
        store = folder / "embeddings"
        teachers = recipe.mining.teachers
        vectors = [_vectors(recipe, teacher, store, corpora, layout) for teacher in teachers]
        reports = {}
        for corpus, *own in zip(corpora, *vectors, strict=True):
            miner = _Miner(recipe, folder, corpus, own, layout)
            reports[corpus.dataset.name] = miner.mined()
    folder.write_json("report.json", reports)
    return {f"{task} examples": count_rows(folder / "examples" / task) for task in TASKS}


def _prepared(run: Run, folder: Folder, name: str, layout: Layout) -> Corpus:
    """The texts of a dataset, wherever they are."""
    corpus = run.folder / "transform" / "corpora" / name
    describe = ray.remote(num_cpus=1)(document_digests)
    known = ray.get([describe.remote(corpus, file) for file in corpus.files(".parquet")])
    examples = run.folder / "synthesis" / "examples" / "retrieval" / name
    return prepared(
        run.recipe.dataset(name),
        Sources(examples, corpus, folder / "documents" / name),
        known,
        chunk_rows=layout.chunk_rows,
        all_negatives=run.recipe.training.distillation.is_listwise and not run.recipe.mining.reranker,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Vectors:
    """The vectors of a dataset by one teacher."""

    folder: Folder
    queries: list[VectorFile]
    documents: list[VectorFile]
    shown: list[VectorFile]


def _vectors(
    recipe: Recipe, teacher: str, folder: Folder, corpora: Sequence[Corpus], layout: Layout
) -> list[_Vectors]:
    parts = [part for one in corpora for part in (one.queries, one.documents, one.shown.chunks)]
    chunks = [chunk for part in parts for chunk in part]
    names = iter(encoded(recipe, teacher, folder, chunks, layout.encode_actor))
    files = [_files(part, list(islice(names, len(part)))) for part in parts]
    return [_Vectors(folder, *files[start : start + 3]) for start in range(0, len(files), 3)]


def _files(chunks: Sequence[Chunk], names: Sequence[str]) -> list[VectorFile]:
    rows = [chunk.rows for chunk in chunks]
    firsts = (np.cumsum(rows) - rows).tolist() if rows else []
    return [VectorFile(*one) for one in zip(names, firsts, rows, strict=True)]


class _Miner:
    """Mines one dataset, block by block."""

    def __init__(
        self, recipe: Recipe, folder: Folder, corpus: Corpus, vectors: Sequence[_Vectors], layout: Layout
    ) -> None:
        self._recipe, self._mining, self._layout = recipe, recipe.mining, layout
        self._folder, self._corpus, self._vectors = folder, corpus, vectors
        self._indexes: list[ShardedIndex] = []
        self._rerankers: RerankerPool | None = None
        self._report, self._drops = Report(), list[Drop]()
        self._writes_lists = recipe.training.distillation.is_listwise
        self._done = 0  # examples of the blocks before

    def mined(self) -> dict[str, Any]:
        """Write the examples with their negatives, unless an earlier attempt has; the dataset's part of the report."""
        name = self._corpus.dataset.name
        done = f"done/{name}.json"
        if self._folder.exists(done):
            return dict(self._folder.read_json(done))
        target = self._folder / "examples" / "retrieval" / name
        try:
            self._start_actors()
            if not self._indexes[0].is_exact:
                self._refuse_low_recall()
            write_records(target, self._examples(), RetrievalExample)
        finally:
            for index in self._indexes:
                index.close()
            if self._rerankers:
                self._rerankers.close()
        self._score_shown()
        if self._drops:
            write_table(self._folder / "dropped", f"{name}.parquet", table_of(self._drops, Drop))
        content = self._report.content()
        self._folder.write_json(done, content)
        self._say(name, content)
        return content

    def _say(self, name: str, content: Mapping[str, Any]) -> None:
        """One line on the dataset, and what should be looked at."""
        log_event(sentence(name, content), "dataset_mined", dataset=name)
        copies = len(self._corpus.copies)
        documents, first = len(self._corpus.key_M) - copies, self._mining.rank_from
        if copies:
            line = (
                f"mining: {name}: {copies:,} documents repeat the text of another one under an id of their own; each "
                "text is searched once (an evaluation takes only the judged id for the answer)"
            )
            log_event(line, "repeated_documents", dataset=name, documents=copies)
        distillation = self._recipe.training.distillation
        if line := wide_scores(name, content, distillation.teacher_temperature):
            log_event(line, "wide_scores", level="warning", dataset=name)
        if content["queries"] and not content["negatives"].get("mined") and documents <= first:
            line = (
                f"mining: {name}: WARNING: nothing is mined among {documents:,} different documents, since "
                f"mining.rank_from is {first}: lower it, or add documents"
            )
            log_event(line, "corpus_too_small", level="warning", dataset=name)
        elif line := shortage(name, content, self._mining):
            log_event(line, "few_negatives", level="warning", dataset=name)

    def _start_actors(self) -> None:
        rows = self._layout.shard_rows
        shards = [shards_of(self._recipe, one.folder, one.documents, rows) for one in self._vectors]
        rerankers = self._recipe.cluster.encode_workers if self._mining.reranker else 0
        share = actor_resources(self._recipe, sum(map(len, shards)) + rerankers)
        copies = self._corpus.copies
        for own, parts in zip(self._vectors, shards, strict=True):
            self._indexes.append(ShardedIndex(self._recipe, own.folder, parts, copies, share, self._layout))
        self._rerankers = RerankerPool(self._recipe, share) if rerankers else None

    def _examples(self) -> Iterator[RetrievalExample]:
        name = self._corpus.dataset.name
        total = sum(chunk.rows for chunk in self._corpus.queries)
        with progress(f"mining: {name}", total=total, unit="queries") as bar:
            for queries, searches in self._searched():
                yield from self._finished(queries, searches)
                count = len(queries.examples)
                bar.advance(count, rows={name: count})

    def _searched(self) -> Iterator[tuple[Queries, list[PendingSearch]]]:
        """Blocks in the order of the examples; the next ones are searched while one is selected from."""
        waiting: deque[tuple[Queries, list[PendingSearch]]] = deque()
        depth = depth_of(self._corpus, self._mining)
        chunk, size = 0, self._layout.block_chunks
        for examples in self._corpus.blocks(size):
            queries = Queries.of(self._corpus, examples, self._mining)
            searches = []
            for index, own in zip(self._indexes, self._vectors, strict=True):
                files = own.queries[chunk : chunk + size]
                query_ND = np.concatenate([own.folder.read_array(file.name) for file in files])
                searches.append(index.search(query_ND, queries.positive_row_P, queries.owner_P, depth))
            chunk += size
            waiting.append((queries, searches))
            if len(waiting) > SEARCHED_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _finished(self, queries: Queries, searches: Sequence[PendingSearch]) -> list[RetrievalExample]:
        """The examples of a block that are kept, with their negatives; the report counts what happened."""
        mining = self._mining
        closest = mining.max_positive_cosine
        # the first teacher's positives are the ones that the report speaks of
        found = [ranking_of(self._corpus, queries, one.block, one.result(), closest) for one in searches]
        rankings, positive_P = [ranking for ranking, _ in found], found[0][1]
        keep_N = np.ones(len(queries.examples), dtype=bool)
        if mining.consistency_top_k is not None:
            for ranking in rankings:
                keep_N &= is_consistent(ranking, top_k=mining.consistency_top_k)
        if self._rerankers is not None:
            rankings, positive_P = reranked(rankings, queries, mining, self._texts, self._rerankers.scores)
        answers: list[dict[int, float]] = []
        if mining.relabel_from is not None:
            rankings, answers = relabelled(rankings, mining)
        selection = select_negatives(rankings, queries.seeds(self._recipe.training_seed), mining)
        examples = self._combined(queries, selection, keep_N)
        own_scores = self._own_scores(queries, searches[0]) if self._writes_lists or answers else []
        positives = np.split(positive_P, np.cumsum([len(one.positives) for one in queries.examples])[:-1])
        scores = [own.tolist() for own in positives]
        if answers:
            examples = self._with_answers(examples, answers, own_scores, scores)
        later = sum(bool(keep_N[place]) for place in selection.later)
        self._report.add(list(examples.values()), selection.rejected, int((~keep_N).sum()), later)
        self._note_scores(rankings[0], positive_P, queries)
        if self._writes_lists:
            for number, one in examples.items():
                examples[number] = with_one_judge(one, scores[number], own_scores[number])
            self._report.count_lists(list(examples.values()))
        self._done += len(queries.examples)
        return list(examples.values())

    def _with_answers(
        self,
        examples: Mapping[int, RetrievalExample],
        answers: Sequence[Mapping[int, float]],
        own_scores: Sequence[Mapping[str, float]],
        scores: list[list[float]],
    ) -> dict[int, RetrievalExample]:
        """The examples of a block, by number, with answers moved to their positives; their scores join ``scores``."""
        texts = iter(self._texts(np.array([row for one in answers for row in one], dtype=np.int64)))
        candidates = [{next(texts): score for score in one.values()} for one in answers]
        done = {}
        for number, example in examples.items():
            least = max(self._mining.relabel_from or 0.0, min(scores[number]))
            done[number], moved = with_answers(example, candidates[number], own_scores[number], least)
            self._report.count_relabelled(example, list(moved))
            scores[number] += moved.values()
        return done

    def _own_scores(self, queries: Queries, search: PendingSearch) -> list[dict[str, float]]:
        """For each example of a block the judge's scores of the negatives that it came with, by their texts."""
        texts = [[one.text for one in example.negatives] for example in queries.examples]
        owner_G = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
        if self._rerankers is not None:
            pairs = [(queries.examples[number].query, text) for number, own in enumerate(texts) for text in own]
            score_G = self._rerankers.scores(pairs)
        elif len(owner_G):
            files, owner = self._vectors[0], self._corpus.shown.owner
            rows = np.arange(np.searchsorted(owner, self._done), np.searchsorted(owner, self._done + len(texts)))
            query_ND = search.block.query_ND
            score_G = np.einsum("gd,gd->g", query_ND[owner_G], vectors_at(files.folder, files.shown, rows))
        else:
            score_G = np.empty(0, np.float32)
        found: list[dict[str, float]] = [{} for _ in texts]
        for number, text, score in zip(owner_G.tolist(), chain.from_iterable(texts), score_G.tolist(), strict=True):
            found[number][text] = score
        return found

    def _combined(self, queries: Queries, selection: Selection, keep_N: Bools) -> dict[int, RetrievalExample]:
        """The examples of a block that are kept, by their numbers in it, with their negatives."""
        rows = np.array([row for rows in selection.rows for row in rows], dtype=np.int64)
        texts = iter(self._texts(rows))
        count, found = self._mining.negatives_per_query, {}
        for number, example in enumerate(queries.examples):
            mined = [Negative(text=next(texts), origin="mined", score=score) for score in selection.scores[number]]
            if not keep_N[number]:
                self._drops.append(inconsistent(example, self._mining.consistency_top_k))
                continue
            own, relevant = queries.own[number], queries.relevant_keys[number]
            negatives = combine(own, mined, relevant, count=count)
            found[number] = dataclasses.replace(example, negatives=negatives)
        return found

    def _note_scores(self, ranking: Ranking, positive_P: Floats, queries: Queries) -> None:
        _, second_N = two_lowest(positive_P, queries.owner_P, len(queries.examples))
        self._report.score("positive", ranking.positive_score_N)
        several = np.bincount(queries.owner_P, minlength=len(queries.examples))
        own = is_among(queries.owner_P, self._corpus.key_M[queries.positive_row_P], ranking.key_NK)
        admitted = leave_one_out_false_negatives(ranking, second_N, self._mining)
        self._report.hide(admitted & own, int(several[several > 1].sum()))

    def _score_shown(self) -> None:
        """Note the first teacher's scores of some given and LLM-written negatives.

        Not where a reranker scores the others: the two cannot be compared.
        """
        own, shown = self._vectors[0], self._corpus.shown
        if not own.shown or self._mining.reranker:
            return
        query_ND = vectors_at(own.folder, own.queries, shown.owner)
        negative_ND = vectors_at(own.folder, own.shown, np.arange(len(shown.owner)))
        score_N = np.einsum("nd,nd->n", query_ND, negative_ND)
        for origin in sorted(set(shown.origins)):
            self._report.score(origin, score_N[np.array(shown.origins) == origin])

    def _recall(self) -> float:
        own = self._vectors[0]
        total = sum(file.rows for file in own.queries)
        some = np.unique(np.linspace(0, total - 1, min(total, RECALL_QUERIES)).astype(np.int64))
        return self._indexes[0].recall(vectors_at(own.folder, own.queries, some), self._mining.rank_to)

    def _refuse_low_recall(self) -> None:
        """End the stage where the index misses more than the recipe allows."""
        found, least = self._recall(), self._mining.min_recall
        self._report.measure(found)
        if found < least:
            raise DataError(
                f"mining: {self._corpus.dataset.name}: the index '{self._mining.index}' finds {found:.1%} of the exact "
                f"neighbours, and mining.min_recall is {least:.1%}. Search more of it (mining.index_parameters: "
                "'nprobe=64'), take another index, or 'Flat'."
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
