"""What a recipe's training would cost, printed before anything starts; loads neither torch nor ray."""

from __future__ import annotations

from collections.abc import Sequence

from qzhou.config.recipe import Recipe
from qzhou.costs.hardware import gpu_named
from qzhou.costs.lengths import texts_of
from qzhou.costs.shapes import FoundShape, shape_of
from qzhou.costs.training import (
    GPU_COUNTS,
    ZERO_STAGES,
    Method,
    StageCost,
    expected_steps,
    gpu_hours,
    memory_of,
    method_of,
)

GIB = 2**30
UTILISATION = 0.4  # what well-tuned training of models of this size reaches
NOT_COUNTED = (
    "padding (utilisation is that of real tokens, so padding lowers it), repeated texts of a batch (encoded once), "
    "validation, loading, checkpoints, what waits for the network (it grows with the GPUs; one utilisation is used for "
    "all), and the memory of activations"
)


def print_estimate(
    recipe: Recipe,
    *,
    gpu: str = "H100",
    utilisation: float = UTILISATION,
    mean_query_tokens: float | None = None,
    mean_document_tokens: float | None = None,
) -> None:
    """Say how many tokens and operations both stages take, and hours and memory on some numbers of GPUs.

    Args:
        gpu: One of :func:`qzhou.costs.hardware.gpus`.
        utilisation: Share of the GPU's bfloat16 peak that training reaches, in (0, 1].
        mean_query_tokens: Instead of what the run's data say, or what is assumed without them.
        mean_document_tokens: The same for documents.

    Raises:
        ModelError: The backbone's size is not known here.
        RecipeError: An option is out of range.
        DataError: A stage has no dataset to draw from.
    """
    gpu, peak = gpu.upper(), gpu_named(gpu).flops
    # refuses what it does not know before anything is read
    gpu_hours(0.0, gpu=gpu, utilisation=utilisation)
    found = shape_of(recipe.model.backbone)
    teacher = shape_of(name).shape if (name := recipe.training.distillation.teacher) else None
    texts = texts_of(recipe, query_tokens=mean_query_tokens, document_tokens=mean_document_tokens)
    training, method = recipe.training, method_of(recipe.training, found.shape, teacher)
    retrieval = [one for one in texts.datasets if one.task == "retrieval"]
    stages = {
        "stage1": StageCost(expected_steps(retrieval, training, training.stage1), method),
        "stage2": StageCost(expected_steps(texts.datasets, training, training.stage2), method),
    }
    lines = [
        "training: estimate; nothing is trained",
        f"  backbone: {_backbone(recipe, found)}",
        f"  lengths: {texts.source}",
        f"  {_passes(recipe, method)}",
        *(f"  {name}: {_stage(one)}" for name, one in stages.items()),
        f"  in all: {_sum(list(stages.values()))}",
        f"  on {gpu} ({peak / 1e12:g} TFLOP/s dense bfloat16), utilisation ASSUMED to be {utilisation:.0%}:",
        *_table(recipe, method, list(stages.values()), gpu=gpu, utilisation=utilisation),
        f"  not counted: {NOT_COUNTED}",
    ]
    print("\n".join(lines), flush=True)


def _passes(recipe: Recipe, method: Method) -> str:
    """What a step computes."""
    checkpointing = (
        "one again (gradient checkpointing is on)" if method.gradient_checkpointing else ""
    )
    parts = [
        "a step is one forward pass",
        "a backward worth one and more (LoRA: weights are frozen)"
        if method.frozen
        else "a backward worth two",
        checkpointing or "none again (gradient checkpointing is off)",
        f"one of the teacher '{recipe.training.distillation.teacher}'" if method.teacher else "",
        f"and one more of what is beyond {method.activation_tokens:,} tokens a GPU (gradient caching; 'twice' below)",
    ]
    return ", ".join(part for part in parts if part)


def _backbone(recipe: Recipe, found: FoundShape) -> str:
    shape = found.shape
    return (
        f"{recipe.model.backbone}: {shape.layers} layers of width {shape.width:,}, {shape.parameters:,} parameters, "
        f"{shape.matrix_parameters:,} of them in matrix products ({found.source})"
    )


def _stage(cost: StageCost) -> str:
    tasks = dict.fromkeys((one.task for one in cost.steps if one.count), 0.0)
    for one in cost.steps:
        if one.count:
            tasks[one.task] += one.count
    steps = ", ".join(f"{count:,.0f} {task}" for task, count in tasks.items())
    return f"{sum(tasks.values()):,.0f} steps ({steps}): {_sum([cost])}"


def _sum(costs: Sequence[StageCost]) -> str:
    texts, tokens = sum(one.work.texts for one in costs), sum(one.work.tokens for one in costs)
    return f"{texts:,.0f} texts, {tokens:.3g} tokens, {sum(one.flops for one in costs):.3g} FLOPs"


def _table(
    recipe: Recipe, method: Method, stages: Sequence[StageCost], *, gpu: str, utilisation: float
) -> list[str]:
    """A line for each number of GPUs."""
    memory, own = memory_of(recipe, method), recipe.training.zero_stage
    names = [f"ZeRO {stage}" + "*" * (stage == own) for stage in ZERO_STAGES]
    times = (
        f"{'GPUs':>4} {'twice':>6} {'GPU hours':>10} {'stage 1':>10} {'stage 2':>10} {'both':>10}"
    )
    lines = [f"    {times}   GiB a GPU:" + "".join(f"{name:>8}" for name in names)]
    tokens = sum(one.work.tokens for one in stages)
    for count in GPU_COUNTS:
        hours = [gpu_hours(one.flops_on(count), gpu=gpu, utilisation=utilisation) for one in stages]
        twice = sum(one.tokens_twice(count) for one in stages) / tokens
        walls = "".join(f" {_duration(one / count):>10}" for one in (*hours, sum(hours)))
        sizes = [memory.per_gpu(zero_stage=stage, gpus=count) / GIB for stage in ZERO_STAGES]
        row = f"{count:>4} {twice:>6.1%} {_short(sum(hours)):>10}{walls}"
        lines.append(f"    {row}" + " " * 13 + "".join(f"{_short(one):>8}" for one in sizes))
    return [
        *lines,
        "    * what the recipe sets; memory is that of weights, gradients and optimizer",
    ]


def _short(number: float) -> str:
    """Three figures, whole from 100 on."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 0.01 else "<0.01"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"
