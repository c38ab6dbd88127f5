"""Search and judgement on Ray: actors that each hold a shard of a corpus, or a reranker."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from qzhou.cluster.resources import resources_for
from qzhou.config.recipe import Recipe
from qzhou.config.sections import MiningSection
from qzhou.data.storage import Folder
from qzhou.mining.actors import RerankActor, SearchActor
from qzhou.mining.identity import Floats, Ints
from qzhou.mining.shard import EXACT, Block, Found, VectorFile, divided, on_gpu, recall

SHARD_ROWS = 20_000  # a smaller corpus is searched by one actor
CLOSING_S = 10.0
PAIRS_AT_ONCE = 256  # that a reranker takes
# an actor whose node dies begins again elsewhere
RESTARTED = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": "SPREAD"}


def index_of(mining: MiningSection, files: Sequence[VectorFile]) -> str:
    """The index that a corpus gets: the recipe's, or 'Flat' where so few documents are searched faster."""
    return mining.index if sum(one.rows for one in files) >= mining.index_from_documents else EXACT


def shards_of(
    recipe: Recipe, folder: Folder, files: Sequence[VectorFile]
) -> list[list[VectorFile]]:
    """A corpus divided over as many searchers as there are encoders, or over more where an index would not fit."""
    wanted = min(
        recipe.cluster.encode_workers, math.ceil(sum(one.rows for one in files) / SHARD_ROWS)
    )
    if index_of(recipe.mining, files) != EXACT:
        size_gb = sum(folder.size(one.name) for one in files) / 1e9
        wanted = max(wanted, math.ceil(size_gb / recipe.mining.index_memory_gb))
    return divided(files, wanted)


def share_of(recipe: Recipe, actors: int) -> dict[str, Any]:
    """What each of so many actors asks for: next to nothing of a CPU, and its part of a GPU where the recipe says so.

    They all live at the same time, and one that finds no room would be waited for without end. Something they ask
    for, so that a head node that offers nothing gets none of them.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    asked = resources_for(recipe, "mining").options
    return {
        name: asked[name] for name in ("accelerator_type", "label_selector") if name in asked
    } | {
        "num_cpus": 0.01,
        "num_gpus": math.floor(1000 / math.ceil(actors / gpus)) / 1000
        if recipe.cluster.gpu and gpus
        else 0.0,
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """A block that is being searched."""

    block: Block
    count: int
    parts: list[Any]


class Searchers:
    """The actors that search one corpus by the vectors of one teacher.

    Args:
        mining: Of the recipe.
        folder: Where the vector files are.
        shards: Vector files of the documents, in the order of the corpus; an actor for each.
        copies: Rows of the corpus that are not searched.
        share: What each actor asks of the cluster (:func:`share_of`).
    """

    def __init__(
        self,
        mining: MiningSection,
        folder: Folder,
        shards: Sequence[Sequence[VectorFile]],
        copies: Ints,
        share: Mapping[str, Any],
    ) -> None:
        self._starts = [shard[0].first for shard in shards]
        gpus = {} if on_gpu() else {"num_gpus": 0}
        made = ray.remote(SearchActor).options(**{**share, **gpus}, **RESTARTED)
        index = index_of(mining, [file for shard in shards for file in shard])
        self.is_exact = index == EXACT
        self._actors = []
        for shard in shards:
            own = copies[(copies >= shard[0].first) & (copies < shard[-1].first + shard[-1].rows)]
            self._actors.append(made.remote(folder, shard, index, mining.index_parameters, own))

    def ask(self, query_ND: Floats, positive_row_P: Ints, owner_P: Ints, count: int) -> Asked:
        """Begin to search; the positives' vectors come from the shards."""
        block = Block(query_ND, self.vectors(positive_row_P), owner_P)
        sent = ray.put(block)
        return Asked(block, count, [actor.search.remote(sent, count) for actor in self._actors])

    def answer(self, asked: Asked) -> Found:
        """What all shards found together."""
        return Found.merged(ray.get(asked.parts), asked.count)

    def vectors(self, rows: Ints) -> Floats:
        """Vectors of some documents [len(rows), D]."""
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        wanted = [np.flatnonzero(shard == number) for number in range(len(self._actors))]
        parts = ray.get(
            [
                actor.vectors.remote(rows[one])
                for actor, one in zip(self._actors, wanted, strict=True)
            ]
        )
        found = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for one, part in zip(wanted, parts, strict=True):
            found[one] = part
        return found

    def recall(self, query_ND: Floats, count: int) -> float:
        """The share of the exact nearest documents that the index finds."""
        block = ray.put(Block(query_ND, query_ND[:0], np.empty(0, np.int64)))
        parts = [
            [actor.search.remote(block, count, exactly) for actor in self._actors]
            for exactly in (False, True)
        ]
        found, exact = (Found.merged(ray.get(part), count) for part in parts)
        return recall(np.where(found.score_NK > -np.inf, found.row_NK, -1), exact.row_NK)

    def close(self) -> None:
        ray.wait(
            [actor.close.remote() for actor in self._actors],
            num_returns=len(self._actors),
            timeout=CLOSING_S,
        )
        for actor in self._actors:
            ray.kill(actor)


class Judges:
    """The actors that score pairs of query and document with the recipe's reranker."""

    def __init__(self, recipe: Recipe, share: Mapping[str, Any]) -> None:
        longest = recipe.model.max_query_tokens + recipe.model.max_document_tokens
        made = ray.remote(RerankActor).options(**share, **RESTARTED)
        self._actors = [
            made.remote(recipe.mining.reranker, longest)
            for _ in range(recipe.cluster.encode_workers)
        ]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """From 0 to 1, one for each pair [len(pairs)]."""
        starts = range(0, len(pairs), PAIRS_AT_ONCE)
        asked = [
            actor.scores.remote(pairs[start : start + PAIRS_AT_ONCE])
            for actor, start in zip(itertools.cycle(self._actors), starts, strict=False)
        ]
        return np.concatenate([np.empty(0, np.float32), *ray.get(asked)])

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
