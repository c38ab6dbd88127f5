"""What a training run takes: tokens, operations, GPU hours, memory. Pure arithmetic, no torch.

Letters in this file: P weights in matrix products, L layers, A width of attention (heads * head width), T tokens of a
text.

Operations of a text. A product of a [T, m] and an [m, n] matrix is 2 T m n operations, a multiplication and an addition
for each; all weight matrices together are 2 P T. In each layer the queries meet the keys of the same text, [T, A] with
[A, T], and the shares found meet the values, [T, T] with [T, A]: 4 A T^2. Every token sees every other; where one does
not, in a causal model, the hidden half is computed all the same as soon as there is padding to mask. So

    forward = 2 P T + 4 L A T^2

The backward pass makes two products of each, for the input's gradient and for the weight's: three forwards in all,
6 P T + 12 L A T^2. Frozen weights (LoRA) need the first of the two only, 2 P T less. Gradient checkpointing computes
the forward pass again on the way back. Gradient caching (GradCache, arXiv:2101.06983) computes it once more before, for
the texts whose activations a GPU does not hold, to know the loss; the more GPUs share a batch, the fewer they are.
Softmax, norms, adapters, optimizer and loss are left out: they wait for memory, and that is part of what utilisation
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qzhou.config.recipe import Recipe
from qzhou.config.training import SHARE_UNIT, StageSection, TrainingSection
from qzhou.costs.hardware import gpu_named
from qzhou.costs.shapes import Shape
from qzhou.data.records import Task
from qzhou.errors import DataError, RecipeError

GPU_COUNTS = (8, 32, 64)
ZERO_STAGES = (0, 1, 2, 3)
HELD_TOKENS = 32_768  # what training.engine holds on a GPU by default; that module loads torch


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


@dataclass(frozen=True, slots=True)
class Work:
    """Texts, their tokens, and the sum of their lengths' squares."""

    texts: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.texts + other.texts, self.tokens + other.tokens, self.squares + other.squares
        )

    def times(self, count: float) -> Work:
        return Work(self.texts * count, self.tokens * count, self.squares * count)

    @classmethod
    def of(cls, texts: float, length: Length) -> Work:
        return cls(texts, texts * length.mean, texts * length.mean_square)


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

    @property
    def row(self) -> Work:
        """The texts that are encoded for one example."""
        if self.task == "pair":
            return Work.of(2, self.documents)
        if self.task == "classification":
            return Work.of(2 + self.negatives, self.documents)
        return Work.of(1, self.queries) + Work.of(1 + self.negatives, self.documents)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one kind.

    Attributes:
        task: Theirs, or ``mixed``.
        count: How many; a fraction is an expectation.
        work: Texts of one of them, over all GPUs.
    """

    task: str
    count: float
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a step is computed, as far as operations depend on it.

    Attributes:
        teacher: Model that encodes the same texts, for distillation.
        activation_tokens: Tokens whose activations a GPU holds; the others are encoded twice.
    """

    shape: Shape
    teacher: Shape | None = None
    gradient_checkpointing: bool = False
    frozen: bool = False
    activation_tokens: int = HELD_TOKENS

    def encoded_twice(self, work: Work, *, gpus: int) -> float:
        """Share of a step's tokens that gradient caching encodes twice."""
        return max(0.0, 1 - self.activation_tokens * gpus / work.tokens) if work.tokens else 0.0

    def flops(self, work: Work, *, twice: float = 0.0) -> float:
        """Operations of training on some texts, of which a share is encoded twice (see the module's text)."""
        forward = forward_flops(self.shape, work)
        backward = 2 * forward - (
            2 * self.shape.matrix_parameters * work.tokens if self.frozen else 0
        )
        taught = forward_flops(self.teacher, work) if self.teacher else 0.0
        return (1 + twice + self.gradient_checkpointing) * forward + backward + taught


def forward_flops(shape: Shape, work: Work) -> float:
    """Operations of encoding some texts."""
    return (
        2 * shape.matrix_parameters * work.tokens
        + 4 * shape.layers * shape.attention_width * work.squares
    )


def method_of(training: TrainingSection, shape: Shape, teacher: Shape | None = None) -> Method:
    """How a recipe computes its steps."""
    return Method(
        shape=shape,
        teacher=teacher,
        gradient_checkpointing=training.gradient_checkpointing,
        frozen=training.lora.rank > 0,
        activation_tokens=max(
            training.activation_tokens or HELD_TOKENS, training.micro_batch_tokens or 0
        ),
    )


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage takes."""

    steps: list[Steps]
    method: Method

    @property
    def work(self) -> Work:
        return sum((one.work.times(one.count) for one in self.steps), Work())

    @property
    def flops(self) -> float:
        """Operations where all activations are held."""
        return self.method.flops(self.work)

    def flops_on(self, gpus: int) -> float:
        """Operations, what gradient caching encodes twice included."""
        return sum(
            one.count
            * self.method.flops(one.work, twice=self.method.encoded_twice(one.work, gpus=gpus))
            for one in self.steps
        )

    def tokens_twice(self, gpus: int) -> float:
        """Tokens that gradient caching encodes twice."""
        return sum(
            one.count * one.work.tokens * self.method.encoded_twice(one.work, gpus=gpus)
            for one in self.steps
        )


def expected_steps(
    datasets: Sequence[DatasetTexts], training: TrainingSection, stage: StageSection
) -> list[Steps]:
    """The steps of a stage by what they encode, as :class:`qzhou.training.plan.BatchPlan` draws them.

    Where rows are not known, the datasets of a kind are taken as equally large.

    Args:
        datasets: Those that the stage draws from.

    Raises:
        DataError: The stage draws from retrieval or from other datasets, and there are none.
    """
    share = round(stage.retrieval_share * SHARE_UNIT)
    retrieval = stage.steps * share // SHARE_UNIT  # the plan keeps to the share exactly
    # and how many steps, or steps' worth of rows, fall to each
    drawn: list[tuple[DatasetTexts, float]] = []
    for count, group, kind in (
        (retrieval, [one for one in datasets if one.task == "retrieval"], "retrieval"),
        (
            stage.steps - retrieval,
            [one for one in datasets if one.task != "retrieval"],
            "pair or classification",
        ),
    ):
        if count and not group:
            raise DataError(
                f"retrieval_share is {stage.retrieval_share}, but there are no {kind} examples to train on"
            )
        weights = [
            1.0 if one.rows is None else float(one.rows) ** training.sampling_alpha for one in group
        ]
        drawn += [
            (one, count * weight / sum(weights)) for one, weight in zip(group, weights, strict=True)
        ]
    if training.grouping != "none":
        return [Steps(one.task, count, one.row.times(_size(one, stage))) for one, count in drawn]
    only_pairs = all(one.task == "pair" for one in datasets)
    size = stage.cosent_batch_size if only_pairs else stage.batch_size
    mean = sum((one.row.times(count / stage.steps) for one, count in drawn), Work())
    return [Steps("mixed", stage.steps, mean.times(size))]


def _size(dataset: DatasetTexts, stage: StageSection) -> int:
    """Rows of a step on a dataset; one smaller than a batch gives all it has."""
    size = stage.cosent_batch_size if dataset.task == "pair" else stage.batch_size
    return size if dataset.rows is None else min(size, dataset.rows)


def gpu_hours(flops: float, *, gpu: str, utilisation: float) -> float:
    """Hours that one GPU would need.

    Args:
        gpu: One of :func:`qzhou.costs.hardware.gpus`.
        utilisation: Share of the peak that training reaches, in (0, 1].

    Raises:
        RecipeError: No such GPU is known, or the share is none.
    """
    peak = gpu_named(gpu).flops
    if not 0 < utilisation <= 1:
        raise RecipeError(
            f"command line: --utilisation is {utilisation:g}; it is a share above 0 and at most 1, like 0.4"
        )
    return flops / (peak * utilisation) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What lies in a GPU's memory besides activations.

    In bfloat16 a weight has 2 bytes, its gradient 2, and the optimizer 12: a float32 copy and Adam's two moments. In
    float32 it has 4, 4 and 8, for the weight is its own copy.

    Attributes:
        parameters: All weights.
        trained: Those of them, or the adapters beside them, that have gradients.
        teacher: Weights of a teacher, which every GPU has whole.
        offloaded: The optimizer lies in the CPU's memory.
    """

    parameters: int
    trained: int
    teacher: int = 0
    bfloat16: bool = True
    offloaded: bool = False

    def per_gpu(self, *, zero_stage: int, gpus: int) -> float:
        """Bytes on each GPU. ZeRO stage 1 shards the optimizer, 2 gradients too, 3 weights too (arXiv:1910.02054)."""
        weight, gradient, optimizer = (2, 2, 12) if self.bfloat16 else (4, 4, 8)
        optimizer = 0 if self.offloaded and zero_stage else optimizer
        sizes = (
            (3, weight * self.parameters),
            (2, gradient * self.trained),
            (1, optimizer * self.trained),
        )
        return weight * self.teacher + sum(
            size / (gpus if zero_stage >= sharded_from else 1) for sharded_from, size in sizes
        )


def memory_of(recipe: Recipe, method: Method) -> Memory:
    """What a recipe's training keeps in memory."""
    training, shape = recipe.training, method.shape
    adapters = shape.adapter_parameters(training.lora.rank)
    return Memory(
        parameters=shape.parameters + adapters,
        trained=adapters or shape.parameters,
        teacher=method.teacher.parameters if method.teacher else 0,
        bfloat16=recipe.model.dtype != "float32",
        offloaded=training.offload_optimizer,
    )
