"""Encoding on Ray Data: a pool of actors writes the vectors of each chunk of texts once, to shared storage."""

from collections.abc import Sequence

import ray

from qzhou.cluster.resources import resources_for
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.errors import from_json
from qzhou.mining.actors import EncodeActor
from qzhou.mining.corpus import Chunk
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress


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
    count = len(chunks)
    # items and no range: its tasks would need a CPU, and the actors may have taken every one
    numbers = ray.data.from_items([{"id": number} for number in range(count)], override_num_blocks=count)
    done = numbers.map_batches(
        actor,
        fn_constructor_args=(recipe, teacher, folder, list(chunks)),
        batch_size=1,
        compute=_pool(recipe, count),
        **resources_for(recipe, "mining").options,
    )  # fmt: skip
    names = [""] * count
    texts = truncated = 0
    total = sum(chunk.rows for chunk in chunks)
    with progress("mining: encode", total=total, unit="texts") as bar:
        for batch in done.iter_batches(batch_size=None, batch_format="numpy"):
            for error in filter(None, batch["error"]):
                raise from_json(error)
            bar.add_worker_seconds(float(batch["seconds"].sum()))
            for number, name in zip(batch["id"], batch["name"], strict=True):
                names[int(number)] = str(name)
                bar.advance(chunks[int(number)].rows)
            texts += int(batch["encoded"].sum())
            truncated += int(batch["truncated"].sum())
    whose = f" by {teacher}" if teacher else ""
    known = total - texts
    line = f"mining: encode: {texts:,} texts encoded{whose}, {known:,} were there already"
    log_event(line, "encoded", texts=texts, known=known, truncated=truncated)
    if truncated:
        query, document = recipe.model.max_query_tokens, recipe.model.max_document_tokens
        limits = f"model.max_query_tokens ({query:,}) or max_document_tokens ({document:,})"
        line = f"mining: encode: {truncated:,} texts are longer than {limits} and were truncated"
        log_event(line, "truncated", level="warning", texts=truncated)
    return names


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
