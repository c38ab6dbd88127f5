"""Checks of the machine that the command runs on. What is judged is pure; :func:`machine_findings` measures."""

from __future__ import annotations

import contextlib
import importlib.metadata
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from qzhou.cli.doctor.findings import Finding, guarded

GIB = 2**30
FEWEST_FILES = 4_096  # Ray opens a socket for each worker, and Arrow a file for each part
LEAST_MEMORY, LEAST_SHARED, LEAST_DISK = 4 * GIB, 1 * GIB, 10 * GIB
FULL = 0.95  # of its disk, Ray starts nothing that may spill
PACKING = 80  # compute capability of the oldest GPUs on which texts are packed


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, and what torch was built for; ``sm_90`` is 90."""

    name: str
    capability: int
    gib: float
    built_for: tuple[int, ...]
    runs_newer: bool


def machine_findings(places: Mapping[str, str], *, needs_gpu: bool) -> Iterator[Finding]:
    """All of this machine.

    Args:
        places: Folders on which much is written -> what for.
        needs_gpu: Whether the recipe asks for GPUs.
    """
    yield python(sys.version_info[:3])
    yield from guarded("packages", lambda: packages(_installed(), _required()))
    yield from guarded("GPU", lambda: gpus(_gpus(), needs_gpu=needs_gpu))
    yield from guarded("FAISS", lambda: faiss(_faiss_searches_on_gpu(), needs_gpu=needs_gpu))
    memory = psutil.virtual_memory()
    yield free_memory(memory.available, memory.total)
    shared = Path("/dev/shm")
    if shared.exists():
        yield shared_memory(shutil.disk_usage(shared).total, memory.total)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    temporary = shutil.disk_usage(tempfile.gettempdir())
    yield disk(f"disk of {tempfile.gettempdir()}", temporary.free, temporary.total, fullest=FULL)
    for place, purpose in places.items():
        usage = shutil.disk_usage(_existing(Path(place)))
        yield disk(f"disk of {place} ({purpose})", usage.free, usage.total)


def python(version: Sequence[int]) -> Finding:
    """Python 3.11 or newer; others are not tested."""
    shown = ".".join(map(str, version))
    if tuple(version[:2]) < (3, 11):
        return Finding("Python", "fail", f"{shown}, and 3.11 is needed", "Make the environment with a newer one")
    return Finding("Python", "ok", shown)


def packages(installed: Mapping[str, str | None], required: Sequence[Requirement]) -> Finding:
    """Whether each package of the project is there in a version that was tested."""
    missing = [one.name for one in required if installed.get(one.name) is None]
    other = [
        f"{one.name} {installed[one.name]} (not {one.specifier})"
        for one in required
        if installed.get(one.name) and not one.specifier.contains(str(installed[one.name]), prereleases=True)
    ]
    if missing or other:
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"of other versions: {', '.join(other)}"] if other else []
        return Finding(
            "packages", "fail", "; ".join(parts), "pip install qzhou again, into an environment of its own"
        )
    shown = ", ".join(f"{name} {installed[name]}" for name in ("ray", "torch", "transformers", "deepspeed"))
    return Finding("packages", "ok", shown)


def gpus(found: Sequence[Gpu], *, needs_gpu: bool) -> Iterator[Finding]:
    """Each kind of GPU against what torch's kernels were built for."""
    if not found:
        if needs_gpu:
            way_out = "On a cluster, ask its head: --address; here, see `nvidia-smi` and torch.version.cuda"
            yield Finding("GPU", "fail", "torch sees none, and the recipe has cluster.gpu = true", way_out)
        else:
            yield Finding("GPU", "ok", "none; all runs on CPUs")
        return
    for kind in dict.fromkeys(found):
        shown = (
            f"{found.count(kind)} x {kind.name}, {kind.gib:.0f} GiB, compute capability {kind.capability / 10:.1f}"
        )
        # code for one minor version runs on the later ones of the same major version
        runs = any(one // 10 == kind.capability // 10 and one <= kind.capability for one in kind.built_for)
        newest = max(kind.built_for, default=0)
        if not runs and not (kind.runs_newer and kind.capability > newest):
            built = ", ".join(f"{one / 10:.1f}" for one in kind.built_for)
            yield Finding("GPU", "fail", f"{shown}; torch was built for {built}", "Install torch for this GPU")
        elif kind.capability < PACKING:
            yield Finding("GPU", "warn", f"{shown}: texts are padded, not packed", "Ampere and newer pack them")
        else:
            yield Finding("GPU", "ok", shown)


def faiss(on_gpu: bool | None, *, needs_gpu: bool) -> Finding:
    """Whether FAISS is there, and its GPU build where GPUs are asked for."""
    if on_gpu is None:
        extra = "gpu" if needs_gpu else "cpu"
        return Finding("FAISS", "fail", "is not installed", f"pip install 'qzhou[{extra}]'")
    if needs_gpu and not on_gpu:
        way_out = "pip uninstall faiss-cpu, then pip install 'qzhou[gpu]'; exact search needs neither"
        return Finding("FAISS", "warn", "its build for CPUs, and the recipe has cluster.gpu = true", way_out)
    return Finding("FAISS", "ok", "its build for GPUs" if on_gpu else "its build for CPUs")


def free_memory(available: int, total: int) -> Finding:
    """Memory that is free now."""
    said = f"{available / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if available < LEAST_MEMORY:
        way_out = f"{LEAST_MEMORY / GIB:.0f} GiB are the least that a small model takes: end other programs"
        return Finding("memory", "warn", said, way_out)
    return Finding("memory", "ok", said)


def shared_memory(size: int, memory: int) -> Finding:
    """/dev/shm, in which Ray keeps its objects: a third of the memory is what it asks for."""
    said = f"{size / GIB:.1f} GiB"
    if size < min(LEAST_SHARED, memory // 4):
        way_out = "Ray keeps its objects on a disk instead, which is slow: start the container with --shm-size=8g"
        return Finding("/dev/shm", "warn", said, way_out)
    return Finding("/dev/shm", "ok", said)


def open_files(limit: int) -> Finding:
    """The limit of open files of a process."""
    shown = "without limit" if limit in {-1, resource.RLIM_INFINITY} else f"{limit:,}"
    if 0 <= limit < FEWEST_FILES:
        return Finding("open files", "warn", f"{shown}, and {FEWEST_FILES:,} are good", "ulimit -n 65536")
    return Finding("open files", "ok", shown)


def disk(name: str, free: int, total: int, *, fullest: float | None = None) -> Finding:
    """A disk with room; ``fullest`` is the share at which Ray, which keeps its files there, starts nothing more."""
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if fullest is not None and free < (1 - fullest) * total:
        return Finding(name, "fail", f"{said}; Ray stops at {fullest:.0%} full", "Make room, or set TMPDIR")
    if free < LEAST_DISK:
        return Finding(name, "warn", said, "Runs keep checkpoints and vectors: make room")
    return Finding(name, "ok", said)


def _installed() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for one in _required():
        try:
            found[one.name] = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found[one.name] = None
    return found


def _required() -> list[Requirement]:
    """What the project itself asks for, without its extras."""
    found = [Requirement(one) for one in importlib.metadata.requires("qzhou") or []]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _gpus() -> list[Gpu]:
    import torch

    if not torch.cuda.is_available():
        return []
    listed = torch.cuda.get_arch_list()
    built_for = tuple(int(one.removeprefix("sm_").rstrip("af")) for one in listed if one.startswith("sm_"))
    runs_newer = any(one.startswith("compute_") for one in listed)
    found = []
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        capability = 10 * known.major + known.minor
        found.append(Gpu(known.name, capability, known.total_memory / GIB, built_for, runs_newer))
    return found


def _faiss_searches_on_gpu() -> bool | None:
    for package, on_gpu in (("faiss-gpu", True), ("faiss-cpu", False)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            return on_gpu
    return None


def _existing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    place = place.expanduser().absolute()
    return next(one for one in (place, *place.parents) if one.exists())
