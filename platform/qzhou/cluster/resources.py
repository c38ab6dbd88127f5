"""What the stages ask of a cluster, and whether it can ever give that. No ray in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qzhou.config.recipe import Recipe
from qzhou.config.sections import Resources
from qzhou.errors import SetupError
from qzhou.run.run import MANIFEST, Run

StageName = Literal["transform", "synthesis", "mining", "training", "evaluation", "serving"]
STAGES: tuple[StageName, ...] = get_args(StageName)
PIPELINE: tuple[StageName, ...] = ("transform", "synthesis", "mining", "training", "evaluation")

ON_GPU = frozenset(("mining", "training", "evaluation", "serving"))
# the least a local cluster offers: actor pools that take every CPU starve Ray Data's readers
LOGICAL_CPUS = 4
WAITING_CPUS = 0.25  # of an actor that waits for an LLM
SOME_OF_A_TYPE = 0.001  # what Ray takes of the resource that names a type of accelerator


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What a stage asks for.

    Attributes:
        stage: Of the recipe.
        cpus: Of each worker; and so all that follow.
        gpus: A part of one, or a whole number.
        memory: Bytes; None where it is not counted.
        accelerator_type: Empty: any.
        custom: Other resources by name.
        labels: That its node must have.
        workers: So many at least must run at the same time.
    """

    stage: StageName
    cpus: float
    gpus: float
    memory: int | None
    accelerator_type: str
    custom: Mapping[str, float]
    labels: Mapping[str, str]
    workers: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """For ``ray.remote(...).options``, ``map_batches`` and Serve's ``ray_actor_options``."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        extra = {
            "memory": self.memory,
            "accelerator_type": self.accelerator_type,
            "label_selector": dict(self.labels),
        }
        found |= {name: value for name, value in extra.items() if value}
        return found | ({"resources": dict(self.custom)} if self.custom else {})

    @property
    def bundle(self) -> dict[str, float]:
        """The same as Ray counts it."""
        found = {
            "CPU": self.cpus,
            "GPU": self.gpus,
            "memory": float(self.memory or 0),
            **self.custom,
        }
        if self.accelerator_type:
            found[f"accelerator_type:{self.accelerator_type}"] = SOME_OF_A_TYPE
        return {name: amount for name, amount in found.items() if amount}


@dataclass(frozen=True, slots=True)
class NodeType:
    """Nodes of a cluster that are alike.

    Attributes:
        name: Of the node type, or of a node.
        resources: Of each, as Ray counts them.
        labels: Of each.
        most: So many there can be.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    most: int = 1

    def room_for(self, resources_for: ResourceRequest) -> int:
        """So many workers fit on one such node."""
        if any(self.labels.get(name) != value for name, value in resources_for.labels.items()):
            return 0
        return min(
            int(self.resources.get(name, 0.0) / amount + 1e-9)
            for name, amount in resources_for.bundle.items()
        )

    def shortfall(self, resources_for: ResourceRequest) -> float:
        """How far it is from room for one worker: a sum of shares."""
        gaps = (
            1.0 - self.resources.get(name, 0.0) / amount
            for name, amount in resources_for.bundle.items()
        )
        labels = sum(self.labels.get(name) != value for name, value in resources_for.labels.items())
        return sum(max(0.0, gap) for gap in gaps) + labels

    def lacks(self, resources_for: ResourceRequest) -> list[str]:
        """What it has too little of for one worker."""
        found = [
            f"{shown(name, self.resources.get(name, 0.0))} of {shown(name, amount)}"
            for name, amount in resources_for.bundle.items()
            if self.resources.get(name, 0.0) < amount
        ]
        found += [f"label {name} is '{self.labels.get(name, '')}', not '{value}'" for name, value in resources_for.labels.items()
                  if self.labels.get(name) != value]  # fmt: skip
        return found


def resources_for(recipe: Recipe, stage: StageName) -> ResourceRequest:
    """What the recipe lets a stage ask for."""
    asked: Resources = getattr(recipe.cluster, stage)
    gpus = asked.gpus if asked.gpus is not None else float(recipe.cluster.gpu and stage in ON_GPU)
    return ResourceRequest(
        stage=stage,
        cpus=asked.cpus or (WAITING_CPUS if stage == "synthesis" else 1.0),
        gpus=gpus,
        memory=None if asked.memory_gb is None else int(asked.memory_gb * 2**30),
        accelerator_type=asked.accelerator_type,
        custom=asked.custom,
        labels=asked.labels,
        workers=_at_once(recipe, stage),
    )


def resources_of_pipeline(recipe: Recipe) -> list[ResourceRequest]:
    """Of the stages that the run has not finished yet."""
    run = Run.at(recipe).folder
    folders = {stage: "training/stage2" if stage == "training" else stage for stage in PIPELINE}
    return [
        resources_for(recipe, stage)
        for stage, folder in folders.items()
        if not run.exists(f"{folder}/{MANIFEST}")
    ]


def _at_once(recipe: Recipe, stage: StageName) -> int:
    if stage == "training":
        return recipe.training.min_workers or recipe.training.workers
    if stage == "evaluation":
        return recipe.cluster.encode_workers
    return recipe.serving.replicas if stage == "serving" else 1


def refuse_impossible(
    asks: Iterable[ResourceRequest], kinds: Sequence[NodeType], where: str
) -> None:
    """Say at once what would otherwise be waited for without end.

    Args:
        asks: Of the stages that are about to run.
        kinds: All nodes that the cluster has or can start.
        where: The cluster, in words.

    Raises:
        SetupError: A stage asks for more; says what is missing and which settings ask for it.
    """
    problems = [problem for one in asks if (problem := _problem(one, kinds))]
    if problems:
        nodes = (
            "; ".join(f"{kind.most} x {kind.name} with {_all(kind.resources)}" for kind in kinds)
            or "none"
        )
        raise SetupError(
            "\n       ".join(
                [
                    *problems,
                    f"Nodes of {where}: {nodes}. Add nodes that fit, or let the stage ask for less.",
                ]
            )
        )


def _problem(asked: ResourceRequest, kinds: Sequence[NodeType]) -> str | None:
    room = sum(kind.most * kind.room_for(asked) for kind in kinds)
    if room >= asked.workers:
        return None
    each = f"each worker of {asked.stage} asks for {_all(asked.bundle)}{_labelled(asked.labels)}"
    if room:
        return (
            f"cluster.{asked.stage}: {each}, {asked.workers} must run at the same time, and there is room for "
            f"{room}."
        )
    nearest = min(kinds, key=lambda kind: kind.shortfall(asked), default=None)
    missing = (
        f"; the nearest, {nearest.name}, has {', '.join(nearest.lacks(asked))}" if nearest else ""
    )
    return f"cluster.{asked.stage}: {each}, and no node gives that{missing}."


def _all(resources: Mapping[str, float]) -> str:
    told = {
        name: amount
        for name, amount in resources.items()
        if not name.startswith(("node:", "object_store"))
    }
    return ", ".join(shown(name, amount) for name, amount in sorted(told.items())) or "nothing"


def shown(name: str, amount: float) -> str:
    """A resource as people read it."""
    if name == "memory":
        return f"{amount / 2**30:.1f} GB memory"
    kind = name.removeprefix("accelerator_type:")
    return kind if kind != name and amount else f"{amount:g} {kind}"


def _labelled(labels: Mapping[str, str]) -> str:
    return (
        f" on nodes with {', '.join(f'{name}={value}' for name, value in labels.items())}"
        if labels
        else ""
    )
