"""What a recipe's training would cost, printed before anything starts; loads neither torch nor ray."""

from __future__ import annotations

from collections.abc import Sequence

from qzhou.recipe import Recipe
from qzhou.training.cost import (
    FORWARDS,
    GPU_COUNTS,
    PEAK_FLOPS,
    ZERO_STAGES,
    StageCost,
    extra_forwards,
    gpu_hours,
    memory_per_gpu,
    recomputations,
    stage_cost,
)
from qzhou.training.lengths import texts_of
from qzhou.training.shapes import FoundShape, shape_of

GIB = 2**30
UTILISATION = 0.4  # what well-tuned training of models of this size reaches
NOT_COUNTED = (
    "padding (utilisation is that of real tokens, so padding lowers it), loading, checkpoints, what waits for the "
    "network (it grows with the GPUs; one utilisation is used for all), and the memory of activations"
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
        gpu: ``A100``, ``H100`` or ``H200``.
        utilisation: Share of the GPU's bfloat16 peak that training reaches, in (0, 1].
        mean_query_tokens: Instead of what the run's data say, or what is assumed without them.
        mean_document_tokens: The same for documents.

    Raises:
        ModelError: The backbone's size is not known here.
        RecipeError: An option is out of range.
        DataError: A stage has no dataset to draw from.
    """
    gpu = gpu.upper()
    gpu_hours(0.0, gpu=gpu, utilisation=utilisation)  # refuses what it does not know before anything is read
    found = shape_of(recipe.model.backbone)
    texts = texts_of(recipe, query_tokens=mean_query_tokens, document_tokens=mean_document_tokens)
    training = recipe.training
    retrieval = [one for one in texts.datasets if one.task == "retrieval"]
    stages = {
        "stage1": stage_cost(found.shape, retrieval, training, training.stage1),
        "stage2": stage_cost(found.shape, texts.datasets, training, training.stage2),
    }
    lines = [
        "train: estimate; nothing is trained",
        f"  backbone: {_backbone(recipe, found)}",
        f"  lengths: {texts.source}",
        f"  {_passes(recipe)}",
        *(f"  {name}: {_stage(one)}" for name, one in stages.items()),
        f"  in all: {_sum(list(stages.values()))}",
        f"  on {gpu} ({PEAK_FLOPS[gpu] / 1e12:g} TFLOP/s dense bfloat16) at an ASSUMED "
        f"utilisation of {utilisation:.0%}:",
        *_table(recipe, found, [one.flops for one in stages.values()], gpu=gpu, utilisation=utilisation),
        f"  not counted: {NOT_COUNTED}",
    ]
    print("\n".join(lines), flush=True)


def _passes(recipe: Recipe) -> str:
    extra = extra_forwards(recipe.training)
    again = [f"{name} is {'on' if is_on else 'off'}" for name, is_on in recomputations(recipe.training).items()]
    return (
        f"a step counts as {FORWARDS + extra} forward passes: one, a backward worth two, and {extra} again "
        f"({', '.join(again)})"
    )


def _backbone(recipe: Recipe, found: FoundShape) -> str:
    shape = found.shape
    return (
        f"{recipe.model.backbone}: {shape.layers} layers of width {shape.width:,}, {shape.parameters:,} parameters, "
        f"{shape.matrix_parameters:,} of them in matrix products ({found.source})"
    )


def _stage(cost: StageCost) -> str:
    steps = ", ".join(f"{count:,.0f} {task}" for task, count in cost.steps.items() if count)
    return f"{sum(cost.steps.values()):,.0f} steps ({steps}): {_sum([cost])}"


def _sum(costs: Sequence[StageCost]) -> str:
    texts, tokens = sum(one.work.texts for one in costs), sum(one.work.tokens for one in costs)
    return f"{texts:,.0f} texts, {tokens:.3g} tokens, {sum(one.flops for one in costs):.3g} FLOPs"


def _table(recipe: Recipe, found: FoundShape, flops: Sequence[float], *, gpu: str, utilisation: float) -> list[str]:
    """A line for each number of GPUs."""
    hours = [gpu_hours(one, gpu=gpu, utilisation=utilisation) for one in flops]
    names = [f"ZeRO {stage}" + "*" * (stage == recipe.training.zero_stage) for stage in ZERO_STAGES]
    times = f"{'GPUs':>4} {'GPU hours':>10} {'stage 1':>10} {'stage 2':>10} {'both':>10}"
    lines = [f"    {times}   GiB a GPU:" + "".join(f"{name:>8}" for name in names)]
    for count in GPU_COUNTS:
        sizes = [
            memory_per_gpu(
                found.shape.parameters, zero_stage=stage, gpus=count, bfloat16=recipe.model.dtype != "float32"
            )
            for stage in ZERO_STAGES
        ]
        row = f"{count:>4} {_short(sum(hours)):>10}" + "".join(
            f" {_duration(one / count):>10}" for one in (*hours, sum(hours))
        )
        lines.append(f"    {row}" + " " * 13 + "".join(f"{_short(one / GIB):>8}" for one in sizes))
    return [*lines, "    * what the recipe sets; memory is that of weights, gradients and optimizer"]


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
