"""Search and reranking on Ray: actors that each hold a shard of a corpus, or a reranker."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from qzhou.cluster.resources import StageName, resources_for
from qzhou.config.mining import MiningSection
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.data.text_digests import Floats, Ints
from qzhou.errors import SetupError, first_line
from qzhou.mining.actors import RerankActor
from qzhou.mining.layout import DEFAULT, Layout
from qzhou.mining.shard import EXACT, ExactSearch, QueryBlock, SearchResult, VectorFile, divided, recall

SEARCH_AND_ENCODERS: tuple[StageName, StageName] = ("search", "mining")
CLOSING_S = 10.0
PAIRS_AT_ONCE = 256  # that a reranker takes
RESTARTS = 3
# an actor whose node dies begins again elsewhere
RESTARTED = {"max_restarts": RESTARTS, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}


def index_of(mining: MiningSection, files: Sequence[VectorFile]) -> str:
    """The index that a corpus gets: the recipe's, or 'Flat' where so few documents are searched faster."""
    return mining.index if sum(one.rows for one in files) >= mining.index_from_documents else EXACT


def shards_of(
    recipe: Recipe, folder: Folder, files: Sequence[VectorFile], shard_rows: int
) -> list[list[VectorFile]]:
    """A corpus in at most as many shards as there are searchers, or more where an index would not fit."""
    rows = sum(one.rows for one in files)
    wanted = min(resources_for(recipe, "search").workers, math.ceil(rows / shard_rows))
    if index_of(recipe.mining, files) != EXACT:
        size_gib = sum(folder.size(one.name) for one in files) / 2**30
        wanted = max(wanted, math.ceil(size_gib / recipe.mining.index_memory_gb))
    return divided(files, wanted)


def actor_resources(recipe: Recipe, actors: int) -> dict[str, Any]:
    """The resources of each of so many actors: those of ``[cluster.search]``, and with ``cluster.gpu`` a part of a GPU.

    They all run at the same time, and for one that finds no room the stage would wait
    without end.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    share, encoders = (resources_for(recipe, stage).options for stage in SEARCH_AND_ENCODERS)
    for name in {"accelerator_type", "label_selector"} & (encoders.keys() - share.keys()):
        share[name] = encoders[name]
    if recipe.cluster.gpu and gpus and recipe.cluster.search.gpus is None:
        share["num_gpus"] = math.floor(1000 / math.ceil(actors / gpus)) / 1000
    return share


@dataclass(frozen=True, slots=True)
class PendingSearch:
    """A block of queries that the shards are searching; ``parts`` are Ray's references to what each finds."""

    block: QueryBlock
    count: int
    parts: list[Any]
    names: Sequence[str]

    def result(self) -> SearchResult:
        """The best of what all shards found; waits for them.

        Raises:
            SetupError: One of them cannot be held in memory.
        """
        return SearchResult.merged(_found(self.parts, self.names), self.count)


def _found(parts: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """What actors have found; ``names`` say which documents each searches."""
    found = []
    for part, name in zip(parts, names, strict=True):
        try:
            found.append(ray.get(part))
        except ray.exceptions.ActorDiedError as error:
            raise SetupError(
                f"mining: the searcher of {name} died {RESTARTS + 1} times: {first_line(error)}. Where it wants "
                "memory, let each hold less (cluster.search.workers, mining.index_memory_gb) or ask for more "
                "(cluster.search.memory_gb)."
            ) from None
    return found


class ShardedIndex:
    """The actors that search one corpus by one teacher's vectors, one for each shard.

    ``copies`` are rows of the corpus that are not searched, ``share`` the resources of an
    actor (:func:`actor_resources`).
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Folder,
        shards: Sequence[Sequence[VectorFile]],
        copies: Ints,
        share: Mapping[str, Any],
        layout: Layout = DEFAULT,
    ) -> None:
        mining = recipe.mining
        self._starts = [shard[0].first for shard in shards]
        self._names = [f"documents {one[0].first:,} to {one[-1].first + one[-1].rows - 1:,}" for one in shards]
        made = ray.remote(layout.search_actor).options(**share, **RESTARTED)
        index = index_of(mining, [file for shard in shards for file in shard])
        search = ExactSearch(device="cuda" if share.get("num_gpus") else "cpu")
        self.is_exact = index == EXACT
        self._actors = []
        for shard in shards:
            own = copies[(copies >= shard[0].first) & (copies < shard[-1].first + shard[-1].rows)]
            self._actors.append(made.remote(folder, shard, index, mining.index_parameters, own, search))

    def search(self, query_ND: Floats, positive_row_P: Ints, owner_P: Ints, count: int) -> PendingSearch:
        """A begun search for ``count`` ranks; the positives' vectors come from the shards.

        The rows of ``query_ND`` are unit vectors; ``owner_P`` is ascending.
        """
        block = QueryBlock(query_ND, self.vectors(positive_row_P), owner_P)
        sent = ray.put(block)
        parts = [actor.search.remote(sent, count) for actor in self._actors]
        return PendingSearch(block, count, parts, self._names)

    def vectors(self, rows: Ints) -> Floats:
        """Vectors of some documents [len(rows), D]."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        wanted = [np.flatnonzero(shard == number) for number in range(len(self._actors))]
        pairs = zip(self._actors, wanted, strict=True)
        parts = _found([actor.vectors.remote(rows[one]) for actor, one in pairs], self._names)
        found = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for one, part in zip(wanted, parts, strict=True):
            found[one] = part
        return found

    def recall(self, query_ND: Floats, count: int) -> float:
        """The share of the exact nearest documents that the index finds."""
        block = ray.put(QueryBlock(query_ND, query_ND[:0], np.empty(0, np.int64)))
        parts = [
            [actor.search.remote(block, count, exactly) for actor in self._actors] for exactly in (False, True)
        ]
        found, exact = (SearchResult.merged(_found(part, self._names), count) for part in parts)
        return recall(np.where(found.score_NK > -np.inf, found.row_NK, -1), exact.row_NK)

    def close(self) -> None:
        """End the actors, once they have removed their copies of remote files."""
        closing = [actor.close.remote() for actor in self._actors]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S)
        for actor in self._actors:
            ray.kill(actor)


class RerankerPool:
    """The actors that score pairs of query and document with the recipe's reranker."""

    def __init__(self, recipe: Recipe, share: Mapping[str, Any]) -> None:
        longest = recipe.model.max_query_tokens + recipe.model.max_document_tokens
        made = ray.remote(RerankActor).options(**share, **RESTARTED)
        count = recipe.cluster.encode_workers
        self._actors = [made.remote(recipe.mining.reranker, longest) for _ in range(count)]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """From 0 to 1, one for each pair [len(pairs)]."""
        starts = range(0, len(pairs), PAIRS_AT_ONCE)
        scored = [
            actor.scores.remote(pairs[start : start + PAIRS_AT_ONCE])
            for actor, start in zip(itertools.cycle(self._actors), starts, strict=False)
        ]
        return np.concatenate([np.empty(0, np.float32), *ray.get(scored)])

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
