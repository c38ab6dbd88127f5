"""Encoding on Ray Data: tasks read texts, and a pool of actors writes the vectors of each chunk once.

PartSource -> map_batches(EncodeActor)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import ray

from qzhou.cluster.ray_data import PartSource, backpressure, read_for_actors
from qzhou.cluster.resources import resources_for
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.mining.actors import EncodeActor
from qzhou.mining.corpus import Chunk, read_chunks
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

BLOCK_BYTES = 2**16  # of texts: one chunk, or some of short texts, goes to an actor at a time


def encoded(
    recipe: Recipe, teacher: str, folder: Folder, chunks: Sequence[Chunk], actor: type[EncodeActor] = EncodeActor
) -> list[str]:
    """The vector file of each chunk, below ``folder``; existing ones are not encoded again.

    An empty ``teacher`` is the recipe's backbone.

    Raises:
        ModelError: The teacher cannot be loaded.
    """
    if not chunks:
        return []
    # a file's column is read once, for all of its chunks
    numbered = groupby(enumerate(chunks), key=lambda one: (one[1].folder.uri, one[1].file, one[1].column))
    files = [list(part) for _, part in numbered]
    names = [""] * len(chunks)
    done = Counter[str]()
    with progress("mining: encode", total=sum(chunk.rows for chunk in chunks), unit="texts") as bar:
        for row in _encoded_rows(recipe, teacher, folder, chunks, files, actor):
            names[row["id"]] = row["name"]
            bar.add_worker_seconds(row["seconds"])
            bar.advance(row["texts"])
            done.update({name: row[name] for name in ("texts", "encoded", "truncated")})
    texts, truncated, known = done["encoded"], done["truncated"], done["texts"] - done["encoded"]
    whose = f" by {teacher}" if teacher else ""
    line = f"mining: encode: {texts:,} texts encoded{whose}, {known:,} were there already"
    log_event(line, "encoded", texts=texts, known=known, truncated=truncated)
    if truncated:
        query, document = recipe.model.max_query_tokens, recipe.model.max_document_tokens
        limits = f"model.max_query_tokens ({query:,}) or max_document_tokens ({document:,})"
        line = f"mining: encode: {truncated:,} texts are longer than {limits} and were truncated"
        log_event(line, "truncated", level="warning", texts=truncated)
    return names


def _encoded_rows(
    recipe: Recipe,
    teacher: str,
    folder: Folder,
    chunks: Sequence[Chunk],
    files: Sequence[Sequence[tuple[int, Chunk]]],
    actor: type[EncodeActor],
) -> Iterator[dict[str, Any]]:
    """What the actors say of each chunk, as it is done. Texts are read while others are encoded."""
    with backpressure(block_bytes=BLOCK_BYTES):
        texts = read_for_actors(PartSource(files, read_chunks, None))
        done = texts.map_batches(
            actor,
            fn_constructor_args=(recipe, teacher, folder, list(chunks)),
            batch_size=None,
            batch_format="pyarrow",
            compute=_pool(recipe, len(chunks)),
            **resources_for(recipe, "mining").options,
        )
        yield from done.iter_rows()


def _pool(recipe: Recipe, chunks: int) -> ray.data.ActorPoolStrategy:
    """As many actors as the recipe allows and chunks need; fewer at first if it says so."""
    kind = "GPU" if recipe.cluster.gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if not there:
        line = f"mining: encode: the cluster has no {kind} yet (cluster.gpu): waiting for a node with one"
        log_event(line, "waits_for_node", level="warning", resource=kind)
    most = min(recipe.cluster.encode_workers, chunks)
    least = min(recipe.cluster.min_encode_workers or most, most, max(1, there))
    return ray.data.ActorPoolStrategy(min_size=least, max_size=most)
