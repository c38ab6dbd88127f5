"""The training stages on Ray Train: a worker per rank, checkpoints through ``ray.train.report``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from qzhou.cluster import our_error, session
from qzhou.encoder.backbone import Backbone, choose_device, choose_dtype, load_backbone
from qzhou.encoder.export import parity, save_sentence_transformer
from qzhou.errors import DataError, QzhouError, TrainingError
from qzhou.recipe import Recipe
from qzhou.records import EXAMPLE_TYPES, TASKS, Example, Manifest, Task
from qzhou.runs import Run
from qzhou.storage import Folder, read_records
from qzhou.training.batches import TrainingSet
from qzhou.training.deepspeed_engine import DeepSpeedEngine
from qzhou.training.loop import Metrics, train_stage
from qzhou.training.plan import BatchPlan, DatasetSize

StageName = Literal["stage1", "stage2"]
METRICS = "metrics.jsonl"
PARITY_COSINE = 0.9999
PARITY_TEXTS = ("Null", "one line", "a longer text that says several things, one after the other. " * 40)
START_TIMEOUT_S = "900"  # Ray's 60 s is too short while nodes come up or DeepSpeed compiles


def train(recipe: Recipe) -> Manifest:
    """Both stages: retrieval first, then everything.

    Raises:
        DataError: Mining has not finished, or there is nothing to train on.
        TrainingError: A stage failed for good; its checkpoints are kept and the same job continues.
    """
    run = Run.open(recipe)
    mined = run.manifest("mine").fingerprint
    common = recipe.training.model_dump(exclude={"stage1", "stage2", "save_every_steps", "max_failures"})
    shared = {
        "training": common,
        "model": recipe.model.model_dump(),
        "prompts": {dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets},
        "seed": recipe.run.seed,
    }
    first = run.stage(
        "train/stage1",
        lambda folder: _work(run, folder, "stage1"),
        settings=shared | {"stage": recipe.training.stage1.model_dump()},
        inputs={"mine": mined},
        rooms=("training", "encoder"),
    )
    return run.stage(
        "train/stage2",
        lambda folder: _work(run, folder, "stage2"),
        settings=shared | {"stage": recipe.training.stage2.model_dump()},
        inputs={"mine": mined, "stage1": first.fingerprint},
        rooms=("training", "encoder"),
    )


def export(recipe: Recipe) -> Manifest:
    """Put the trained model where people and servers look for it, and check it against sentence-transformers.

    Raises:
        DataError: Training has not finished.
        TrainingError: The exported folder does not give the encoder's vectors.
    """
    run = Run.open(recipe)
    return run.stage(
        "model",
        lambda folder: _export(run, folder),
        settings={"model": recipe.model.model_dump(), "prompts": recipe.prompts},
        inputs={"stage2": run.manifest("train/stage2").fingerprint},
        rooms=("encoder",),
    )


def _work(run: Run, folder: Folder, stage: StageName) -> dict[str, int]:
    recipe = run.recipe
    folders = {"run_folder": run.folder.uri, "stage_folder": folder.uri}
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it repeats each line that workers print
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    with session():
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"recipe": recipe, "stage": stage, **folders},
            torch_config=TorchConfig(timeout_s=1800),
            scaling_config=ray.train.ScalingConfig(num_workers=recipe.training.workers, use_gpu=recipe.cluster.gpu),
            run_config=ray.train.RunConfig(
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                name="checkpoints",  # the same name again continues from its latest checkpoint
                storage_path=folder.uri,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=recipe.training.max_failures),
            ),
        )
        try:
            with _interruptible():
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            if our_error(error):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise TrainingError(
                f"{stage} failed: {lines[-1].strip()}\n       The workers' traceback is above. "
                "The same job continues from the last checkpoint."
            ) from error
    return {"steps": int(result.metrics["step"])}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as everywhere else: Ray Train's own handler ends the process without a word, and stays for good."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _export(run: Run, folder: Folder) -> dict[str, int]:
    recipe = run.recipe
    with (run.folder / "train" / "stage2" / "model").local_copy() as trained:
        folder.upload(trained)
        found = load_backbone(str(trained), dtype=torch.float32)
        lowest = parity(
            trained, found.model, found.tokenizer, list(PARITY_TEXTS), max_tokens=recipe.model.max_document_tokens
        )
    if lowest < PARITY_COSINE:
        raise TrainingError(
            f"{folder.uri}: SentenceTransformer gives other vectors than the encoder (lowest cosine {lowest:.6f}, "
            f"{PARITY_COSINE} needed). The weights are safe in train/stage2/model."
        )
    print(f"model: SentenceTransformer and the encoder agree in float32 (lowest cosine {lowest:.6f})", flush=True)
    return {"dimensions": int(found.model.backbone.config.hidden_size)}


def _rank(settings: dict[str, Any]) -> None:
    """What each worker does; an error of ours is left to the driver's one message."""
    try:
        _train_rank(settings)
    except QzhouError:
        logging.getLogger("ray.train.v2._internal.util").disabled = True  # it prints every traceback
        raise


def _train_rank(settings: dict[str, Any]) -> None:
    """Load, continue from a checkpoint if there is one, train, write the model."""
    recipe: Recipe = settings["recipe"]
    name: StageName = settings["stage"]
    run_folder, folder = Folder.open(settings["run_folder"]), Folder.open(settings["stage_folder"])
    data = load_training_sets(recipe, run_folder, retrieval_only=name == "stage1")
    plan = BatchPlan(
        [DatasetSize(one.name, recipe.dataset(one.name).task, len(one.examples)) for one in data.values()],
        getattr(recipe.training, name),
        alpha=recipe.training.dataset_alpha,
        seed=recipe.run.seed + (0 if name == "stage1" else 1),
    )
    with _starting_model(recipe, run_folder, name) as spec:
        device = choose_device(None if recipe.cluster.gpu else "cpu")
        found = _load(recipe, spec, choose_dtype(recipe.model.dtype, device))
        engine = DeepSpeedEngine(found.model.to(device), found.tokenizer, recipe.training, device)
        first_step = _continue(engine, name)
        log = _MetricsLog(folder, first_step) if engine.rank == 0 else None
        train_stage(
            engine,
            plan,
            data,
            recipe,
            label=name,
            first_step=first_step,
            save=lambda step, metrics: _save(engine, log, step, metrics),
        )
        state = engine.full_state()
        if engine.rank == 0:
            _write_model(recipe, spec, state, folder / "model")


def _load(recipe: Recipe, spec: str, dtype: torch.dtype) -> Backbone:
    return load_backbone(spec, pooling=recipe.model.pooling, attention=recipe.model.attention, dtype=dtype)


@contextmanager
def _starting_model(recipe: Recipe, run_folder: Folder, name: StageName) -> Iterator[str]:
    """Stage 1 starts from the backbone, stage 2 from what stage 1 made."""
    if name == "stage1":
        yield recipe.model.backbone
        return
    with (run_folder / "train" / "stage1" / "model").local_copy() as place:
        yield str(place)


def _continue(engine: DeepSpeedEngine, name: StageName) -> int:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as place:
        step = engine.load(Path(place))
    print(f"train: {name}: continues after step {step}", flush=True)
    return step


def _save(engine: DeepSpeedEngine, log: _MetricsLog | None, step: int, metrics: list[Metrics]) -> None:
    if log is not None:
        log.add(metrics)
    place = tempfile.mkdtemp()  # Ray uploads it and removes it
    engine.save(Path(place), step)
    ray.train.report(
        {"step": step, "loss": metrics[-1]["loss"]},
        checkpoint=ray.train.Checkpoint.from_directory(place),
        checkpoint_dir_name=f"step_{step:06d}",
        delete_local_checkpoint_after_upload=True,
    )


def _write_model(recipe: Recipe, spec: str, state: dict[str, Tensor], target: Folder) -> None:
    """Full weights into a sentence-transformers folder."""
    found = _load(recipe, spec, getattr(torch, recipe.model.saved_dtype))
    found.model.load_state_dict(found.model.state_dict() | state)  # buffers are not trained
    if recipe.training.loss.matryoshka_dimensions:  # the widths that an endpoint may cut to
        found.model.backbone.config.matryoshka_dimensions = list(recipe.training.loss.matryoshka_dimensions)
    with tempfile.TemporaryDirectory() as temporary:
        save_sentence_transformer(
            found.model,
            found.tokenizer,
            Path(temporary),
            max_tokens=recipe.model.max_document_tokens,
            prompts=recipe.prompts,
        )
        target.upload(Path(temporary))


def load_training_sets(recipe: Recipe, run_folder: Folder, *, retrieval_only: bool) -> dict[str, TrainingSet]:
    """The mined examples of every dataset, in the recipe's order.

    Raises:
        DataError: There are none.
    """
    tasks: tuple[Task, ...] = ("retrieval",) if retrieval_only else TASKS
    examples: dict[str, list[Example]] = {}
    for task in tasks:
        parent = run_folder / "mine" / "examples" / task
        for name in parent.folders():
            examples[name] = list(read_records(parent / name, EXAMPLE_TYPES[task]))
    sets = {
        dataset.name: TrainingSet.of(dataset.name, dataset.prompt, examples[dataset.name])
        for dataset in recipe.datasets
        if dataset.name in examples
    }
    if not sets:
        raise DataError(
            f"{run_folder.uri}/mine/examples holds no example to train on ({', '.join(tasks)}): all rows were dropped "
            "or held out.\n       Lower held_out_fraction of a dataset, or see transform/dropped for the reasons."
        )
    return sets


class _MetricsLog:
    """``metrics.jsonl`` of a stage: one line a step, written whole so that any filesystem will do."""

    def __init__(self, folder: Folder, first_step: int) -> None:
        self.folder = folder
        before = folder.read_bytes(METRICS).decode().splitlines() if folder.exists(METRICS) else []
        self.lines = [line for line in before if json.loads(line)["step"] < first_step]

    def add(self, metrics: list[Metrics]) -> None:
        self.lines += [json.dumps(one) for one in metrics]
        self.folder.write_bytes(METRICS, ("\n".join(self.lines) + "\n").encode())
