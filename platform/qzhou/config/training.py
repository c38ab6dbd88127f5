"""How a run trains: its two stages, the objectives, and what rivals add to them.

Part of :mod:`qzhou.config.recipe`, in a file of its own because objectives have many terms.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from qzhou.config.dataset import (
    AtLeastOne,
    Cosine,
    Count,
    Fraction,
    Name,
    NotNegative,
    Positive,
    Section,
)

Grouping = Literal["dataset", "task", "none"]
LRScheduler = Literal["linear", "cosine", "constant"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class LossSection(Section):
    """What rivals add to the objectives; all of it is off by default."""

    document_document: bool = Field(
        False, description="Other documents too are pushed from the positive (Qwen3)."
    )
    false_negative_margin: Cosine | None = Field(
        None,
        description="What scores above the positive by more may be an answer, and is left out (Qwen3: 0.1).",
    )
    hardness: NotNegative = Field(
        0.0, description="Own hard negatives weigh e^(hardness * cosine) (EmbeddingGemma: 5)."
    )
    focal: NotNegative = Field(
        0.0,
        description="Queries weigh (1 - p)^focal, p the probability of the positive; 0, or 1 and more.",
    )
    orthogonal_regularisation: NotNegative = Field(
        0.0, description="Weight of the mean squared cosine of random texts."
    )
    mixed_negatives: Count = Field(
        0,
        description="Further negatives of each query, mixed from two of its own on the sphere (MoCHi, KaLM-V2.5).",
    )
    matryoshka_dimensions: tuple[AtLeastOne, ...] = Field(
        (),
        description="The loss is also taken of the first so many components, so that vectors can be cut there.",
    )
    matryoshka_weights: tuple[Positive, ...] = Field(
        (), description="Of those losses; default: 1 each."
    )

    @property
    def matryoshka(self) -> tuple[tuple[int, float], ...]:
        """Dimensions and weights."""
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka_dimensions)
        return tuple(zip(self.matryoshka_dimensions, weights, strict=True))

    @field_validator("focal")
    @classmethod
    def _is_smooth(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(
                f"{value:g} has no finite gradient where a positive is certain; take 0, or 1 and more"
            )
        return value

    @model_validator(mode="after")
    def _one_weight_for_each_dimension(self) -> Self:
        dimensions, weights = self.matryoshka_dimensions, self.matryoshka_weights
        if weights and len(weights) != len(dimensions):
            raise ValueError(
                f"matryoshka_weights has {len(weights)} entries and matryoshka_dimensions {len(dimensions)}; give one "
                "weight for each, or none"
            )
        return self


class DistillationSection(Section):
    """A teacher's view of each batch, learned beside the labels."""

    teacher: str = Field("", description="Folder, hub id or package of a model; empty: no teacher.")
    kind: Literal["scores", "embeddings"] = Field(
        "scores",
        description="Its distribution over the documents of a batch, or its vectors (of the same width).",
    )
    weight: Positive = Field(1.0, description="Of the teacher's loss beside the labels' loss.")
    temperature: Positive = Field(
        0.02, description="Divides both models' cosines, for kind = scores."
    )


class LoraSection(Section):
    """Low-rank adapters in place of all weights (arXiv:2106.09685); the exported model has them merged in."""

    rank: Count = Field(0, description="Of the adapters; 0 trains all weights.")
    alpha: Positive = Field(32.0, description="The adapters' output is scaled by alpha / rank.")
    target_modules: tuple[str, ...] = Field(
        (), description="Names of the layers; default: every linear layer."
    )


RETRIEVAL_SHARE = 0.72  # of stage 2's steps; section 6.3 of the paper
SHARE_UNIT = 10**6  # eta is counted in millionths, so that its share of steps is exact


class StageSection(Section):
    """One training stage."""

    steps: AtLeastOne = Field(description="Optimizer steps.")
    learning_rate: Positive = Field(description="Peak, reached after the warm-up.")
    lr_scheduler: LRScheduler = Field(
        "linear", description="How it falls after the warm-up, to zero at the end of the stage."
    )
    warmup_steps: Count = Field(
        default_factory=lambda stage: min(300, stage.get("steps", 0) // 10),
        description="Linear warm-up; default: the paper's 300, but at most a tenth of the steps.",
    )
    batch_size: AtLeastOne = Field(256, description="Examples per InfoNCE step over all workers.")
    cosent_batch_size: AtLeastOne = Field(
        768, description="Pairs per CoSENT step over all workers."
    )
    retrieval_share: Fraction = Field(
        1.0,
        description="Share of the STEPS that are retrieval batches (eta). Default: 1 in stage 1; in stage 2 the "
        "paper's 0.72, or 1 where nothing else is trained on.",
    )
    soft_mask_steps: Count = Field(
        0,
        description="Steps in which a causal mask opens until every token sees all others (Conan-embedding-v2).",
    )


class TrainingSection(Section):
    """Two-stage contrastive training with DeepSpeed on Ray Train."""

    seed: Count | None = Field(
        None,
        description="Of the batches and of the negatives that are mined; default: run.seed, as all else.",
    )
    datasets: tuple[Name, ...] = Field(
        (),
        description="What is trained on; the others are still held out and judged. Default: all.",
    )
    workers: AtLeastOne = Field(2, description="Data-parallel ranks.")
    min_workers: AtLeastOne | None = Field(
        None,
        description="Fewer ranks than workers, with which training goes on while nodes are missing.",
    )
    negatives_per_query: Count = Field(
        4, description="Hard negatives per query and step, where that many were found."
    )
    temperature: Positive = Field(0.02, description="Divides cosines in InfoNCE.")
    cosent_temperature: Positive = Field(0.05, description="Divides cosines in CoSENT.")
    query_query: bool = Field(
        True, description="Other queries stand in the denominator of retrieval InfoNCE."
    )
    loss: LossSection = LossSection()
    distillation: DistillationSection = DistillationSection()
    lora: LoraSection = LoraSection()
    grouping: Grouping = Field("dataset", description="What the rows of a batch have in common.")
    sampling_alpha: Fraction = Field(
        0.5, description="A dataset is drawn in proportion to rows ** alpha."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.01, description="AdamW.")
    max_gradient_norm: Positive = Field(1.0, description="Gradients are clipped to this norm.")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage.")
    offload_optimizer: bool = Field(
        False, description="Keep the optimizer's state in CPU memory (ZeRO 1 to 3)."
    )
    micro_batch_tokens: AtLeastOne | None = Field(
        None, description="Padded tokens of one forward pass; default: what suits the device."
    )
    activation_tokens: AtLeastOne | None = Field(
        None,
        description="Padded tokens whose activations a rank holds; what is beyond is encoded twice (gradient cache).",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass."
    )
    loader_threads: AtLeastOne = Field(2, description="Threads of a rank that make batches ahead.")
    validate_every_steps: Count = Field(
        0, description="Steps between validations on held-out rows; 0: none."
    )
    trackers: tuple[Tracker, ...] = Field((), description="Where metrics go besides metrics.jsonl.")
    save_every_steps: AtLeastOne = Field(
        500, description="Checkpoint interval; the last step is always saved."
    )
    keep_checkpoints: AtLeastOne = Field(2, description="The last so many are kept.")
    max_failures: Count = Field(
        2, description="Restarts from the last checkpoint before the stage gives up."
    )
    stage1: StageSection
    stage2: StageSection

    @model_validator(mode="after")
    def _fewer_workers_at_least(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers is {self.min_workers} and workers {self.workers}; the first is how many of them suffice"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3; zero_stage is 0")
        return self
