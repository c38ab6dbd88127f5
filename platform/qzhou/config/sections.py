"""The recipe's tables for the run, the model, the cluster and the stages between data and training.

Datasets stand in :mod:`qzhou.config.dataset`, synthesis in :mod:`qzhou.config.synthesis`, training in
:mod:`qzhou.config.training`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from qzhou.config.dataset import (
    EXPERIMENTAL,
    AtLeastOne,
    Cosine,
    Count,
    Fraction,
    Name,
    Positive,
    Section,
)

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class RunSection(Section):
    """Which run this is and where it is kept."""

    name: Name = Field(description="Folder of the run under the storage path.")
    storage: str = Field(
        "runs", description="Local path or URI (s3://, gs://); shared by all nodes of a cluster."
    )
    seed: Count = Field(0, description="Every random choice of the run follows from it.")
    share_stages: bool = Field(
        False,
        description="Take a stage over that another run under the same storage has finished alike.",
    )


class ModelSection(Section):
    """The encoder that is trained."""

    backbone: str = Field(description="Local path, hub id, or package:<import name>/<folder>.")
    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="A decoder is made bidirectional by config.is_causal = false."
    )
    pooling: Literal["mean", "last", "cls"] = Field(
        "mean", description="How token vectors become one vector."
    )
    max_query_tokens: AtLeastOne = Field(
        256, description="Longer queries are truncated, prompt included."
    )
    max_document_tokens: AtLeastOne = Field(1536, description="Longer documents are truncated.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 where the hardware computes in it (GPU, AMX, AVX-512 BF16), else float32.",
    )
    encoding_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Type in which texts are encoded for mining, evaluation and serving; default: as dtype.",
    )
    arithmetic: Literal["auto", "torch", "onednn"] = Field(
        "auto",
        description="Library that multiplies float32 on CPUs; auto: oneDNN on AMD with AVX-512, else torch's own.",
    )
    compiled: bool = Field(
        False, description="torch.compile for encoding; pays on a GPU, needs a C++ compiler."
    )
    saved_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type of the weights in the model folder."
    )

    @property
    def encodes_in(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """The type in which texts are encoded, whichever setting names it."""
        return self.encoding_dtype or self.dtype


class Resources(Section):
    """What each task, actor, training worker or replica of a stage asks of the cluster."""

    cpus: Positive | None = Field(
        None, description="Default: 1; of what waits for an LLM a quarter."
    )
    gpus: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Default: 1 with cluster.gpu where the stage can use one; 0.5 lets two share one.",
    )
    memory_gb: Positive | None = Field(
        None, description="Of main memory; default: Ray does not count it."
    )
    accelerator_type: str = Field(
        "", description="As Ray names it: 'H100', 'A100-80G', 'L40S'; empty: any."
    )
    custom: dict[str, Positive] = Field(
        default_factory=dict,
        description="Other resources that nodes of yours declare: {big_disk = 1}.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Only on nodes with these labels: {'ray.io/market-type' = 'on-demand'}.",
    )

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"{gpus:g} is neither a part of one GPU nor a number of them; take {int(gpus)} or less"
            )
        return gpus


class TransformResources(Resources):
    """Of the tasks that read and convert."""

    max_workers: AtLeastOne | None = Field(
        None, description="Tasks at the same time; default: what the cluster carries."
    )


class ClusterSection(Section):
    """What the stages ask of the cluster: each worker, and how many there are.

    How many work at the same time is said here for transform and for encoders, and where the stage has more to say of
    it in ``training.workers``, ``training.min_workers``, ``serving.replicas`` and ``serving.max_replicas``.
    """

    gpu: bool = Field(
        False, description="Training workers, encoders and replicas take one GPU each."
    )
    encode_workers: AtLeastOne = Field(
        2, description="Encoder actors that mine or evaluate at the same time."
    )
    min_encode_workers: AtLeastOne | None = Field(
        None,
        description="With so many mining begins, and takes more as nodes come; default: all at once.",
    )
    transform: TransformResources = TransformResources()
    synthesis: Resources = Resources()
    mining: Resources = Resources()
    training: Resources = Resources()
    evaluation: Resources = Resources()
    serving: Resources = Resources()

    @model_validator(mode="after")
    def _gpus_where_there_are_some(self) -> Self:
        for stage in ("mining", "training", "evaluation", "serving"):
            gpus = getattr(self, stage).gpus
            if gpus and not self.gpu:
                raise ValueError(
                    f"cluster.{stage}.gpus is {gpus:g} and cluster.gpu is false; set it to true"
                )
        for stage in ("transform", "synthesis"):
            if gpus := getattr(self, stage).gpus:
                raise ValueError(
                    f"cluster.{stage}.gpus is {gpus:g}, and {stage} has no use for a GPU; leave it out"
                )
        return self


class ContaminationSection(Section):
    """Training texts compared with the texts of the evaluation tasks: the held-out data, and mteb's by name."""

    action: Literal["report", "drop", "off"] = Field(
        "report", description="What becomes of rows that overlap."
    )
    tasks: tuple[str, ...] = Field(
        (), description="mteb tasks or benchmarks besides the recipe's own held-out data."
    )
    ngram_words: AtLeastOne = Field(13, description="Words in a row that count as overlap.")
    ngram_chars: AtLeastOne = Field(
        20, description="The same for texts in Chinese characters or kana."
    )
    max_index_ngrams: AtLeastOne = Field(
        50_000_000,
        description="Above this, a hash picks the n-grams that are kept: memory stays at 10 bytes each.",
    )


class TransformSection(Section):
    """Raw rows to examples."""

    max_chars: AtLeastOne = Field(20_000, description="Longer texts are cut here, at a word.")
    deduplicate: bool = Field(
        True, description="Drop exact repeats, compared as normalised (query, positive)."
    )
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1.0)] | None = Field(
        None,
        description="Drop rows whose texts, side by side, have at least about this Jaccard similarity; default: off.",
        json_schema_extra=EXPERIMENTAL,
    )
    contamination: ContaminationSection = ContaminationSection()


class MiningSection(Section):
    """A teacher's embeddings and exact search find hard negatives."""

    teacher: str = Field(
        "",
        description="Encoder that mines: named like a backbone, or 'https://host/v1#model'; '': the backbone itself.",
    )
    teacher_api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the key of an URL."
    )
    extra_teachers: tuple[str, ...] = Field(
        (),
        description="Encoders that mine beside it, named alike.",
        json_schema_extra=EXPERIMENTAL,
    )
    teacher_prompts: Literal["recipe", "model"] = Field(
        "recipe",
        description="What a teacher reads before texts; model: the prompts that its folder declares, if any.",
    )
    combine: Literal["union", "each"] = Field(
        "union",
        description="Several teachers: union draws from all that they name; each lets them take turns.",
    )
    reranker: str = Field(
        "",
        description="Cross-encoder, named like a backbone, whose scores (0 to 1) replace the teacher's cosines.",
        json_schema_extra=EXPERIMENTAL,
    )
    index: str = Field(
        "Flat",
        description="FAISS factory string; 'Flat' is exact, 'IVF4096,Flat' faster and not.",
        json_schema_extra=EXPERIMENTAL,
    )
    index_parameters: str = Field(
        "",
        description="Of an approximate search, as FAISS reads them: 'nprobe=32'.",
        json_schema_extra=EXPERIMENTAL,
    )
    index_from_documents: Count = Field(
        100_000,
        description="A smaller corpus is searched exactly, whatever the index: it would not pay.",
        json_schema_extra=EXPERIMENTAL,
    )
    index_memory_gb: Positive = Field(
        4.0,
        description="An approximate index over more vectors is sharded over more actors; 'Flat' streams them.",
        json_schema_extra=EXPERIMENTAL,
    )
    rank_from: AtLeastOne = Field(
        10, description="First rank of the window, counted from 1 without the positives."
    )
    rank_to: AtLeastOne = Field(
        30, description="Last rank of the window (paper: 'top-10 to top-30')."
    )
    positive_ratio: float | None = Field(
        0.95,
        description="A negative scores below this share of its positive's score, 1 at most; 'off': no such limit.",
    )
    margin: Cosine | None = Field(
        None, description="A negative scores at least this much below its positive."
    )
    min_score: Cosine | None = Field(None, description="Candidates below it are too easy.")
    max_score: Cosine | None = Field(
        None, description="Candidates above it are too close, whatever the positive."
    )
    max_positive_cosine: Cosine = Field(
        0.98,
        description="Candidates nearer than this to a positive say the same, and are no negatives.",
    )
    consistency_top_k: AtLeastOne | None = Field(
        None,
        description="Pairs are dropped whose positives are not among the teacher's first k (KaLM: 50).",
        json_schema_extra=EXPERIMENTAL,
    )
    sampling: Literal["uniform", "softmax", "top"] = Field(
        "uniform", description="How negatives are drawn from what qualifies; top: the hardest."
    )
    sampling_temperature: Positive = Field(0.05, description="softmax: divides the scores.")
    negatives_per_query: Count = Field(
        4, description="Negatives kept; fewer where fewer qualify, never filled up."
    )
    llm_negative_fraction: Fraction = Field(
        0.3, description="Share of them that may be LLM-written, where there are."
    )

    @field_validator("positive_ratio", mode="before")
    @classmethod
    def _none_where_off(cls, ratio: object) -> object:
        return None if ratio == "off" else ratio  # TOML has no null

    @field_validator("positive_ratio")
    @classmethod
    def _share(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0.0 < ratio <= 1.0:
            raise ValueError(
                f"{ratio:g} is no share of a score; take one above 0 and up to 1, or 'off' for no limit"
            )
        return ratio

    @property
    def teachers(self) -> tuple[str, ...]:
        """All encoders that mine, in order; '' is the backbone."""
        return (self.teacher, *self.extra_teachers)


class EvaluationSection(Section):
    """What mteb judges, and how."""

    tasks: tuple[str, ...] = Field(
        (),
        description="mteb tasks or benchmarks besides the held-out data: 'SciFact', 'MTEB(eng, v2)'.",
    )
    models: tuple[str, ...] = Field(
        (),
        description="Further models to judge: path, hub id, package:<import name>/<folder>, or an endpoint's URL, "
        "https://host/v1#model.",
    )
    api_key_env: str = Field(
        "QZHOU_JUDGED_API_KEY", description="Variable with the key of such an endpoint."
    )
    instructions: dict[str, str] = Field(
        default_factory=dict,
        description="mteb task -> instruction; default: what mteb declares for it.",
    )
    max_tokens: AtLeastOne | None = Field(
        None, description="Longer texts are truncated; default: model.max_document_tokens."
    )
    split_documents: AtLeastOne = Field(
        20_000,
        description="Documents of a corpus that one worker encodes at a time; larger ones go to several.",
    )
    max_queries: AtLeastOne = Field(
        1000, description="Retrieval: held-out queries, a seeded sample."
    )
    max_documents: AtLeastOne = Field(
        100_000, description="Retrieval: corpus size; relevant documents always stay."
    )
    max_rows: AtLeastOne = Field(2000, description="Other tasks: held-out rows, a seeded sample.")
    bm25: bool = Field(True, description="Add the lexical baseline to retrieval tasks.")


class ServingSection(Section):
    """The endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="HTTP port.")
    models: dict[Name, str] = Field(
        default_factory=dict,
        description="More models in the same endpoint: name -> folder, hub id or package.",
    )
    precision: Precision | None = Field(
        None,
        description="What the model computes in; int8 on CPUs. Default: what texts are encoded in elsewhere.",
        json_schema_extra=EXPERIMENTAL,
    )
    measure_precision: bool = Field(
        True,
        description="Below float32, measure its cosine to float32 when it is loaded (twice, once for each).",
    )
    replicas: AtLeastOne = Field(
        1, description="Copies of each model; with max_replicas, those it starts with."
    )
    min_replicas: Count | None = Field(
        None, description="When there is little to do; 0 is allowed. Default: replicas."
    )
    max_replicas: AtLeastOne | None = Field(
        None, description="When there is much to do; default: no autoscaling."
    )
    target_requests: AtLeastOne = Field(
        32, description="At the same time; autoscaling keeps a replica at so many."
    )
    target_waiting_tokens: AtLeastOne | None = Field(
        None, description="Autoscale by tokens that wait, so many a replica, and not by requests."
    )
    max_batch_tokens: AtLeastOne | None = Field(
        None,
        description="Padded tokens that one forward pass may hold; default: what suits the device.",
    )
    max_wait_s: Positive = Field(
        10.0, description="A request that would be answered later is refused with 429."
    )
    max_waiting_tokens: AtLeastOne = Field(
        4_000_000, description="Of all requests at a replica; bounds its memory."
    )
    max_inputs: AtLeastOne = Field(2048, description="Texts per request; more is refused with 400.")
    max_request_chars: AtLeastOne = Field(
        8_000_000, description="Characters per request; more is refused with 400."
    )
    max_request_tokens: AtLeastOne = Field(
        1_000_000, description="Tokens per request; more is refused with 400."
    )
    max_body_mib: AtLeastOne = Field(
        64, description="Of a request's body; more is refused with 413."
    )
    request_timeout_s: Positive = Field(
        600.0, description="Then 503; OpenAI's clients wait as long."
    )
    cache_mib: Count = Field(
        64, description="Vectors of earlier texts that a replica keeps; 0: none."
    )
    tokens_per_minute: AtLeastOne | None = Field(
        None, description="Of a key, at each replica; more is refused with 429."
    )
    api_keys_env: str = Field(
        "QZHOU_API_KEYS", description="Variable with comma-separated keys; unset: no key asked."
    )
    api_keys_file: str = Field(
        "", description="File with one key a line, on every node; empty: none."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Web pages of other origins that browsers may let ask."
    )
    access_log: bool = Field(
        True, description="A line of JSON for each request in Ray's Serve logs, without its texts."
    )

    @model_validator(mode="after")
    def _scales(self) -> Self:
        if self.max_replicas is None and self.min_replicas is not None:
            raise ValueError(
                "min_replicas needs max_replicas; without it, replicas is all there is"
            )
        if (
            self.max_replicas is not None
            and not (self.min_replicas or 0) <= self.replicas <= self.max_replicas
        ):
            raise ValueError(
                f"min_replicas ({self.min_replicas}), replicas ({self.replicas}) and max_replicas "
                f"({self.max_replicas}) must not fall in this order"
            )
        return self
