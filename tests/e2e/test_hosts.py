"""Links between hosts that are cut for a while, cut for good, and slow: what comes out is what always does.

Hosts are network namespaces with addresses of their own. Each stage begins with three of
them, and its link is disturbed while it works. Storage is a folder that all of them see.
"""

import json
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.hosts import driver, hosts, why_not, why_not_slow
from tests.run_outputs import examples

pytestmark = [pytest.mark.hosts, pytest.mark.skipif("why_not()", reason=why_not() or "it can")]

DATASETS, ROWS, STEPS = 9, 40, 12
AWAY_S = 20.0
IN_THE_MIDDLE_S = 1.0  # of a task that takes two
PATIENCE_S = 900
READER = """
import json, time, uuid
from pathlib import Path

def rows(stream, slow_s, began):
    Path(began, uuid.uuid4().hex).touch()
    time.sleep(slow_s)
    for line in stream:
        yield json.loads(line)
"""
RECIPE = """
[run]
name = "{name}"
storage = "{folder}/runs"
seed = 1

[model]
backbone = "{backbone}"
max_query_tokens = 24
max_document_tokens = 24
dtype = "float32"
{datasets}
[mining]
rank_from = 1
rank_to = 10
negatives_per_query = 2

[training]
workers = 2
negatives_per_query = 1
save_every_steps = 2

[training.stage1]
steps = {steps}
learning_rate = 1e-4
batch_size = 8

[training.stage2]
steps = 1
learning_rate = 1e-4
retrieval_share = 1.0
batch_size = 8
"""
DATASET = """
[[datasets]]
name = "own-{number}"
reader = "slow_reader:rows"
rule = "question_answer"
paths = ["{folder}/own-{number}.jsonl"]
reader_options = {{ slow_s = {slow_s}, began = "{folder}/began-{name}/own-{number}" }}
"""


def write_recipe(folder: Path, name: str, backbone: Path, slow_s: float) -> Path:
    (folder / "slow_reader.py").write_text(READER)
    datasets = []
    for number in range(DATASETS):
        (folder / f"began-{name}" / f"own-{number}").mkdir(parents=True)
        rows = [
            {
                "question": f"What comes after {100 * number + n}?",
                "answer": f"After it comes {100 * number + n + 1}, say all.",
            }
            for n in range(ROWS)
        ]
        (folder / f"own-{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        datasets.append(DATASET.format(number=number, folder=folder, name=name, slow_s=slow_s))
    path = folder / f"{name}.toml"
    path.write_text(
        RECIPE.format(name=name, folder=folder, backbone=backbone, datasets="".join(datasets), steps=STEPS)
    )
    return path


class Disturbance:
    """What happens to the link of host ``one`` while a stage works."""

    def __init__(self, made, kind: str, begun) -> None:
        self.made, self.kind, self.begun = made, kind, begun
        self.at = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        if self.kind == "slow":
            self.made.slow("one", "delay", "50ms", "loss", "1%")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        # all hosts are there for the next stage
        if self.kind == "cut for good":
            self.made.join("one")
        if self.at is not None:
            self.made.start("one")

    def _run(self) -> None:
        if self.kind == "slow":
            return
        while not self.begun():
            if self._over.wait(0.05):
                return
        self._over.wait(IN_THE_MIDDLE_S)  # the first tasks end together
        self.made.cut("one")
        self.at = time.monotonic()
        if self.kind == "cut for 20 s":
            self._over.wait(AWAY_S)
            self.made.join("one")


def done(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    return out


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "training/stage1/metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def calm(tmp_path_factory, tiny_qwen2):
    """A run on hosts that nothing disturbs, and its seconds by stage."""
    folder = tmp_path_factory.mktemp("calm")
    recipe = write_recipe(folder, "calm", tiny_qwen2, slow_s=2.0)
    with hosts(folder, head=0, one=1, two=1, three=1) as made:
        seconds = {}
        for stage in ("transform", "synthesize", "mine", "train"):
            began = time.monotonic()
            done(driver(made, ["-m", "qzhou.cli", stage, recipe]))
            seconds[stage] = time.monotonic() - began
    return folder / "runs" / "calm", seconds


@pytest.mark.parametrize("kind", ["cut for 20 s", "cut for good", "slow"])
def test_a_link_changes_nothing(calm, kind, tmp_path, tiny_qwen2):
    if kind == "slow" and why_not_slow():
        pytest.skip(why_not_slow())
    expected, calm_s = calm
    recipe = write_recipe(tmp_path, "disturbed", tiny_qwen2, slow_s=2.0)
    folder = tmp_path / "runs" / "disturbed"
    begun = {
        "transform": lambda: list(folder.glob("transform/work/done/convert/*.json")),
        "synthesize": lambda: False,
        "mine": lambda: list(folder.glob("mining/embeddings/**/*.npy")),
        "train": lambda: list(folder.glob("training/stage1/checkpoints/step_*")),
    }
    print(f"\n{kind}")
    with hosts(tmp_path, head=0, one=1, two=1, three=1) as made:
        for stage, condition in begun.items():
            began = time.monotonic()
            with Disturbance(made, kind, condition) as disturbance:
                done(driver(made, ["-m", "qzhou.cli", stage, recipe]))
                took_s = time.monotonic() - began
            if kind != "slow" and stage != "synthesize":
                assert disturbance.at is not None, f"{stage} was over before its link was cut"
            print(f"  {stage}: {took_s:.0f} s, {calm_s[stage]:.0f} s undisturbed")

    assert examples(folder, "transform", "mining") == examples(expected, "transform", "mining")
    found, wanted = losses(folder), losses(expected)
    assert list(found) == list(range(STEPS))
    assert found == pytest.approx(wanted, rel=1e-4)
    readings = Counter({path.name: len(list(path.iterdir())) for path in (tmp_path / "began-disturbed").iterdir()})
    calm_readings = Counter(
        {path.name: len(list(path.iterdir())) for path in (expected.parents[1] / "began-calm").iterdir()}
    )
    again = sum((readings - calm_readings).values())
    print(f"  lost: 0 rows; shards read again: {again} of {DATASETS}; training's losses are the same")
