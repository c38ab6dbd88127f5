"""The tables ``[cluster]`` and ``[cluster.<stage>]``: the resources that stages request."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from qzhou.config.section import AtLeastOne, Positive, Section


class Resources(Section):
    """What each task, actor, training worker or replica of a stage asks of the cluster."""

    cpus: Positive | None = Field(None, description="Default: 1; of what waits for an LLM a quarter.")
    gpus: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Default: 1 with cluster.gpu where the stage can use one; 0.5 lets two share one."
    )
    memory_gb: Positive | None = Field(None, description="Of main memory; default: Ray does not count it.")
    accelerator_type: str = Field("", description="As Ray names it: 'H100', 'A100-80G', 'L40S'; empty: any.")
    custom: dict[str, Positive] = Field(
        default_factory=dict, description="Other resources that nodes of yours declare: {big_disk = 1}."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Only on nodes with these labels: {'ray.io/market-type' = 'on-demand'}."
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


class SearchResources(Resources):
    """Of the actors that search a corpus in mining; with cluster.gpu they share the GPUs."""

    workers: AtLeastOne | None = Field(
        None, description="Actors for a corpus; default: encode_workers. More where an index would not fit."
    )


class ClusterSection(Section):
    """What the stages ask of the cluster: each worker, and how many there are.

    How many work at the same time is said here for transform and for encoders, and where
    the stage has more to say of it in ``training.workers``, ``training.min_workers``,
    ``serving.replicas`` and ``serving.max_replicas``.
    """

    gpu: bool = Field(False, description="Training workers, encoders and replicas take one GPU each.")
    encode_workers: AtLeastOne = Field(2, description="Encoder actors that mine or evaluate at the same time.")
    min_encode_workers: AtLeastOne | None = Field(
        None, description="With so many mining begins, and takes more as nodes come; default: all at once."
    )
    transform: TransformResources = TransformResources()
    synthesis: Resources = Resources()
    mining: Resources = Resources()
    search: SearchResources = SearchResources()
    training: Resources = Resources()
    evaluation: Resources = Resources()
    serving: Resources = Resources()

    @model_validator(mode="after")
    def _gpus_where_there_are_some(self) -> Self:
        for stage in ("mining", "search", "training", "evaluation", "serving"):
            gpus = getattr(self, stage).gpus
            if gpus and not self.gpu:
                raise ValueError(f"cluster.{stage}.gpus is {gpus:g} and cluster.gpu is false; set it to true")
        for stage in ("transform", "synthesis"):
            if gpus := getattr(self, stage).gpus:
                raise ValueError(
                    f"cluster.{stage}.gpus is {gpus:g}, and {stage} has no use for a GPU; leave it out"
                )
        return self
