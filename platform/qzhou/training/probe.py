"""What the ranks of a training stage find on their machines before anything is trained: versions, GPUs, the network."""

import importlib.metadata
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.errors import SetupError
from qzhou.telemetry.events import log_event
from qzhou.training.pipeline import PATIENCE_S, scaling_config, set_up_ray_train

PACKAGES = ("torch", "deepspeed", "transformers", "ray")
# bytes that are summed over all ranks; as many as DeepSpeed sums at a time on GPUs
SUMMED_BYTES = {"cpu": 2**24, "cuda": 2**30}
ROUNDS = 3
Environment = Mapping[str, str]


def probe(recipe: Recipe, folder: Folder) -> float:
    """The bandwidth of an all-reduce between the ranks in GB/s, as NCCL's tests count it; 0 where there is one rank.

    Args:
        recipe: Whose training is about to be tried.
        folder: For what Ray Train keeps.

    Raises:
        SetupError: A GPU cannot be used, ranks have different versions, or the network is slower than
            ``training.min_all_reduce_gb_per_s``.
    """
    set_up_ray_train()
    with session(resources_for(recipe, "training")):
        trainer = TorchTrainer(
            _probe_rank,
            train_loop_config={"gpu": recipe.cluster.gpu},
            # gloo also starts where a GPU cannot be used, and so the ranks can say why
            torch_config=TorchConfig(backend="gloo", timeout_s=PATIENCE_S),
            scaling_config=scaling_config(recipe),
            run_config=ray.train.RunConfig(name="probe", storage_path=folder.uri),
        )
        found = trainer.fit().return_value
    environments, speed = found["environments"], float(found["gb_per_s"])
    check_environments(environments)
    nodes = {one["node"] for one in environments}
    versions = ", ".join(f"{name} {environments[0][name]}" for name in (*PACKAGES, "CUDA", "driver"))
    count = f"workers: {len(environments)}, nodes: {len(nodes)}"
    log_event(f"rehearse: {count}; {versions}", "environment")
    if len(environments) > 1:
        check_speed(speed, recipe.training.min_all_reduce_gb_per_s)
    return speed


def check_speed(speed: float, least: float) -> None:
    """Say how fast the network between ranks is, and refuse one that is too slow.

    Args:
        speed: Bus bandwidth of an all-reduce in GB/s.
        least: ``training.min_all_reduce_gb_per_s``.

    Raises:
        SetupError: It is slower.
    """
    log_event(
        f"rehearse: the workers sum {speed:.2f} GB/s (bus bandwidth of all-reduce)", "all_reduce", speed=speed
    )
    if speed < least:
        raise SetupError(
            f"the workers sum {speed:.2f} GB/s over the network, and training.min_all_reduce_gb_per_s is {least:g}. "
            "Several nodes need their fast network cards (EFA, GPUDirect, InfiniBand), and one placement group; see "
            "docs/cluster.md. NCCL_DEBUG=INFO says which it takes."
        )


def check_environments(environments: list[Environment]) -> None:
    """Refuse ranks that cannot train together.

    Raises:
        SetupError: A rank has no usable GPU, or other versions than rank 0.
    """
    for rank, one in enumerate(environments):
        if one["problem"]:
            raise SetupError(f"worker {rank} on {one['node']}: {one['problem']}")
        other = {name: value for name, value in one.items() if name != "node" and value != environments[0][name]}
        if other:
            shown = ", ".join(f"{name} {value} and {environments[0][name]}" for name, value in other.items())
            raise SetupError(
                f"workers have different software: {one['node']} and {environments[0]['node']} have {shown}. Give all "
                "nodes that train one image."
            )


def _probe_rank(settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    world = dist.get_world_size()
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, _environment(gpu=settings["gpu"]))
    if world == 1 or any(one["problem"] for one in everyone):
        return {"environments": everyone, "gb_per_s": 0.0}
    device = "cuda" if settings["gpu"] else "cpu"
    group = dist.new_group(backend="nccl" if settings["gpu"] else "gloo")
    numbers = torch.zeros(SUMMED_BYTES[device] // 4, device=device)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one connects
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(numbers, group=group)
        float(numbers[0])  # waits for the GPU
        seconds.append(time.monotonic() - began)
    # each rank sends and receives 2 (n - 1) / n of the numbers
    speed = 2 * (world - 1) / world * numbers.nbytes / min(seconds[1:]) / 1e9
    return {"environments": everyone, "gb_per_s": speed}


def _environment(*, gpu: bool) -> dict[str, str]:
    """Versions on this machine, and what is wrong with its GPU."""
    import torch

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {"CUDA": "none", "driver": "none", "problem": "", "node": ray.util.get_node_ip_address()}
    if not gpu:
        return found
    found |= {"CUDA": str(torch.version.cuda), "driver": _driver()}
    if not torch.cuda.is_available():
        found["problem"] = (
            f"torch {found['torch']} is built for CUDA {found['CUDA']} and sees no GPU; the driver is "
            f"{found['driver']}. CUDA 13 needs driver 580 or newer, CUDA 12 needs 525: take another image, or the "
            "torch of another CUDA"
        )
    return found


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.split()), "unknown")
