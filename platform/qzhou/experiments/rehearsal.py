"""A few minutes of training on the cluster that shall train, with made-up texts, before days of work rest on it.

Machines and network are looked at first. Then both stages train for some steps with the
recipe's model, batches, workers and ZeRO stage; the last checkpoint is read by as many
workers and by one less; the model is exported and loaded by sentence-transformers. What a
GPU holds is tried by training itself (:mod:`qzhou.training.memory_budget`).
"""

import dataclasses
import json
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.records import (
    EXAMPLE_TYPES,
    Example,
    LabeledExample,
    Manifest,
    Negative,
    PairExample,
    RetrievalExample,
)
from qzhou.data.storage import Folder, write_records
from qzhou.errors import StorageError, TrainingError
from qzhou.export.pipeline import export
from qzhou.run.files import MANIFEST, METRICS, MINING, MODELS_OF_STAGES, TRAINING_STAGE2, TRAINING_STAGES
from qzhou.telemetry.events import log_event
from qzhou.training.pipeline import train
from qzhou.training.probe import probe

STEPS = 3
FINGERPRINT = "rehearsal"  # of what mining would have left
WORDS = ("tree", "sea", "house", "river", "stone", "cloud", "street", "paper", "voice", "light", "name", "road")
SHORTEST_WORDS = 4
LABELS = 4
SAME_VECTORS = 0.9999  # cosine of a text before and after a checkpoint
PROBES = ("one line", " ".join(WORDS))


def rehearse(recipe: Recipe) -> None:
    """Try a recipe's training on the cluster.

    What it writes is in ``<run.name>-rehearsal`` beside the run, and removed if all is well.

    Raises:
        SetupError: The machines or their network are not fit for it.
        TrainingError: A step, a checkpoint or the export is not what it should be.
    """
    began = time.monotonic()
    tried = rehearsal_of(recipe)
    folder = Folder.open(recipe.run.storage) / tried.run.name
    with session(resources_for(tried, "training")):
        _make_room(folder)
        write_examples(tried, folder.create())
        probe(tried, folder)
        train(tried)
        for stage in tried.training.stages:
            log_event(f"rehearse: {stage}: {_cost(folder, METRICS[stage])}", "stage_cost")
        vectors = partial(_vectors_of, tried, folder / MODELS_OF_STAGES[TRAINING_STAGE2])
        expected = vectors()
        for workers in _worlds(tried):
            _forget_the_end(folder)
            train(_with_training(tried, workers=workers, min_workers=None))
            _refuse_other(expected, vectors(), workers)
        export(tried)
    folder.delete()
    log_event(f"rehearse: passed in {time.monotonic() - began:.0f} s", "passed")


def rehearsal_of(recipe: Recipe) -> Recipe:
    """The recipe, with a run of its own and few steps."""
    stages = {}
    for name in recipe.training.stages:
        stage = getattr(recipe.training, name)
        masked = min(stage.soft_mask_steps, STEPS - 1)
        stages[name] = stage.model_copy(update={"steps": STEPS, "warmup_steps": 1, "soft_mask_steps": masked})
    run = recipe.run.model_copy(update={"name": f"{recipe.run.name}-rehearsal", "share_stages": False})
    shorter = _with_training(recipe, **stages, validate_every_steps=0, trackers=(), max_failures=0)
    return shorter.model_copy(update={"run": run})


def _make_room(folder: Folder) -> None:
    """Remove an earlier rehearsal.

    Raises:
        StorageError: Something else lies there.
    """
    mined = folder / MINING
    if folder.files(recursive=True) and not (
        mined.exists(MANIFEST) and mined.read_json(MANIFEST)["fingerprint"] == FINGERPRINT
    ):
        raise StorageError(f"{folder.uri} is in the way: a rehearsal would write there. Rename that run.")
    folder.delete()


def _with_training(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})


def _worlds(recipe: Recipe) -> list[int]:
    """Numbers of workers that read the checkpoint."""
    workers = recipe.training.workers
    return [workers, workers - 1] if workers > 1 else [workers]


def write_examples(recipe: Recipe, folder: Folder) -> None:
    """Write what mining would have left: a batch of made-up examples for each dataset that is trained on."""
    for dataset in recipe.trained_datasets:
        stages = [getattr(recipe.training, name) for name in recipe.training.stages]
        rows = max(one.cosent_batch_size if dataset.task == "pair" else one.batch_size for one in stages)
        examples = list(made_up(dataset, rows, recipe))
        place = folder / MINING / "examples" / dataset.task / dataset.name
        write_records(place, examples, EXAMPLE_TYPES[dataset.task])
    nothing: dict[str, Any] = {"inputs": {}, "outputs": {}, "settings": {}, "code_version": "", "wall_s": 0.0}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    manifest = Manifest(stage=MINING, fingerprint=FINGERPRINT, finished_at=now, **nothing)
    (folder / MINING).write_json(MANIFEST, dataclasses.asdict(manifest))


def made_up(dataset: Dataset, rows: int, recipe: Recipe) -> Iterator[Example]:
    """Examples whose texts have all lengths up to the recipe's longest, more of them short."""
    draw = random.Random(dataset.name)  # texts that mean nothing

    def text(most: int) -> str:
        words = int(SHORTEST_WORDS * (max(most, SHORTEST_WORDS) / SHORTEST_WORDS) ** draw.random())
        return " ".join(draw.choice(WORDS) for _ in range(words))

    query, document = recipe.model.max_query_tokens, recipe.model.max_document_tokens
    name = dataset.name
    for number in range(rows):
        if dataset.task == "retrieval":
            others = range(recipe.training.negatives_per_query)
            negatives = [Negative(text=f"{number} {other} {text(document)}", origin="mined") for other in others]
            yield RetrievalExample(
                id=str(number), dataset=name, query=f"{number} {text(query)}",
                positives=(f"{number} {text(document)}",), negatives=tuple(negatives),
            )  # fmt: skip
        elif dataset.task == "pair":
            texts = f"{number} {text(query)}", text(document)
            yield PairExample(id=str(number), dataset=name, text_a=texts[0], text_b=texts[1], score=number % LABELS)
        else:
            label = f"{name}:{number % LABELS}"
            yield LabeledExample(id=str(number), dataset=name, text=f"{number} {text(document)}", label=label)


def _cost(folder: Folder, metrics: str) -> str:
    """What the steps of a stage cost, the first one left out."""
    lines = [json.loads(line) for line in folder.read_bytes(metrics).decode().splitlines()]
    later = lines[1:] or lines
    mean = {name: sum(one[name] for one in later) / len(later) for name in ("tokens", "seconds", "padding_share")}
    memory = max(one["memory_gb"] for one in lines)
    return (
        f"{mean['tokens'] / mean['seconds']:,.0f} tokens/s, {mean['seconds']:.2f} s a step of {mean['tokens']:,.0f} "
        f"tokens, {mean['padding_share']:.0%} padding, {memory:.1f} GB at most on rank 0"
    )


def _forget_the_end(folder: Folder) -> None:
    """Leave of stage 2 what a run leaves that was killed after its last checkpoint."""
    stage = folder / TRAINING_STAGES["stage2"]
    stage.remove(MANIFEST)
    (folder / MODELS_OF_STAGES[TRAINING_STAGE2]).delete()


def _vectors_of(recipe: Recipe, model: Folder) -> list[list[float]]:
    """Vectors of some texts, by a model on a node that trains."""
    asked = dataclasses.replace(resources_for(recipe, "training"), workers=1)
    task = ray.remote(_encode).options(**asked.options)
    found: list[list[float]] = ray.get(task.remote(model.uri, recipe.model.max_document_tokens))
    return found


def _encode(model: str, max_tokens: int) -> list[list[float]]:
    from qzhou.encoder import load_encoder

    with Folder.open(model).local_copy() as local:
        encoder = load_encoder(str(local), max_tokens=max_tokens, dtype="float32")
        vectors: list[list[float]] = encoder.encode(list(PROBES)).tolist()
        return vectors


def _refuse_other(expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]], workers: int) -> None:
    lowest = min(
        sum(a * b for a, b in zip(one, other, strict=True)) for one, other in zip(expected, found, strict=True)
    )
    if lowest < SAME_VECTORS:
        raise TrainingError(
            f"a model of a checkpoint that {workers} workers have read gives other vectors than before (cosine "
            f"{lowest:.6f}). Keep training.workers as it is during a run, and report this."
        )
    log_event(f"rehearse: the last checkpoint is the same model on {workers} workers", "checkpoint_read")
