"""The machines of a plan."""

from __future__ import annotations

import dataclasses
import os

from qzhou.config.recipe import Recipe
from qzhou.errors import RecipeError
from qzhou.estimate.hardware import Gpu, Machine, gpu_named, machine_of
from qzhou.estimate.options import PlanOptions, flag

DEFAULT_CLOUD, DEFAULT_GPU = "aws", "H100"
CPU_MACHINES = 8  # rented for transform and synthesis; cluster.yaml allows as many
ONLY_RENTED = ("gpus", "cloud", "gpu_price", "cpu_price")


@dataclasses.dataclass(frozen=True, slots=True)
class MachineGroup:
    """Machines of one kind that work at the same time.

    Attributes:
        machine: None is this machine, for which nobody pays, or a part of a machine.
        cpus: Of all machines together, as are ``gpus`` and ``price``, US dollars per hour.
    """

    machine: Machine | None
    count: int
    cpus: int
    gpu: Gpu | None = None
    gpus: int = 0
    price: float = 0.0

    @property
    def one(self) -> MachineGroup:
        """One of its machines."""
        cpus, gpus = self.cpus // self.count, self.gpus // self.count
        return MachineGroup(self.machine, 1, cpus, self.gpu, gpus, self.price / self.count)

    def __str__(self) -> str:
        if self.machine is not None:
            return f"{self.count} x {self.machine.name}"
        return f"{self.gpus} {self.gpu.name}" if self.gpu else "this machine"


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterSpec:
    """``cpu`` transforms and synthesizes, ``gpu`` does the rest; both local if no GPUs."""

    cpu: MachineGroup
    gpu: MachineGroup

    @property
    def rented(self) -> bool:
        """Whether somebody pays for the machines."""
        return self.gpu.machine is not None


def recipe_gpu(recipe: Recipe) -> str:
    """Name of the GPU that a recipe asks for; empty if it asks for none."""
    if not recipe.cluster.gpu:
        return ""
    return recipe.cluster.training.accelerator_type.partition("-")[0] or DEFAULT_GPU


def cluster_spec(recipe: Recipe, options: PlanOptions) -> ClusterSpec:
    """The machines that a recipe and the command line ask for.

    Raises:
        RecipeError: A GPU or cloud is not known, or an option has no meaning without GPUs.
    """
    name = options.gpu or recipe_gpu(recipe)
    if not name:
        if meaningless := [flag(one) for one in ONLY_RENTED if getattr(options, one)]:
            raise RecipeError(
                f"command line: {', '.join(meaningless)} without --gpu, and cluster.gpu is false; "
                f"name a GPU: --gpu {DEFAULT_GPU}"
            )
        here = MachineGroup(None, 1, options.cpus or os.cpu_count() or 1)
        return ClusterSpec(here, here)
    gpu = gpu_named(name)
    machine = machine_of(options.cloud or DEFAULT_CLOUD, gpu=gpu.name)
    gpus = options.gpus or recipe.training.workers
    count = -(-gpus // machine.gpus)
    price = count * machine.price if options.gpu_price is None else gpus * options.gpu_price
    group = MachineGroup(machine, count, count * machine.cpus, gpu, gpus, price)
    return ClusterSpec(_cpu_group(options, group), group)


def _cpu_group(options: PlanOptions, gpu_group: MachineGroup) -> MachineGroup:
    """Machines for work on CPUs; those with GPUs, where the cloud has no others listed."""
    try:
        machine = machine_of(options.cloud or DEFAULT_CLOUD)
    except RecipeError:
        return dataclasses.replace(gpu_group, gpu=None, gpus=0)
    cpus = options.cpus or CPU_MACHINES * machine.cpus
    count = -(-cpus // machine.cpus)
    price = count * machine.price if options.cpu_price is None else cpus * options.cpu_price
    return MachineGroup(machine, count, cpus, price=price)
