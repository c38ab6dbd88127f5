"""What a training run takes: tokens, operations, GPU hours, memory. Pure arithmetic, no torch.

Letters in this file: P weights in matrix products, L layers, A width of attention (heads * head width), T tokens of a
text.

Operations of a text. A product of a [T, m] and an [m, n] matrix is 2 T m n operations, a multiplication and an addition
for each; all weight matrices together are 2 P T. In each layer the queries meet the keys of the same text, [T, A] with
[A, T], and the shares found meet the values, [T, T] with [T, A]: 4 A T^2. Every token sees every other; where one does
not, in a causal model, the hidden half is computed all the same as soon as there is padding to mask. So

    forward = 2 P T + 4 L A T^2

The backward pass makes two products of each, for the input's gradient and for the weight's: three forwards in all,
6 P T + 12 L A T^2. Gradient checkpointing computes the forward pass again on the way back; gradient caching (GradCache,
arXiv:2101.06983) computes it once more before, to know the loss. Softmax, norms, optimizer and loss are left out: they
wait for memory, and that is part of what utilisation means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qzhou.errors import DataError, RecipeError
from qzhou.learning import StageSection, TrainingSection
from qzhou.records import TASKS, Task
from qzhou.training.plan import SHARE_UNIT
from qzhou.training.shapes import Shape

GPU_COUNTS = (8, 32, 64)
# Dense bfloat16 operations a second, from the makers' data sheets (the larger figures there are for sparse matrices).
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
ZERO_STAGES = (0, 1, 2, 3)
FORWARDS = 3  # a step's, counted in forward passes: one forward, and a backward worth two


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of some texts, prompts included, after truncation.

    Attributes:
        mean: Tokens of a text.
        mean_square: Mean of their squares, which is what attention costs; at least ``mean ** 2``.
    """

    mean: float
    mean_square: float

    @classmethod
    def always(cls, tokens: float) -> Length:
        """All texts of one length: what is left to assume where only a mean is known."""
        return cls(tokens, tokens * tokens)

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Length:
        """Of some texts that were counted; at least one."""
        return cls(sum(tokens) / len(tokens), sum(one * one for one in tokens) / len(tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTexts:
    """One dataset as its cost depends on it.

    Attributes:
        rows: Training examples, or None where nobody has counted them yet.
        queries: Length of retrieval queries; of other tasks not used.
        documents: Length of everything else.
        negatives: Negatives that an example brings to a step, on average.
    """

    name: str
    task: Task
    rows: int | None
    queries: Length
    documents: Length
    negatives: float


@dataclass(frozen=True, slots=True)
class Work:
    """Texts, their tokens, and the sum of their lengths' squares."""

    texts: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.texts + other.texts, self.tokens + other.tokens, self.squares + other.squares)

    def times(self, steps: float) -> Work:
        return Work(self.texts * steps, self.tokens * steps, self.squares * steps)

    @classmethod
    def of(cls, texts: float, length: Length) -> Work:
        return cls(texts, texts * length.mean, texts * length.mean_square)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage takes.

    Attributes:
        steps: By task; fractions are expectations.
        flops: Operations, recomputation included.
    """

    steps: dict[Task, float]
    work: Work
    flops: float


def recomputations(training: TrainingSection) -> dict[str, bool]:
    """What computes a forward pass again, and whether the recipe does it."""
    return {"gradient checkpointing": training.gradient_checkpointing}


def extra_forwards(training: TrainingSection) -> int:
    """Forward passes of a step besides the first one."""
    return sum(recomputations(training).values())


def stage_cost(
    shape: Shape, datasets: Sequence[DatasetTexts], training: TrainingSection, stage: StageSection
) -> StageCost:
    """Tokens and operations of a stage.

    Args:
        datasets: Those that the stage draws from.

    Raises:
        DataError: The stage draws from retrieval or from other datasets, and there are none.
    """
    steps, work = dict.fromkeys(TASKS, 0.0), Work()
    for dataset, drawn in expected_steps(datasets, stage, alpha=training.dataset_alpha):
        steps[dataset.task] += drawn
        work += step_work(dataset, stage).times(drawn)
    return StageCost(steps, work, flops_of(shape, work, extra=extra_forwards(training)))


def expected_steps(
    datasets: Sequence[DatasetTexts], stage: StageSection, *, alpha: float
) -> list[tuple[DatasetTexts, float]]:
    """How many steps of a stage fall to each dataset, as :class:`qzhou.training.plan.BatchPlan` draws them.

    Where rows are not known, the datasets of a group are taken as equally large.
    """
    share = round(stage.retrieval_share * SHARE_UNIT)
    retrieval = stage.steps * share // SHARE_UNIT  # the plan keeps to the share exactly
    found = []
    for count, group, kind in (
        (retrieval, [one for one in datasets if one.task == "retrieval"], "retrieval"),
        (stage.steps - retrieval, [one for one in datasets if one.task != "retrieval"], "pair or classification"),
    ):
        if count and not group:
            raise DataError(f"retrieval_share is {stage.retrieval_share}, but there are no {kind} examples to train on")
        weights = [1.0 if one.rows is None else float(one.rows) ** alpha for one in group]
        found += [(one, count * weight / sum(weights)) for one, weight in zip(group, weights, strict=True)]
    return found


def step_work(dataset: DatasetTexts, stage: StageSection) -> Work:
    """The texts that one step on a dataset encodes, over all workers."""
    size = stage.cosent_batch_size if dataset.task == "pair" else stage.batch_size
    size = size if dataset.rows is None else min(size, dataset.rows)
    if dataset.task == "pair":
        return Work.of(2 * size, dataset.documents)
    if dataset.task == "classification":
        return Work.of(size * (2 + dataset.negatives), dataset.documents)
    return Work.of(size, dataset.queries) + Work.of(size * (1 + dataset.negatives), dataset.documents)


def flops_of(shape: Shape, work: Work, *, extra: int) -> float:
    """Operations of training on some texts (see the module's text)."""
    forward = 2 * shape.matrix_parameters * work.tokens + 4 * shape.layers * shape.attention_width * work.squares
    return (FORWARDS + extra) * forward


def gpu_hours(flops: float, *, gpu: str, utilisation: float) -> float:
    """Hours that one GPU would need.

    Args:
        gpu: A key of :data:`PEAK_FLOPS`.
        utilisation: Share of the peak that training reaches, in (0, 1].

    Raises:
        RecipeError: No such GPU is known, or the share is none.
    """
    if gpu not in PEAK_FLOPS:
        raise RecipeError(f"command line: --gpu is '{gpu}'; known: {', '.join(PEAK_FLOPS)}")
    if not 0 < utilisation <= 1:
        raise RecipeError(
            f"command line: --utilisation is {utilisation:g}; it is a share above 0 and at most 1, like 0.4"
        )
    return flops / (PEAK_FLOPS[gpu] * utilisation) / 3600


def memory_per_gpu(parameters: int, *, zero_stage: int, gpus: int, bfloat16: bool) -> float:
    """Bytes of weights, gradients and optimizer on each GPU; activations come on top.

    In bfloat16 a weight has 2 bytes, its gradient 2, and the optimizer 12: a float32 copy and Adam's two moments. In
    float32 it has 4, 4 and 8, for the weight is its own copy. ZeRO stage 1 shards the optimizer over the GPUs, stage 2
    the gradients too, stage 3 the weights too (arXiv:1910.02054).
    """
    sizes = (2, 2, 12) if bfloat16 else (4, 4, 8)  # what stage 3, 2 and 1 begin to shard
    whole = [size for size, sharded_from in zip(sizes, (3, 2, 1), strict=True) if zero_stage < sharded_from]
    return parameters * (sum(whole) + (sum(sizes) - sum(whole)) / gpus)
