"""What one rank of a stage does, from loading a model to writing the trained one; runs with or without Ray."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qzhou.config.recipe import Recipe
from qzhou.config.training import TrainingStageName
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import library_for, this_processor
from qzhou.encoder.backbone import (
    Backbone,
    EmbeddingModel,
    choose_device,
    choose_dtype,
    is_causal,
    load_recipe_model,
)
from qzhou.encoder.cpu.onednn import multiply_with_onednn
from qzhou.encoder.export import save_sentence_transformer
from qzhou.errors import TrainingError
from qzhou.run.files import MANIFEST, MODELS_OF_STAGES, TRAINING_STAGE1, TRAINING_STAGES
from qzhou.telemetry.events import log_event
from qzhou.training.backbone_mix import mix_best, mix_with_backbone
from qzhou.training.batch_plan import BatchPlan, DatasetSize
from qzhou.training.best_model import BestModel
from qzhou.training.deepspeed_engine import DeepSpeedEngine
from qzhou.training.distillation import Teacher
from qzhou.training.engine import Engine
from qzhou.training.examples import TrainingSet, training_sets
from qzhou.training.loader import TrainingStage
from qzhou.training.loop import train_stage
from qzhou.training.lora import add_adapters, merge_adapters
from qzhou.training.memory_budget import Trial, fit_budgets, halve_budgets
from qzhou.training.node_copies import cache_folder, folder_of_node
from qzhou.training.recorder import StageRecorder
from qzhou.training.validation import Validation, ValidationSet, held_out_sets, set_aside_sets

MANY_EPOCHS = 20.0


@dataclass(frozen=True, slots=True)
class Resume:
    """What earlier attempts at a stage left.

    Attributes:
        checkpoint: The last one, on this machine.
        halvings: How often ranks ran out of memory.
    """

    checkpoint: Path | None = None
    halvings: int = 0


def train_worker(
    recipe: Recipe,
    name: TrainingStageName,
    run_folder: Folder,
    *,
    mined: str,
    make_recorder: Callable[[Recipe, Folder, Engine, int], StageRecorder],
    resume: Resume,
) -> None:
    """Train one rank of a stage, from any checkpoint; rank 0 writes the model at the end.

    The process group of the ranks must be there already.

    ``mined`` says which making of the mined examples to train on, ``make_recorder`` how
    checkpoints are kept, and ``resume`` what earlier attempts left.

    Raises:
        DataError: There is nothing to train on.
        TrainingError: The loss is not finite, or the checkpoint cannot be continued.
    """
    checkpoint = resume.checkpoint
    data = training_sets(recipe, run_folder, mined=mined, retrieval_only=name == "stage1")
    plan = _batch_plan(recipe, name, data)
    device = choose_device(None if recipe.cluster.gpu else "cpu")
    dtype = choose_dtype(recipe.model.dtype, device)
    with _starting_model(recipe, run_folder, name, mined) as spec:
        found = load_recipe_model(recipe.model, spec=spec, dtype=dtype)
        _refuse_soft_mask(recipe, name, found)
        engine, teacher = _engine(recipe, found, device, resume), _teacher(recipe, device, dtype)
        first_step = engine.load(checkpoint) if checkpoint is not None else 0
        longest = min(recipe.model.max_document_tokens, found.tokenizer.model_max_length)
        _fit_memory(engine, recipe, name, longest, resume)
        if engine.rank == 0:
            announce(name, plan, None if checkpoint is None else first_step)
        folder, write = run_folder / TRAINING_STAGES[name], partial(write_model, recipe, name, spec)
        validation = _validation(recipe, name, run_folder, data, found.tokenizer, engine)
        chooses = recipe.training.select == "best" and validation is not None
        best = BestModel(name, folder, recipe.training, write) if chooses else None
        stage = TrainingStage(
            name,
            plan,
            data,
            recipe,
            found.tokenizer,
            teacher=teacher,
            validate=partial(validation, engine) if validation else None,
            best=best,
        )
        recorder = make_recorder(recipe, folder, engine, first_step)
        if not train_stage(stage, engine, recorder, first_step=first_step):
            return  # stopped
        target = run_folder / MODELS_OF_STAGES[TRAINING_STAGES[name]]
        state = {} if best else engine.full_state()
        if engine.rank == 0 and best and validation:
            shares = getattr(recipe.training, name).backbone_shares
            best.keep(target, partial(_write_best_mix, recipe, name, validation.sets) if shares else None)
        elif engine.rank == 0:
            write(state, target)


def _validation(
    recipe: Recipe,
    name: TrainingStageName,
    run_folder: Folder,
    data: Mapping[str, TrainingSet],
    tokenizer: Any,
    engine: Engine,
) -> Validation | None:
    """What is validated on: held-out rows, or those that were set aside to choose weights by."""
    if not recipe.training.validate_every_steps:
        return None
    if recipe.training.select == "last":
        return Validation.of(held_out_sets(recipe, run_folder), recipe, tokenizer, engine)
    for one in data.values() if engine.rank == 0 else ():
        line = (
            f"training: {name}: {one.name}: {len(one.set_aside):,} rows are set aside to choose weights by, and "
            f"{one.left_out - len(one.set_aside):,} that resemble some are left out; {one.rows:,} are trained on"
        )
        log_event(line, "set_aside", dataset=one.name, rows=len(one.set_aside), left_out=one.left_out)
    found = Validation.of(set_aside_sets(data), recipe, tokenizer, engine)
    if found is None and engine.rank == 0:
        line = (
            f"training: {name}: WARNING: training.select is 'best', and no dataset has the hundred rows of which "
            "ten can be set aside to choose by: the weights of the last step are kept, unmixed"
        )
        log_event(line, "nothing_to_choose_by", level="warning")
    return found


def _engine(recipe: Recipe, found: Backbone, device: torch.device, resume: Resume) -> DeepSpeedEngine:
    """A model on its device with an optimizer, which the state of a checkpoint fits."""
    model = add_adapters(found.model, recipe.training.lora).to(device)
    library = library_for(recipe.model.arithmetic, this_processor())
    if device.type == "cpu" and library == "onednn":
        multiply_with_onednn(model)
    return DeepSpeedEngine(model, found.tokenizer, recipe.training, device, checkpoint=resume.checkpoint)


def _teacher(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Teacher | None:
    spec = recipe.training.distillation.teacher
    if not spec:
        return None
    return Teacher.load(spec, attention=recipe.model.attention_of.get(spec), device=device, dtype=dtype)


def _fit_memory(
    engine: DeepSpeedEngine, recipe: Recipe, name: TrainingStageName, longest: int, resume: Resume
) -> None:
    """Give an engine budgets that fit into a GPU's memory, when all else that lies there is there.

    A CPU's memory is not tried, because the system ends whoever takes too much.
    """
    for _ in range(resume.halvings):
        halve_budgets(engine)
    # with ZeRO 2 and 3 the ranks exchange weights or gradients in every pass, and one that fails would leave the others
    # waiting: there the ranks are started again with half
    if engine.device.type == "cuda" and recipe.training.zero_stage < 2:
        soft = 0.5 if getattr(recipe.training, name).soft_mask_steps else None
        trial = Trial(longest, engine.later_bytes, soft)
        fit_budgets(engine, trial, engine.device)


def _batch_plan(recipe: Recipe, name: TrainingStageName, data: Mapping[str, TrainingSet]) -> BatchPlan:
    return BatchPlan(
        [DatasetSize(one.name, one.task, one.rows) for one in data.values()],
        getattr(recipe.training, name),
        alpha=recipe.training.sampling_alpha,
        seed=recipe.training_seed + (0 if name == "stage1" else 1),
        grouping=recipe.training.grouping,
    )


def announce(name: TrainingStageName, plan: BatchPlan, continues_after: int | None) -> None:
    """Say where a stage goes on or, where it begins, which rows it reads again and again: that may do harm."""
    if continues_after is not None:
        log_event(f"training: {name}: continues after step {continues_after}", "continued", step=continues_after)
        return
    rows = {one.name: one.rows for one in plan.datasets}
    for dataset, epochs in plan.epochs.items():
        if epochs > MANY_EPOCHS:
            line = (
                f"training: {name}: WARNING: the {rows[dataset]:,} rows of {dataset} are read {epochs:.0f} times each, "
                f"and may be learned by heart: take fewer steps (training.{name}.steps) or more rows"
            )
            log_event(line, "many_epochs", level="warning", dataset=dataset, epochs=epochs)


def _refuse_soft_mask(recipe: Recipe, name: TrainingStageName, found: Backbone) -> None:
    """A soft mask needs attention that is bidirectional at the end."""
    steps = getattr(recipe.training, name).soft_mask_steps
    if steps and is_causal(found.model.backbone):
        raise TrainingError(
            f"training.{name}.soft_mask_steps is {steps}, and the attention of '{recipe.model.backbone}' stays causal. "
            'Set model.attention = "bidirectional", or soft_mask_steps to 0.'
        )


@contextmanager
def _starting_model(recipe: Recipe, run_folder: Folder, name: TrainingStageName, mined: str) -> Iterator[str]:
    """The first stage starts from the backbone, stage 2 from the model of stage 1."""
    if name == recipe.training.stages[0]:
        yield recipe.model.backbone
        return
    stage1 = Manifest(**(run_folder / TRAINING_STAGE1).read_json(MANIFEST))
    place = cache_folder(run_folder, mined) / f"stage1-{stage1.execution_id}"
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    with folder_of_node(run_folder / MODELS_OF_STAGES[TRAINING_STAGE1], place, removes=is_first) as local:
        yield str(local)


def write_model(
    recipe: Recipe, name: TrainingStageName, spec: str, state: dict[str, Tensor], target: Folder
) -> None:
    """Write a stage's model as a sentence-transformers folder.

    Args:
        recipe: Of the run.
        name: The stage.
        spec: The model that the stage began with.
        state: What was trained, by name; adapters where there are some. Empty: the model as the stage began with it.
        target: The folder.
    """
    found = load_recipe_model(recipe.model, spec=spec, dtype=torch.float32)
    model = add_adapters(found.model, recipe.training.lora)
    model.load_state_dict(model.state_dict() | state)  # buffers are not trained
    model = merge_adapters(model)
    if share := getattr(recipe.training, name).backbone_share:
        mix_with_backbone(recipe, model, share)
        line = (
            f"training: {name}: the model is {1 - share:g} of the trained weights and {share:g} of the backbone's"
        )
        log_event(line, "mixed_with_backbone", share=share)
    _save(recipe, model, found.tokenizer, target)


def _save(recipe: Recipe, model: EmbeddingModel, tokenizer: Any, target: Folder) -> None:
    model = model.to("cpu", getattr(torch, recipe.model.saved_dtype))
    if widths := list(recipe.training.loss.matryoshka_dimensions):
        # an endpoint may cut vectors to these
        model.backbone.config.matryoshka_dimensions = widths
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        max_tokens = recipe.model.max_document_tokens
        save_sentence_transformer(model, tokenizer, folder, max_tokens=max_tokens, prompts=recipe.prompts)
        target.upload(folder)


def _write_best_mix(
    recipe: Recipe, name: TrainingStageName, sets: Sequence[ValidationSet], source: Folder, target: Folder
) -> None:
    """Write a trained model with the share of the backbone's weights that validates best (``backbone_shares``)."""
    with source.local_copy() as place:
        found = load_recipe_model(recipe.model, spec=str(place), dtype=torch.float32)
    shares = getattr(recipe.training, name).backbone_shares
    share, scores = mix_best(recipe, found, sets, shares)
    tried = ", ".join(f"{score:.4f} with {one:g}" for one, score in scores.items())
    line = f"training: {name}: {share:g} of the weights are the backbone's (validation {tried})"
    log_event(line, "mixed_with_backbone", share=share, scores={f"{one:g}": score for one, score in scores.items()})
    _save(recipe, found.model, found.tokenizer, target)
