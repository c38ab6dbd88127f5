"""The arithmetic of a run's encoders: the type and the library that multiply, decided once and never by a stopwatch.

Two libraries, or two types, round differently, so vectors of one run must not mix them
unnoticed. The driver decides from its processor and the recipe, writes the decision into
the run's folder and hands it to every worker. The name of what an encoder really computes
with is a part of the key of its vectors. On one kind of processor, one batch of texts has
the same vectors to the bit under one name; in a batch with other texts a vector may differ
by the rounding of its type (cosine of a 16-bit one: above 0.9999).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.run.run import Run
from qzhou.telemetry.events import log_event

RECORD = "arithmetic.json"
CPUINFO = Path("/proc/cpuinfo")
# instructions that multiply in bfloat16, the preferred first; without one it is emulated, slower than float32
BFLOAT16_UNITS = {"amx_bf16": "amx", "avx512_bf16": "avx512", "bf16": "arm"}


@dataclasses.dataclass(frozen=True, slots=True)
class Processor:
    """What the arithmetic depends on.

    Attributes:
        vendor: As the processor says it: "GenuineIntel", "AuthenticAMD".
        flags: Its instruction sets, as Linux names them.
    """

    vendor: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def bfloat16_unit(self) -> str:
        """The instructions that multiply in bfloat16; empty where there are none."""
        return next((name for flag, name in BFLOAT16_UNITS.items() if flag in self.flags), "")


@functools.cache
def this_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """The processor of this machine; an unknown one where Linux does not describe it."""
    if not cpuinfo.exists():
        return Processor()
    first = cpuinfo.read_text("utf-8").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    found = {name.strip().lower(): value.strip() for name, _, value in lines}
    flags = found.get("flags") or found.get("features", "")
    return Processor(found.get("vendor_id", ""), frozenset(flags.split()))


def library_for(setting: str, processor: Processor) -> str:
    """The library for float32 on a CPU: the one that ``model.arithmetic`` names, or what suits the processor.

    torch multiplies with MKL, which leaves AVX-512 unused on processors that are not
    Intel's. On an AMD EPYC with AVX-512 oneDNN was 2.2 times faster, on Intel not faster
    (LOG.md). Other processors were not measured.
    """
    if setting != "auto":
        return setting
    is_slow_in_mkl = processor.vendor == "AuthenticAMD" and "avx512f" in processor.flags
    return "onednn" if is_slow_in_mkl else "torch"


def dtype_for(setting: str, processor: Processor) -> str:
    """The type to compute in on a CPU; ``auto`` is bfloat16 where the processor has instructions for it."""
    if setting != "auto":
        return setting
    return "bfloat16" if processor.bfloat16_unit else "float32"


def name_of(library: str, dtype: str, processor: Processor) -> str:
    """The name of an arithmetic on a CPU: "onednn-float32", "amx-bfloat16"."""
    if dtype == "bfloat16" and library != "compiled":
        library = processor.bfloat16_unit or "emulated"
    return f"{library}-{dtype}"


def resolved_arithmetic(recipe: Recipe, processor: Processor) -> dict[str, Any]:
    """Settings of the table ``model`` with every ``auto`` of the arithmetic replaced.

    With ``cluster.gpu`` the types stay as they are: the driver need not have a GPU. Each
    worker then takes bfloat16 where its GPU multiplies in it, which the name of its vectors
    says.
    """
    model = recipe.model
    if recipe.cluster.gpu:
        return {"arithmetic": "torch"}
    return {
        "arithmetic": library_for(model.arithmetic, processor),
        "dtype": dtype_for(model.dtype, processor),
        "encoding_dtype": dtype_for(model.encodes_in, processor),
    }


def with_arithmetic(run: Run, processor: Processor | None = None, *, record: bool = True) -> Run:
    """The run with a decided arithmetic in its recipe: what an earlier driver decided, as long as the recipe is alike.

    A run that goes on under a driver on another processor so keeps its arithmetic, and its
    finished stages.

    Args:
        run: Its folder is there if ``record``.
        processor: Of the driver; default: this one.
        record: Write a new decision into the run's folder.
    """
    model = run.recipe.model
    asked = model.model_dump(include={"arithmetic", "dtype", "encoding_dtype"})
    asked["gpu"] = run.recipe.cluster.gpu
    known = run.folder.read_json(RECORD) if run.folder.exists(RECORD) else {}
    if known.get("asked") != asked:
        known = {"asked": asked, "decided": resolved_arithmetic(run.recipe, processor or this_processor())}
        if record:
            run.folder.write_json(RECORD, known)
    settled = model.model_copy(update=known["decided"])
    return dataclasses.replace(run, recipe=run.recipe.model_copy(update={"model": settled}))


def warn_of_other_arithmetic(wanted: str, name: str) -> None:
    """Say that this machine cannot compute as wanted, and what it does in its place."""
    line = (
        f"encoder: this machine cannot multiply in {wanted}; it takes {name} and keeps the vectors "
        "apart. Set model.dtype or model.arithmetic to what every machine can"
    )
    log_event(line, "other_arithmetic", level="warning", wanted=wanted, taken=name)
