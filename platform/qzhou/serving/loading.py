"""A model taken into service: in the precision that was asked for, with what that costs in accuracy."""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from qzhou.config.serving import Precision
from qzhou.encoder import Encoder
from qzhou.encoder.backbone import choose_device, choose_dtype, load_backbone
from qzhou.encoder.cpu.int8 import to_int8
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.model_files import Attention
from qzhou.serving.outputs import Vectors
from qzhou.serving.service import ServedModel

PASSES = 4  # at the same time on one CPU; each with its part of the cores
PROBES = (
    "how to sort a list",
    "A binary search halves the range in which the answer can stand, until one place is left.",
    "\u4e2d\u56fd\u7684\u9996\u90fd\u662f\u5317\u4eac\u3002",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "The committee met on 3 May 1994, 12.5 % of its members being absent; see https://example.org/minutes?id=7.",
    "one two three four five six seven eight nine ten " * 40,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is loaded.

    Attributes:
        precision: What it computes in; int8 only on CPUs.
        attention: How a model attends whose own code is not run; default: as it declares.
        library: What multiplies float32 on a CPU (``model.arithmetic``).
        device: ``cpu``, ``cuda``, or None for the GPU if there is one.
        threads: Of a CPU, for all passes together.
        measured: Whether its cosines to float32 are measured, for which it is loaded twice.
    """

    max_tokens: int
    precision: Precision
    attention: Attention | None = None
    library: str = "auto"
    compiled: bool = False
    device: str | None = None
    threads: int | None = None
    measured: bool = True

    @property
    def passes(self) -> int:
        """Forward passes at the same time.

        On a CPU several passes of few threads do more than one of many, whose threads wait
        for each other.
        """
        return 1 if self.compiled or not self.threads else min(self.threads, PASSES)


def load(place: str, name: str, settings: Settings) -> tuple[Encoder, ServedModel]:
    """The encoder, and what clients may know of it.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads // settings.passes)
    exact_ND = None
    if settings.measured and settings.precision != "float32":
        exact_ND = _loaded(place, settings, "float32", compiled=False).encode(PROBES)
    encoder = _loaded(place, settings, settings.precision, compiled=settings.compiled)
    config = encoder.model.backbone.config
    # The name vLLM reads the trained widths from; transformers keeps unknown settings of a config.json.
    matryoshka = getattr(config, "matryoshka_dimensions", None) or ()
    served = ServedModel(
        name=name,
        dimensions=encoder.dimensions,
        fingerprint=encoder.fingerprint,
        max_tokens=min(encoder.max_tokens, encoder.tokenizer.model_max_length),
        vocabulary=int(config.vocab_size),
        prompts=dict(encoder.prompts or {}),
        matryoshka=tuple(matryoshka),
        precision=settings.precision if settings.precision == "int8" else _precision_of(encoder),
        cosine_to_float32=None if exact_ND is None else lowest_cosine(exact_ND, encoder.encode(PROBES)),
        created=int(time.time()),
    )
    return encoder, served


def lowest_cosine(exact_ND: Vectors, served_ND: Vectors) -> float:
    """Of unit vectors of the same texts."""
    return round(float((exact_ND * served_ND).sum(axis=1).min()), 6)


def threads_for(replicas: int) -> int:
    """The threads of a replica that shares this machine's cores; Ray itself leaves one thread to an actor."""
    return max(1, len(os.sched_getaffinity(0)) // replicas)


def _loaded(place: str, settings: Settings, precision: Precision, *, compiled: bool) -> Encoder:
    if precision == "int8":
        found = load_backbone(place, attention=settings.attention, dtype=torch.float32)
        return to_int8(encoder_of(found, max_tokens=settings.max_tokens, device="cpu", library="torch"))
    dtype = choose_dtype(precision, choose_device(settings.device))
    found = load_backbone(place, attention=settings.attention, dtype=dtype)
    return encoder_of(
        found, max_tokens=settings.max_tokens, library=settings.library, device=settings.device, compiled=compiled
    )


def _precision_of(encoder: Encoder) -> str:
    dtype: Any = next(encoder.model.parameters()).dtype
    return str(dtype).removeprefix("torch.")
