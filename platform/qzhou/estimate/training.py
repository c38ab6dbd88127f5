"""What training costs: tokens, operations, GPU hours, memory. Arithmetic only, no torch.

Letters in this file: P weights in matrix products, L layers, A width of attention (heads *
head width), T tokens of a text.

Operations of a text. A product of a [T, m] and an [m, n] matrix is 2 T m n operations, a
multiplication and an addition for each; all weight matrices together are 2 P T. In each
layer the queries meet the keys of the same text, [T, A] with [A, T], and the attention
weights meet the values, [T, T] with [T, A]: 4 A T^2. A causal model computes the hidden
half too, as soon as there is padding to mask. So

    forward = 2 P T + 4 L A T^2

The backward pass makes two products of each, for the gradients of input and weight: with
the forward pass 6 P T + 12 L A T^2. Frozen weights (LoRA) need the first of the two only, 2
P T less. Gradient checkpointing computes the forward pass again during the backward pass.
Gradient caching (GradCache, arXiv:2101.06983) computes it once more before, for the texts
whose activations a GPU does not hold; the more GPUs share a batch, the fewer these are.
Softmax, norms, adapters, optimizer and loss are left out: they wait for memory, and the
utilisation accounts for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qzhou.config.recipe import Recipe
from qzhou.config.training import SHARE_UNIT, StageSection, TrainingSection
from qzhou.data.records import Task
from qzhou.errors import DataError
from qzhou.estimate.hardware import Gpu
from qzhou.estimate.model_shape import ModelShape, shape_of

# what training.engine holds on a GPU and computes in one pass by default; that module loads torch
ACTIVATION_TOKENS, MICRO_BATCH_TOKENS = 32_768, 16_384


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """A number of texts, tokens, and the sum of squared lengths, which attention costs.

    Lengths are in tokens, prompts included, after truncation.
    """

    texts: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0

    @classmethod
    def one(cls, tokens: float) -> EncodedTexts:
        """One text of a length: the assumption where only the mean length is known."""
        return cls(1.0, tokens, tokens * tokens)

    @classmethod
    def mean(cls, lengths: Sequence[int]) -> EncodedTexts:
        """The average of counted texts; nothing where there are none."""
        if not lengths:
            return cls()
        return cls(1.0, sum(lengths) / len(lengths), sum(one * one for one in lengths) / len(lengths))

    def __add__(self, other: EncodedTexts) -> EncodedTexts:
        return EncodedTexts(self.texts + other.texts, self.tokens + other.tokens, self.squares + other.squares)

    def __mul__(self, count: float) -> EncodedTexts:
        return EncodedTexts(self.texts * count, self.tokens * count, self.squares * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTexts:
    """The texts of one dataset.

    Attributes:
        rows: Training examples; None where they have not been counted yet.
        query: The average query of retrieval; not used for other tasks.
        document: The average of all other texts.
        negatives: Negatives that an example brings to a step, on average.
    """

    name: str
    task: Task
    rows: int | None = None
    query: EncodedTexts = EncodedTexts()
    document: EncodedTexts = EncodedTexts()
    negatives: float

    @property
    def bare_example(self) -> EncodedTexts:
        """The texts of one example, without negatives."""
        if self.task == "retrieval":
            return self.query + self.document
        return self.document * (2 if self.task == "pair" else 1)

    @property
    def example(self) -> EncodedTexts:
        """The texts that a training step encodes for one example."""
        if self.task == "pair":
            return self.bare_example
        # a classified text meets a positive of its label besides
        more = self.negatives + (self.task == "classification")
        return self.bare_example + self.document * more


@dataclass(frozen=True, slots=True)
class StepGroup:
    """Steps that encode equally much.

    Attributes:
        task: Of their examples, or ``mixed``.
        count: Number of steps; a fraction is an expectation.
        texts: Of one step, over all GPUs.
    """

    task: str
    count: float
    texts: EncodedTexts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """The settings on which the operations of a step depend.

    Attributes:
        teacher: Model that encodes the same texts, for distillation.
        frozen: Whether the weights get no gradients (LoRA).
        activation_tokens: Tokens whose activations a GPU holds; others are encoded twice.
        micro_batch_tokens: Tokens of one pass.
    """

    shape: ModelShape
    teacher: ModelShape | None = None
    gradient_checkpointing: bool = False
    frozen: bool = False
    activation_tokens: int = ACTIVATION_TOKENS
    micro_batch_tokens: int = MICRO_BATCH_TOKENS

    @classmethod
    def of(cls, recipe: Recipe) -> TrainingMethod:
        """The method of a recipe.

        Raises:
            ModelError: The size of the backbone, or of distillation's teacher, is unknown.
        """
        training, teacher = recipe.training, recipe.training.distillation.teacher
        by_default = training.activation_tokens or ACTIVATION_TOKENS
        return cls(
            shape=shape_of(recipe.model.backbone),
            teacher=shape_of(teacher) if teacher else None,
            gradient_checkpointing=training.gradient_checkpointing,
            frozen=training.lora.rank > 0,
            activation_tokens=max(by_default, training.micro_batch_tokens or 0),
            micro_batch_tokens=training.micro_batch_tokens or MICRO_BATCH_TOKENS,
        )

    def encoded_twice(self, texts: EncodedTexts, *, gpus: int) -> float:
        """Share of a step's tokens that gradient caching encodes twice."""
        return max(0.0, 1 - self.activation_tokens * gpus / texts.tokens) if texts.tokens else 0.0

    def flops(self, texts: EncodedTexts, *, twice: float = 0.0) -> float:
        """Operations of training on some texts, of which a share is encoded twice."""
        forward = forward_flops(self.shape, texts)
        backward = 2 * forward
        if self.frozen:
            backward -= 2 * self.shape.matrix_parameters * texts.tokens
        teacher = forward_flops(self.teacher, texts) if self.teacher else 0.0
        return (1 + twice + self.gradient_checkpointing) * forward + backward + teacher

    def activation_bytes(self, tokens: float) -> float:
        """Bytes of activations, in 16 bits, on a GPU whose share of a step has so many tokens."""
        of_held, of_pass = self.shape.activation_bytes(recomputed=self.gradient_checkpointing)
        return of_held * min(tokens, self.activation_tokens) + of_pass * min(tokens, self.micro_batch_tokens)

    def sent_bytes(self, tokens: float, *, zero_stage: int, gpus: int) -> float:
        """Bytes in 16 bits that a GPU sends in a step whose texts have so many tokens, over all GPUs.

        ZeRO 0 and 1 reduce gradients and gather weights once; ZeRO 2 reduces after each
        backward pass, of which gradient caching makes one for each pass beyond what is held;
        ZeRO 3 also gathers all weights for each forward and each backward pass.
        """
        own = tokens / gpus
        passes = math.ceil(own / self.micro_batch_tokens)
        cached = math.ceil(max(0.0, own - self.activation_tokens) / self.micro_batch_tokens)
        backward = 1 + cached
        changed = 0 if self.frozen else self.shape.parameters  # of adapters it is next to nothing
        gathered = self.shape.parameters * (2 * passes + cached) if zero_stage == 3 else changed
        reduced = changed * (backward if zero_stage >= 2 else 1)
        return 2.0 * (gathered + reduced) * (gpus - 1) / gpus


def forward_flops(shape: ModelShape, texts: EncodedTexts) -> float:
    """Operations of encoding some texts."""
    attention = 4 * shape.layers * shape.attention_width * texts.squares
    return 2 * shape.matrix_parameters * texts.tokens + attention


@dataclass(frozen=True, slots=True)
class TrainingStageCost:
    """What one training stage costs."""

    steps: list[StepGroup]
    method: TrainingMethod

    @property
    def texts(self) -> EncodedTexts:
        """All texts of all steps."""
        return sum((one.texts * one.count for one in self.steps), EncodedTexts())

    @property
    def flops(self) -> float:
        """Operations where every text is encoded once."""
        return self.method.flops(self.texts)

    def flops_on(self, gpus: int) -> float:
        """Operations, with what gradient caching encodes twice."""
        return sum(one.count * self.method.flops(one.texts, twice=self._twice(one, gpus)) for one in self.steps)

    def sent_bytes(self, gpus: int, *, zero_stage: int) -> float:
        """Bytes that a GPU sends to others in all steps."""
        return sum(
            one.count * self.method.sent_bytes(one.texts.tokens, zero_stage=zero_stage, gpus=gpus)
            for one in self.steps
        )

    @property
    def largest_step(self) -> float:
        """Tokens of the step that has the most."""
        return max((one.texts.tokens for one in self.steps), default=0.0)

    def tokens_twice(self, gpus: int) -> float:
        """Tokens that gradient caching encodes twice."""
        return sum(one.count * one.texts.tokens * self._twice(one, gpus) for one in self.steps)

    def _twice(self, steps: StepGroup, gpus: int) -> float:
        return self.method.encoded_twice(steps.texts, gpus=gpus)


def expected_steps(
    datasets: Sequence[DatasetTexts], training: TrainingSection, stage: StageSection
) -> list[StepGroup]:
    """The steps of a training stage by what they encode, as its batch plan draws them from its datasets.

    Where rows are not known, all datasets of a kind count as equally large.

    Raises:
        DataError: The stage draws from retrieval or other datasets, and there are none.
    """
    share = round(stage.retrieval_share * SHARE_UNIT)
    retrieval = stage.steps * share // SHARE_UNIT  # the batch plan keeps to the share exactly
    kinds = {
        "retrieval": (retrieval, [one for one in datasets if one.task == "retrieval"]),
        "pair or classification": (stage.steps - retrieval, [one for one in datasets if one.task != "retrieval"]),
    }
    # dataset, and the steps or steps' worth of rows that it gives
    drawn: list[tuple[DatasetTexts, float]] = []
    for kind, (count, group) in kinds.items():
        if count and not group:
            raise DataError(
                f"retrieval_share is {stage.retrieval_share}, but there are no {kind} examples to train on"
            )
        sizes = [1.0 if one.rows is None else float(one.rows) for one in group]
        weights = [size**training.sampling_alpha for size in sizes]
        drawn += [(one, count * weight / sum(weights)) for one, weight in zip(group, weights, strict=True)]
    if training.grouping != "none":
        return [StepGroup(one.task, count, one.example * _batch_size(one, stage)) for one, count in drawn]
    only_pairs = all(one.task == "pair" for one in datasets)
    size = stage.cosent_batch_size if only_pairs else stage.batch_size
    mean = sum((one.example * (count / stage.steps) for one, count in drawn), EncodedTexts())
    return [StepGroup("mixed", stage.steps, mean * size)]


def _batch_size(dataset: DatasetTexts, stage: StageSection) -> int:
    """Rows of a step on a dataset; a dataset smaller than a batch gives all rows."""
    size = stage.cosent_batch_size if dataset.task == "pair" else stage.batch_size
    return size if dataset.rows is None else min(size, dataset.rows)


def gpu_hours(flops: float, *, gpu: Gpu, utilisation: float) -> float:
    """Hours that one GPU needs at a share of its peak, in (0, 1]."""
    return flops / (gpu.flops * utilisation) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """What lies in a GPU's memory besides activations.

    In bfloat16 a weight has 2 bytes, its gradient 2, and the optimizer 12: a float32 copy
    and the two moments of Adam. In float32 they have 4, 4 and 8, for the weight is its own
    copy.

    Attributes:
        parameters: All weights.
        trained: Weights, or those of the adapters, that have gradients.
        teacher: Weights of the teacher of distillation; every GPU has all of them.
        offloaded: Whether the optimizer lies in the CPU's memory.
    """

    parameters: int
    trained: int
    teacher: int = 0
    bfloat16: bool = True
    offloaded: bool = False

    @classmethod
    def of(cls, recipe: Recipe, method: TrainingMethod) -> TrainingMemory:
        """The memory of a recipe's training."""
        adapters = method.shape.adapter_parameters(recipe.training.lora.rank)
        return cls(
            parameters=method.shape.parameters + adapters,
            trained=adapters or method.shape.parameters,
            teacher=method.teacher.parameters if method.teacher else 0,
            bfloat16=recipe.model.dtype != "float32",
            offloaded=recipe.training.offload_optimizer,
        )

    def per_gpu(self, *, zero_stage: int, gpus: int) -> float:
        """Bytes on each GPU: ZeRO 1 shards the optimizer, 2 also gradients, 3 also weights (arXiv:1910.02054)."""
        weight, gradient, optimizer = (2, 2, 12) if self.bfloat16 else (4, 4, 8)
        if self.offloaded and zero_stage:
            optimizer = 0
        weights = weight * self.parameters / (gpus if zero_stage >= 3 else 1)
        gradients = gradient * self.trained / (gpus if zero_stage >= 2 else 1)
        states = optimizer * self.trained / (gpus if zero_stage >= 1 else 1)
        return weight * self.teacher + weights + gradients + states
