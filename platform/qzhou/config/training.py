"""The recipe table ``[training]``: two stages, losses, and terms that other models add."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from qzhou.config.section import (
    AtLeastOne,
    Cosine,
    Count,
    Experimental,
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
    """Loss terms that other models use; all are off by default."""

    document_document: Experimental[bool] = Field(
        False, description="Other documents are negatives of the positive document too (Qwen3)."
    )
    false_negative_margin: Cosine | None = Field(
        None,
        description="A text whose cosine exceeds the positive's by more is left out as a likely answer (Qwen3: 0.1).",
    )
    hardness: NotNegative = Field(
        0.0, description="A query's own hard negatives weigh e^(hardness * cosine) (EmbeddingGemma: 5)."
    )
    focal: Experimental[NotNegative] = Field(
        0.0, description="A query weighs (1 - p)^focal, p the probability of its positive; 0, or 1 and more."
    )
    orthogonal_regularisation: Experimental[NotNegative] = Field(
        0.0, description="Weight of the mean squared cosine of random texts."
    )
    mixed_negatives: Experimental[Count] = Field(
        0,
        description="More negatives for each query, each mixed from two of its hard negatives (MoCHi, KaLM-V2.5).",
    )
    matryoshka_dimensions: Experimental[tuple[AtLeastOne, ...]] = Field(
        (), description="Widths at which vectors can be cut: the loss is also computed on so many first components."
    )
    matryoshka_weights: Experimental[tuple[Positive, ...]] = Field(
        (), description="Weight of the loss at each of these widths; default: 1 each."
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
            raise ValueError(f"{value:g} has no finite gradient where a positive is certain; take 0, or 1 and more")
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
    """Knowledge distillation from a teacher, beside the labels."""

    teacher: Experimental[str] = Field("", description="Folder, hub id or package of a model; empty: no teacher.")
    kind: Experimental[Literal["scores", "embeddings", "listwise"]] = Field(
        "scores",
        description="scores: the teacher's distribution over the documents of a batch; embeddings: its vectors, of the "
        "same width; listwise: the scores of each query's own positive and negatives, which mining writes.",
    )
    weight: Experimental[Positive] = Field(
        1.0, description="Weight of the distillation loss beside the loss of the labels."
    )
    temperature: Experimental[Positive] = Field(
        0.02, description="Divides the model's cosines, and those of the teacher of kind = scores."
    )
    teacher_temperature: Experimental[Positive | None] = Field(
        None,
        description="Divides the scores of kind = listwise; default: as temperature for a teacher's cosines, and 0.2 "
        "for what mining.reranker gives (0 to 1).",
    )

    @property
    def is_listwise(self) -> bool:
        """Whether the scores that mining writes are learned."""
        return self.kind == "listwise"

    @model_validator(mode="after")
    def _listwise_has_no_teacher(self) -> Self:
        if self.is_listwise and self.teacher:
            raise ValueError(
                f"kind is 'listwise' and teacher '{self.teacher}'; listwise learns the scores that mining writes: name "
                "the model in mining.reranker or mining.teacher, and leave this one out"
            )
        if self.teacher_temperature is not None and not self.is_listwise:
            raise ValueError(
                f"teacher_temperature is {self.teacher_temperature:g} and kind '{self.kind}', where temperature "
                "divides the cosines of both; leave it out, or set kind = 'listwise'"
            )
        return self


class LoraSection(Section):
    """Low-rank adapters in place of all weights (arXiv:2106.09685); the exported model has them merged in."""

    rank: Experimental[Count] = Field(0, description="Rank of the adapters; 0 trains all weights.")
    alpha: Experimental[Positive] = Field(32.0, description="The adapters' output is scaled by alpha / rank.")
    target_modules: Experimental[tuple[str, ...]] = Field(
        (), description="Names of the layers; default: every linear layer."
    )


TrainingStageName = Literal["stage1", "stage2"]
# what DeepSpeed must not be told past the recipe, and what decides it
DEEPSPEED_OWNED = {
    "train_batch_size": "batch_size of a stage",
    "train_micro_batch_size_per_gpu": "training.micro_batch_tokens",
    "gradient_accumulation_steps": "training.activation_tokens",
    "gradient_clipping": "training.max_gradient_norm",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "optimizer": "AdamW, training.weight_decay",
    "scheduler": "lr_scheduler of a stage",
    "checkpoint": "training.save_every_steps",
    "zero_optimization.stage": "training.zero_stage",
    "zero_optimization.offload_optimizer": "training.offload_optimizer",
    "managed_gradient_accumulation": "training.activation_tokens",
}
RETRIEVAL_SHARE = 0.72  # of stage 2's steps; section 6.3 of the paper
SHARE_UNIT = 10**6  # eta is counted in millionths, so that its share of steps is exact


class StageSection(Section):
    """One training stage."""

    steps: Count = Field(description="Optimizer steps; 0 leaves stage 1 out.")
    learning_rate: Positive = Field(description="Highest learning rate, reached after the warm-up.")
    lr_scheduler: LRScheduler = Field(
        "linear", description="How the learning rate falls after the warm-up, to zero at the end of the stage."
    )
    warmup_steps: Count = Field(
        default_factory=lambda stage: min(300, stage.get("steps", 0) // 10),
        description="Linear warm-up; default: the paper's 300, but at most a tenth of the steps.",
    )
    batch_size: AtLeastOne = Field(256, description="Examples per InfoNCE step over all workers.")
    cosent_batch_size: AtLeastOne = Field(768, description="Pairs per CoSENT step over all workers.")
    retrieval_share: Fraction = Field(
        1.0,
        description="Share of the STEPS that are retrieval batches (eta). Default: 1 in stage 1; in stage 2 the "
        "paper's 0.72; 1 where nothing else is trained on, 0 where no dataset is retrieval.",
    )
    backbone_share: Experimental[Fraction] = Field(
        0.0,
        description="Share of the untouched backbone in the weights that the stage ends with (WiSE-FT, "
        "arXiv:2109.01903): what training does not teach is forgotten less.",
    )
    backbone_shares: Experimental[tuple[Fraction, ...]] = Field(
        (), description="Of these shares the one that validates best is taken; needs training.select = 'best'."
    )
    soft_mask_steps: Experimental[Count] = Field(
        0, description="Steps in which attention to later tokens rises from 0 (causal) to 1 (Conan-embedding-v2)."
    )


class TrainingSection(Section):
    """Two-stage contrastive training with DeepSpeed on Ray Train."""

    seed: Count | None = Field(
        None, description="Seed of the batches and of the draw of mined negatives; default: run.seed."
    )
    datasets: tuple[Name, ...] = Field(
        (), description="Datasets to train on; the others are still held out and evaluated. Default: all."
    )
    workers: AtLeastOne = Field(2, description="Data-parallel ranks.")
    min_workers: AtLeastOne | None = Field(
        None, description="Lowest number of ranks with which training goes on while nodes are missing."
    )
    negatives_per_query: Count = Field(
        4, description="Hard negatives for each query and step; fewer where fewer were mined."
    )
    temperature: Positive = Field(0.02, description="Divides cosines in InfoNCE.")
    cosent_temperature: Positive = Field(0.05, description="Divides cosines in CoSENT.")
    query_query: bool = Field(True, description="Other queries stand in the denominator of retrieval InfoNCE.")
    loss: LossSection = LossSection()
    distillation: DistillationSection = DistillationSection()
    lora: LoraSection = LoraSection()
    grouping: Grouping = Field("dataset", description="What the rows of a batch have in common.")
    sampling_alpha: Fraction = Field(0.5, description="A dataset is drawn in proportion to rows ** alpha.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.01, description="Weight decay of AdamW.")
    max_gradient_norm: Positive = Field(1.0, description="Gradients are clipped to this norm.")
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(
        1, description="DeepSpeed ZeRO stage; 1 is fastest where it fits: 2 and 3 communicate in every pass."
    )
    offload_optimizer: bool = Field(False, description="Keep the optimizer's state in CPU memory (ZeRO 1 to 3).")
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="More settings of DeepSpeed, in the names of its configuration: zero_optimization for instance.",
    )
    micro_batch_tokens: AtLeastOne | None = Field(
        None, description="Padded tokens of one forward pass; default: what suits the device."
    )
    activation_tokens: AtLeastOne | None = Field(
        None,
        description="Padded tokens whose activations a rank keeps; texts beyond are encoded twice (gradient cache).",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    min_all_reduce_gb_per_s: NotNegative = Field(
        0.0,
        description="A slower network between the workers ends `qzhou rehearse`; GB/s, as NCCL's tests count them.",
    )
    loader_threads: AtLeastOne = Field(2, description="Threads of a rank that prepare the next batches.")
    validate_every_steps: Count = Field(
        0, description="Steps between validations: on held-out rows, with select = 'best' on others; 0: none."
    )
    select: Experimental[Literal["last", "best"]] = Field(
        "last",
        description="The weights that a stage ends with. best: those of the validation with the highest score on rows "
        "that no stage trains on and no evaluation judges by; those that the stage starts with count too.",
    )
    patience: Experimental[Count] = Field(
        0, description="Validations in a row without a better score after which a stage ends; 0: it never does."
    )
    trackers: tuple[Tracker, ...] = Field((), description="Trackers that get the metrics besides metrics.jsonl.")
    save_every_steps: AtLeastOne = Field(500, description="Checkpoint interval; the last step is always saved.")
    keep_checkpoints: AtLeastOne = Field(2, description="Number of last checkpoints that are kept.")
    max_failures: Count = Field(2, description="Restarts from the last checkpoint before the stage gives up.")
    # retrieval alone; a recipe without retrieval datasets leaves it out
    stage1: StageSection = StageSection(steps=0, learning_rate=2e-5)
    stage2: StageSection

    @model_validator(mode="after")
    def _fewer_workers_at_least(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers is {self.min_workers} and workers {self.workers}; the first is how many of them suffice"
            )
        zero = self.deepspeed.get("zero_optimization")
        inside = zero if isinstance(zero, dict) else {}
        given = {*self.deepspeed, *(f"zero_optimization.{name}" for name in inside)}
        if owned := sorted(given & DEEPSPEED_OWNED.keys()):
            places = "; ".join(f"{name}: {DEEPSPEED_OWNED[name]}" for name in owned)
            raise ValueError(f"deepspeed has settings that the recipe decides otherwise ({places}); take them out")
        if self.select == "best" and not self.validate_every_steps:
            raise ValueError(
                "select is 'best' and validate_every_steps 0, so nothing would be compared; set it, to a tenth of a "
                "stage's steps for instance"
            )
        for name in ("stage1", "stage2"):
            stage: StageSection = getattr(self, name)
            if stage.backbone_shares and self.select != "best":
                raise ValueError(
                    f"{name}.backbone_shares has {len(stage.backbone_shares)} shares to choose from and select is "
                    f"'{self.select}'; it needs select = 'best'"
                )
            if stage.backbone_share and self.select == "best":
                raise ValueError(
                    f"{name}.backbone_share is {stage.backbone_share:g} and select 'best', which would choose by the "
                    f"score of other weights; set {name}.backbone_shares = [{stage.backbone_share:g}] in its place"
                )
        if self.patience and self.select != "best":
            raise ValueError(f"patience is {self.patience} and select '{self.select}'; it needs select = 'best'")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3; zero_stage is 0")
        return self

    @property
    def stages(self) -> tuple[TrainingStageName, ...]:
        """The stages that train, in order."""
        return ("stage1", "stage2") if self.stage1.steps else ("stage2",)
