"""GPUs, and machines that clouds rent: what ``hardware.toml`` says of them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qzhou.errors import RecipeError

TABLE = Path(__file__).with_name("hardware.toml")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        flops: Dense bfloat16 operations a second, by its data sheet.
        memory_gb: In 10^9 bytes.
        bandwidth: Of its memory, bytes a second.
    """

    name: str
    flops: float
    memory_gb: float
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that can be rented.

    Attributes:
        gpus: 0 of a machine for transform and synthesis.
        cpus: As the cloud counts them.
        price: US dollars an hour: a list price on demand, or what the user says.
        read: When the list was read, or who says so.
    """

    cloud: str
    name: str
    gpu: str = ""
    gpus: int
    cpus: int
    price: float
    read: str


@cache
def _tables() -> tuple[dict[str, Gpu], list[Machine]]:
    content = tomllib.loads(TABLE.read_text("utf-8"))
    gpus = {name: Gpu(name, **figures) for name, figures in content["gpus"].items()}
    return gpus, [Machine(**one) for one in content["machines"]]


def gpus() -> dict[str, Gpu]:
    """All that are known, by name."""
    return _tables()[0]


def gpu_named(name: str) -> Gpu:
    """A GPU, whatever the case of its name.

    Raises:
        RecipeError: It is not known; says which are like it.
    """
    known = gpus()
    found = known.get(name.upper())
    if found is None:
        raise RecipeError(f"command line: --gpu is '{name}'; {_nearest(name.upper(), known)}")
    return found


def machine_of(cloud: str, *, gpu: str = "") -> Machine:
    """The machine of a cloud with a GPU; without one, that for work on CPUs.

    Raises:
        RecipeError: The cloud is not known, or has no price for such a machine here.
    """
    machines = _tables()[1]
    clouds = list(dict.fromkeys(one.cloud for one in machines))
    if cloud not in clouds:
        raise RecipeError(f"command line: --cloud is '{cloud}'; {_nearest(cloud, clouds)}")
    found = next((one for one in machines if (one.cloud, one.gpu) == (cloud, gpu)), None)
    if found is None:
        others = ", ".join(one.cloud for one in machines if one.gpu == gpu) or "none"
        what = f"machine with a {gpu}" if gpu else "machine without a GPU"
        raise RecipeError(
            f"command line: --cloud is '{cloud}', and the table has no price of a {what} there; clouds with one: "
            f"{others}. Take one of these, and give your own price with {'--gpu-price' if gpu else '--cpu-price'}"
        )
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    """What was probably meant, and all there are."""
    listed = list(known)
    near = difflib.get_close_matches(name, listed, n=2, cutoff=0.4)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{meant}known: {', '.join(listed)}"
