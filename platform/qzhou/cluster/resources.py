"""The resources that each stage requests from a cluster, and whether the cluster can ever give them. No ray here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qzhou.config.cluster import Resources
from qzhou.config.recipe import Recipe
from qzhou.errors import SetupError
from qzhou.run.files import MANIFEST, TRAINING_STAGE2
from qzhou.run.run import Run

StageName = Literal["transform", "synthesis", "mining", "search", "training", "evaluation", "serving"]
PIPELINE: tuple[StageName, ...] = ("transform", "synthesis", "mining", "training", "evaluation")

ON_GPU = frozenset(("mining", "training", "evaluation", "serving"))
# A local cluster offers at least this many: actor pools that take every CPU starve Ray Data's readers.
MIN_LOCAL_CPUS = 4
DEFAULT_CPUS = {
    "synthesis": 0.25,  # an actor that only waits for an LLM
    "search": 0.01,  # they wait for each other; so that none is placed on a head that offers nothing
}
ACCELERATOR_TYPE_AMOUNT = 0.001  # what Ray takes of the resource that names a type of accelerator


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What one stage requests.

    Attributes:
        stage: Name of the stage.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker: a part of one, or a whole number.
        memory: Bytes of each worker; None: not counted.
        accelerator_type: GPU type as Ray names it; empty: any.
        custom: Amounts of other resources of each worker, by name.
        labels: Labels that the worker's node must have.
        workers: Number of workers that must run at the same time.
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
        """Arguments of ``ray.remote().options``, ``map_batches``, ``ray_actor_options``."""
        optional = {
            "memory": self.memory,
            "accelerator_type": self.accelerator_type,
            "label_selector": dict(self.labels),
            "resources": dict(self.custom),
        }
        given = {name: value for name, value in optional.items() if value}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **given}

    @property
    def bundle(self) -> dict[str, float]:
        """The request of one worker as amounts by Ray's resource names, without zeros."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory or 0), **self.custom}
        if self.accelerator_type:
            amounts[f"accelerator_type:{self.accelerator_type}"] = ACCELERATOR_TYPE_AMOUNT
        return {name: amount for name, amount in amounts.items() if amount}


@dataclass(frozen=True, slots=True)
class NodeType:
    """Nodes of a cluster with equal resources.

    Attributes:
        name: Name of the node type, or of a single node.
        resources: Amounts of each node by Ray's resource names.
        labels: Labels of each node.
        max_count: Number of such nodes that the cluster has or can start.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    max_count: int = 1

    def capacity_for(self, request: ResourceRequest) -> int:
        """Number of workers that fit on one node."""
        if any(self.labels.get(name) != value for name, value in request.labels.items()):
            return 0
        fits = (self._amount(name) / amount for name, amount in request.bundle.items())
        return int(min(fits) + 1e-9)

    def shortfall(self, request: ResourceRequest) -> float:
        """Distance from room for a worker: missing shares' sum, plus 1 per wrong label."""
        shares = (self._amount(name) / amount for name, amount in request.bundle.items())
        wrong_labels = sum(self.labels.get(key) != value for key, value in request.labels.items())
        return sum(max(0.0, 1.0 - share) for share in shares) + wrong_labels

    def missing(self, request: ResourceRequest) -> list[str]:
        """What one worker lacks on such a node, one phrase for each resource and label."""
        resources = [
            f"{shown(name, self._amount(name))} of {shown(name, amount)}"
            for name, amount in request.bundle.items()
            if self._amount(name) < amount
        ]
        labels = [
            f"label {name} is '{self.labels.get(name, '')}', not '{value}'"
            for name, value in request.labels.items()
            if self.labels.get(name) != value
        ]
        return resources + labels

    def _amount(self, resource: str) -> float:
        return self.resources.get(resource, 0.0)


def resources_for(recipe: Recipe, stage: StageName) -> ResourceRequest:
    """A stage's request: ``[cluster.<stage>]`` of the recipe with defaults filled in."""
    settings: Resources = getattr(recipe.cluster, stage)
    default_gpus = float(recipe.cluster.gpu and stage in ON_GPU)
    return ResourceRequest(
        stage=stage,
        cpus=settings.cpus or DEFAULT_CPUS.get(stage, 1.0),
        gpus=default_gpus if settings.gpus is None else settings.gpus,
        memory=None if settings.memory_gb is None else int(settings.memory_gb * 2**30),
        accelerator_type=settings.accelerator_type,
        custom=settings.custom,
        labels=settings.labels,
        workers=_workers_together(recipe, stage),
    )


def resources_of_pipeline(recipe: Recipe) -> list[ResourceRequest]:
    """The requests of the stages that the run has not finished yet."""
    run = Run.at(recipe).folder
    folders = {stage: TRAINING_STAGE2 if stage == "training" else stage for stage in PIPELINE}
    return [
        resources_for(recipe, stage) for stage, folder in folders.items() if not run.exists(f"{folder}/{MANIFEST}")
    ]


def _workers_together(recipe: Recipe, stage: StageName) -> int:
    if stage == "training":
        return recipe.training.min_workers or recipe.training.workers
    if stage in ("evaluation", "search"):
        own = recipe.cluster.search.workers if stage == "search" else None
        return own or recipe.cluster.encode_workers
    return recipe.serving.replicas if stage == "serving" else 1


def refuse_impossible(requests: Iterable[ResourceRequest], node_types: Sequence[NodeType], where: str) -> None:
    """Refuse requests that the cluster can never grant, for which Ray would wait endlessly.

    Args:
        requests: Those of the stages that are about to run.
        node_types: All nodes that the cluster has or can start.
        where: The cluster in words, for the message.

    Raises:
        SetupError: A request cannot be granted; names what is missing and the settings.
    """
    problems = [problem for one in requests if (problem := _problem(one, node_types))]
    if not problems:
        return
    nodes = "; ".join(f"{one.max_count} x {one.name} with {_all(one.resources)}" for one in node_types)
    hint = f"Nodes of {where}: {nodes or 'none'}. Add nodes that fit, or let the stage ask for less."
    raise SetupError("\n       ".join([*problems, hint]))


def _problem(request: ResourceRequest, node_types: Sequence[NodeType]) -> str | None:
    """Why a request cannot be granted; None where it can."""
    capacity = sum(one.max_count * one.capacity_for(request) for one in node_types)
    if capacity >= request.workers:
        return None
    labels = ", ".join(f"{name}={value}" for name, value in request.labels.items())
    on_nodes = f" on nodes with {labels}" if labels else ""
    place = f"cluster.{request.stage}"
    each = f"each worker of {request.stage} asks for {_all(request.bundle)}{on_nodes}"
    if capacity:
        together = f"{request.workers} must run at the same time, and there is room for {capacity}"
        return f"{place}: {each}, {together}."
    nearest = min(node_types, key=lambda one: one.shortfall(request), default=None)
    missing = f"; the nearest, {nearest.name}, has {', '.join(nearest.missing(request))}" if nearest else ""
    return f"{place}: {each}, and no node gives that{missing}."


def _all(resources: Mapping[str, float]) -> str:
    internal = ("node:", "object_store")
    phrases = [shown(name, amount) for name, amount in sorted(resources.items()) if not name.startswith(internal)]
    return ", ".join(phrases) or "nothing"


def shown(name: str, amount: float) -> str:
    """A resource as people read it: ``8 CPU``, ``64.0 GB memory``, ``H100``."""
    if name == "memory":
        return f"{amount / 2**30:.1f} GB memory"
    kind = name.removeprefix("accelerator_type:")
    return kind if kind != name and amount else f"{amount:g} {kind}"
