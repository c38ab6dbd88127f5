"""What is asked for: sizes, and the machines that shall do it."""

from __future__ import annotations

import dataclasses
import os

from qzhou.config.recipe import Recipe
from qzhou.costs.hardware import Gpu, Machine, gpu_named, machine_of
from qzhou.errors import RecipeError

DEFAULT_CLOUD = "aws"
CPU_MACHINES = 8  # that are rented for transform and synthesis; cluster.yaml allows as many
MOST = 10**12  # of anything that is counted; beyond it somebody's finger stayed on the key
ONLY_RENTED = ("gpus", "cloud", "gpu_price", "cpu_price")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the command line says.

    Attributes:
        rows: Raw rows, over all datasets.
        examples: What is trained on, after synthesis.
        synthetic: Requests to an LLM, instead of what the recipe asks for.
        measured: Folder of a finished run, or of one that has finished some stages.
        gpu: Name of a GPU; empty: the recipe's, or none.
        gpus: How many.
        cpus: For transform and synthesis; without a cloud, of the one machine that does it all.
        cloud: Whose machines are rented; empty: none, where no GPU is named either.
        gpu_price: US dollars an hour and GPU, instead of the list price.
        cpu_price: The same of a CPU.
        mean_query_tokens: Instead of what examples say, or what is assumed without them.
        mean_document_tokens: The same of documents.
    """

    rows: int | None = None
    examples: int | None = None
    synthetic: int | None = None
    measured: str = ""
    gpu: str = ""
    gpus: int | None = None
    cpus: int | None = None
    cloud: str = ""
    gpu_price: float | None = None
    cpu_price: float | None = None
    mean_query_tokens: float | None = None
    mean_document_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "examples", "gpus", "cpus"):
            _at_least(name, getattr(self, name), 1)
        for name in ("synthetic", "gpu_price", "cpu_price"):
            _at_least(name, getattr(self, name), 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Crew:
    """Machines of one kind that work at the same time.

    Attributes:
        machine: None: this one, or the one that was measured; nobody pays for it.
        count: How many of them.
        cpus: Of all.
        gpu: Which each has, if any.
        gpus: Of all.
        price: US dollars an hour for all.
    """

    machine: Machine | None
    count: int
    cpus: int
    gpu: Gpu | None = None
    gpus: int = 0
    price: float = 0.0

    @property
    def one(self) -> Crew:
        """One of its machines."""
        each = {name: getattr(self, name) // self.count for name in ("cpus", "gpus")}
        return dataclasses.replace(self, count=1, price=self.price / self.count, **each)

    def __str__(self) -> str:
        if self.machine is None:
            return "this machine"
        return f"{self.count} x {self.machine.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """Who works: ``cpu`` transforms and synthesizes, ``gpu`` does the rest. On one machine they are the same."""

    cpu: Crew
    gpu: Crew

    @property
    def rented(self) -> bool:
        return self.gpu.machine is not None


def fleet_of(recipe: Recipe, target: Target) -> Fleet:
    """The machines of a plan.

    Raises:
        RecipeError: A GPU or a cloud is not known, or an option means nothing without GPUs.
    """
    asked = recipe.cluster.training.accelerator_type if recipe.cluster.gpu else ""
    name = target.gpu or (asked.partition("-")[0] or "H100" if recipe.cluster.gpu else "")
    if not name:
        if told := [one for one in ONLY_RENTED if getattr(target, one)]:
            flags = ", ".join(f"--{one.replace('_', '-')}" for one in told)
            raise RecipeError(
                f"command line: {flags} without --gpu, and cluster.gpu is false; name a GPU: --gpu H100"
            )
        here = Crew(None, 1, target.cpus or os.cpu_count() or 1)
        return Fleet(here, here)
    gpu = gpu_named(name)
    machine = machine_of(target.cloud or DEFAULT_CLOUD, gpu=gpu.name)
    gpus = target.gpus or recipe.training.workers
    count = -(-gpus // machine.gpus)
    price = count * machine.price if target.gpu_price is None else gpus * target.gpu_price
    workers = Crew(machine, count, count * machine.cpus, gpu, gpus, price)
    return Fleet(_cpu_crew(target, workers), workers)


def _cpu_crew(target: Target, workers: Crew) -> Crew:
    """A cloud without machines for work on CPUs lets the others do it."""
    try:
        machine = machine_of(target.cloud or DEFAULT_CLOUD)
    except RecipeError:
        return dataclasses.replace(workers, gpu=None, gpus=0)
    cpus = target.cpus or CPU_MACHINES * machine.cpus
    count = -(-cpus // machine.cpus)
    price = count * machine.price if target.cpu_price is None else cpus * target.cpu_price
    return Crew(machine, count, cpus, price=price)


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value <= MOST:
        flag = f"--{name.replace('_', '-')}"
        raise RecipeError(
            f"command line: {flag} is {value:,}; it is a number from {least} to {MOST:,}"
        )
