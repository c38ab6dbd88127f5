"""The details of training: what a step computes, both training stages, and time and memory by number of GPUs."""

import dataclasses
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qzhou.config.recipe import Recipe
from qzhou.estimate.assumptions import Assumptions
from qzhou.estimate.cluster_spec import DEFAULT_GPU, recipe_gpu
from qzhou.estimate.hardware import Gpu, gpu_named
from qzhou.estimate.lengths import texts_of
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import GIB
from qzhou.estimate.tables import duration, short
from qzhou.estimate.training import TrainingMemory, TrainingMethod, TrainingStageCost, expected_steps, gpu_hours
from qzhou.estimate.workload import HOUR_S

GPU_COUNTS = (8, 32, 64)
TITLES = {"stage1": "stage 1", "stage2": "stage 2"}
ZERO_STAGES = (0, 1, 2, 3)
NOT_COUNTED = (
    "padding (none where texts are packed, on GPUs in 16 bits; else it lowers the utilisation, which is that of real "
    "tokens), repeated texts of a batch (encoded once), validation, loading, checkpoints"
)


def training_details(recipe: Recipe, options: PlanOptions) -> RenderableType:
    """Tokens and operations of both stages, their time and memory on some numbers of GPUs.

    Raises:
        ModelError: The size of the backbone is not known.
        RecipeError: An option is out of range.
        DataError: A training stage has no dataset to draw from.
    """
    gpu = gpu_named(options.gpu or recipe_gpu(recipe) or DEFAULT_GPU)
    assumed = Assumptions.of(options)
    utilisation = assumed["train_utilisation"]
    method, training = TrainingMethod.of(recipe), recipe.training
    texts = texts_of(recipe, options)
    stages = {
        TITLES[name]: TrainingStageCost(expected_steps(texts.datasets, training, getattr(training, name)), method)
        for name in training.stages
    }
    shape = method.shape
    lines = [
        "training: details; nothing is trained",
        f"  backbone: {recipe.model.backbone}: {shape.layers} layers of width {shape.width:,}, "
        f"{shape.parameters:,} parameters, {shape.matrix_parameters:,} of them in matrix products ({shape.source})",
        f"  lengths: {texts.source}",
        f"  {_passes(recipe, method)}",
        *(f"  {name}: {_steps(one)}" for name, one in stages.items()),
        f"  in all: {_sum(*stages.values())}",
        f"  on {gpu.name} ({gpu.flops / 1e12:g} TFLOP/s dense bfloat16), ASSUMED: {_utilisation(stages, utilisation)}; "
        f"{short(assumed['all_reduce_bytes_per_s'] / 1e9)} GB/s between GPUs:",
    ]
    counts = sorted({*GPU_COUNTS, options.gpus or GPU_COUNTS[0]})
    return Group(
        *map(Text, lines),
        _by_gpus(recipe, stages, gpu, assumed, counts),
        Text(
            "  * the recipe's ZeRO stage; memory is that of weights, gradients, optimizer and activations; hours hold "
            "what GPUs exchange ('sent'), as if they computed nothing meanwhile"
        ),
        Text(f"  not counted: {NOT_COUNTED}"),
    )


def _passes(recipe: Recipe, method: TrainingMethod) -> str:
    """A clause that says what a step computes."""
    parts = ["a step is one forward pass", "a backward pass worth two"]
    if method.frozen:
        parts[1] = "a backward pass worth one and more (LoRA: weights are frozen)"
    recomputed, is_on = ("one again", "on") if method.gradient_checkpointing else ("none again", "off")
    parts.append(f"{recomputed} (gradient checkpointing is {is_on})")
    if method.teacher:
        parts.append(f"one of the teacher '{recipe.training.distillation.teacher}'")
    parts.append(
        f"and one more for the tokens beyond {method.activation_tokens:,} on a GPU (gradient caching; 'twice' below)"
    )
    return ", ".join(parts)


def _steps(cost: TrainingStageCost) -> str:
    tasks: dict[str, float] = {}
    for one in cost.steps:
        tasks[one.task] = tasks.get(one.task, 0.0) + one.count
    steps = ", ".join(f"{count:,.0f} {task}" for task, count in tasks.items() if count)
    return f"{sum(tasks.values()):,.0f} steps ({steps}): {_sum(cost)}"


def _sum(*costs: TrainingStageCost) -> str:
    texts, tokens = sum(one.texts.texts for one in costs), sum(one.texts.tokens for one in costs)
    return f"{texts:,.0f} texts, {tokens:.3g} tokens, {sum(one.flops for one in costs):.3g} FLOPs"


def _utilisation(stages: Mapping[str, TrainingStageCost], hfu: float) -> str:
    """The utilisation with recomputation counted, and without."""
    first = next(iter(stages.values()))
    plain = dataclasses.replace(first.method, gradient_checkpointing=False)
    mfu = hfu * plain.flops(first.texts) / first.flops if first.flops else hfu
    return f"utilisation {hfu:.0%} (HFU; MFU {mfu:.0%})"


def _by_gpus(
    recipe: Recipe, costs: Mapping[str, TrainingStageCost], gpu: Gpu, assumed: Assumptions, counts: list[int]
) -> Table:
    """A row for each number of GPUs."""
    stages = list(costs.values())
    memory, own = TrainingMemory.of(recipe, stages[0].method), recipe.training.zero_stage
    grid = Table(box=None, pad_edge=True)
    for name in ("GPUs", "twice", "sent", "GPU hours", *costs, "in all", "GiB a GPU:"):
        grid.add_column(name, justify="right")
    for zero_stage in ZERO_STAGES:
        grid.add_column(f"ZeRO {zero_stage}" + "*" * (zero_stage == own), justify="right")
    tokens = sum(one.texts.tokens for one in stages)
    for count in counts:
        sending = [
            one.sent_bytes(count, zero_stage=own) / assumed["all_reduce_bytes_per_s"] / HOUR_S for one in stages
        ]
        utilisation = assumed["train_utilisation"]
        hours = [
            gpu_hours(one.flops_on(count), gpu=gpu, utilisation=utilisation) + count * sent
            for one, sent in zip(stages, sending, strict=True)
        ]
        twice = sum(one.tokens_twice(count) for one in stages) / tokens
        times = [duration(one / count * HOUR_S) for one in (*hours, sum(hours))]
        largest = max(one.largest_step for one in stages) / count
        activations = stages[0].method.activation_bytes(largest)
        sizes = [(memory.per_gpu(zero_stage=one, gpus=count) + activations) / GIB for one in ZERO_STAGES]
        sent = f"{count * sum(sending) / sum(hours):.1%}"
        grid.add_row(str(count), f"{twice:.1%}", sent, short(sum(hours)), *times, "", *map(short, sizes))
    return grid
