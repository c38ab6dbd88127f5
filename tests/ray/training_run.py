"""A run whose mined examples are there, ready for the stage `train`."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from qzhou.data.records import EXAMPLE_TYPES, LabeledExample, Manifest, Negative, PairExample, RetrievalExample
from qzhou.data.storage import Folder, write_records

WORDS = ["red", "blue", "green", "tree", "sea", "list", "text", "word", "sum", "paris", "london", "query", "answer"]
DATASETS = [
    {"name": "r", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "instruction": "Find"},
    {"name": "p", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"], "instruction": "Compare"},
    {"name": "c", "reader": "jsonl", "rule": "labeled", "paths": ["x"]},
]
STAGE = {"steps": 12, "learning_rate": 1e-3, "warmup_steps": 2, "batch_size": 16, "cosent_batch_size": 24}
LOSS_TOLERANCE = 2e-6  # float32, of losses around one


def examples() -> dict:
    words = [f"{a} {b}" for a in WORDS for b in WORDS]
    retrieval = [
        RetrievalExample(
            id=str(n), dataset="r", query=f"what is {two}", positives=(f"the {two} is {two} {n}",),
            negatives=(Negative(text=f"the answer to {two}", origin="mined"),),
        )
        for n, two in enumerate(words)
    ]  # fmt: skip
    pairs = [
        PairExample(id=str(n), dataset="p", text_a=two, text_b=f"a {two}", score=n % 3)
        for n, two in enumerate(words)
    ]
    labeled = [LabeledExample(id=str(n), dataset="c", text=two, label=f"c:{n % 4}") for n, two in enumerate(words)]
    return {"retrieval": ("r", retrieval), "pair": ("p", pairs), "classification": ("c", labeled)}


def prepared(make_recipe, backbone: Path, name: str, **training):
    """A recipe whose run folder holds what mining would have left."""
    recipe = make_recipe(
        run={"name": name},
        model={"backbone": str(backbone), "dtype": "float32", "attention": "bidirectional"},
        datasets=DATASETS,
        training={
            "workers": 2,
            "save_every_steps": 2,
            "stage1": STAGE,
            "stage2": {**STAGE, "retrieval_share": 0.5},
            **training,
        },
    )
    folder = Folder.open(recipe.run.storage) / name
    for task, (dataset, rows) in examples().items():
        write_records(folder / "mining" / "examples" / task / dataset, rows, EXAMPLE_TYPES[task])
    held = folder / "transform" / "held_out" / "retrieval" / "r"
    write_records(held, examples()["retrieval"][1][:30], RetrievalExample)
    nothing = {"inputs": {}, "outputs": {}, "settings": {}, "code_version": "", "finished_at": "", "wall_s": 0.0}
    manifest = Manifest(stage="mining", fingerprint="mined", **nothing)
    (folder / "mining").write_json("manifest.json", dataclasses.asdict(manifest))
    return recipe


def stage_folder(recipe, stage="stage2") -> Path:
    return Path(recipe.run.storage) / recipe.run.name / "training" / stage


def metrics(recipe, stage="stage2") -> list[dict]:
    return [json.loads(line) for line in (stage_folder(recipe, stage) / "metrics.jsonl").read_text().splitlines()]


def losses(recipe, stage) -> list[float]:
    return [one["loss"] for one in metrics(recipe, stage)]


def wait_for_checkpoint(recipe, step: int, stage="stage1", timeout_s: float = 600.0) -> None:
    """Until Ray Train has committed a checkpoint of this step or a later one."""
    snapshot = stage_folder(recipe, stage) / "checkpoints" / "checkpoint_manager_snapshot.json"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if snapshot.exists() and any(f"step_{n:06d}" in snapshot.read_text() for n in range(step, 100)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no checkpoint of step {step} in {snapshot}")


def kill_a_worker(driver: int | None = None) -> None:
    """SIGKILL for one of Ray Train's workers below a driver's process; default: this one."""
    below = psutil.Process(driver or os.getpid()).children(recursive=True)
    workers = [one for one in below if any("RayTrainWorker" in part for part in one.cmdline())]
    workers[-1].send_signal(signal.SIGKILL)


def start_driver(recipe, folder: Path) -> subprocess.Popen:
    """``train`` in a process of its own, on the cluster of ``RAY_ADDRESS`` or one of its own."""
    (folder / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    code = (
        "import pickle, sys; from qzhou.training.pipeline import train; train(pickle.load(open(sys.argv[1], 'rb')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, str(folder / "recipe.pickle")], env=environment)
