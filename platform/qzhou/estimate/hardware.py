"""GPUs, and machines that clouds rent, from ``hardware.toml``."""

import difflib
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qzhou.errors import RecipeError

TABLE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        flops: Dense bfloat16 operations per second, by its data sheet.
        memory_gb: In 10^9 bytes.
    """

    name: str
    flops: float
    memory_gb: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that can be rented.

    Attributes:
        gpu: Name of its GPUs; empty where it has none.
        cpus: Virtual CPUs, as the cloud counts them.
        price: US dollars per hour, the list price on demand.
        read: When the list price was read.
    """

    cloud: str
    name: str
    gpu: str
    gpus: int
    cpus: int
    price: float
    read: str


@cache
def gpus() -> dict[str, Gpu]:
    """All known GPUs by name."""
    table = tomllib.loads(TABLE.read_text("utf-8"))["gpus"]
    return {name: Gpu(name, **figures) for name, figures in table.items()}


@cache
def machines() -> list[Machine]:
    """All known machines, in the order of the table."""
    clouds = tomllib.loads(TABLE.read_text("utf-8"))["machines"]
    return [Machine(cloud, name, *row) for cloud, rows in clouds.items() for name, row in rows.items()]


def gpu_named(name: str) -> Gpu:
    """A GPU, whatever the case of its name.

    Raises:
        RecipeError: The GPU is not known; the message names similar ones.
    """
    if name.upper() not in gpus():
        raise RecipeError(f"command line: --gpu is '{name}'; {_nearest(name.upper(), gpus())}")
    return gpus()[name.upper()]


def machine_of(cloud: str, *, gpu: str = "") -> Machine:
    """A cloud's machine with a GPU of this name; with no name, the machine without GPUs.

    Raises:
        RecipeError: The cloud is not known, or has no such machine in the table.
    """
    clouds = dict.fromkeys(one.cloud for one in machines())
    if cloud not in clouds:
        raise RecipeError(f"command line: --cloud is '{cloud}'; {_nearest(cloud, clouds)}")
    suited = [one for one in machines() if one.gpu == gpu]
    found = next((one for one in suited if one.cloud == cloud), None)
    if found is None:
        others = ", ".join(one.cloud for one in suited) or "none"
        what = f"machine with a {gpu}" if gpu else "machine without a GPU"
        raise RecipeError(
            f"command line: --cloud is '{cloud}', and the table has no price of a {what} there; clouds with one: "
            f"{others}. Take one of these, and give your own price with {'--gpu-price' if gpu else '--cpu-price'}"
        )
    return found


def _nearest(name: str, known: Collection[str]) -> str:
    """A question with the similar names, and all known ones."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{meant}known: {', '.join(known)}"
