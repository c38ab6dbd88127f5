"""Two variants as a user starts them, killed on the way: what they have in common is made once, and nothing is lost.

A finished run of the same recipe and another seed lies beside them, so that they begin with mining.
"""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from qzhou.experiments.results import ONE_SEED
from tests.e2e.clusters import wait_until
from tests.e2e.commands import Finished, call, on_an_idle_machine, run, start

pytestmark = pytest.mark.long

EXPERIMENT = """
name = "eta"
recipe = "recipe.toml"
seeds = [1]
scores = [{ task = "facts" }, { type = "STS" }]
baseline = "half"
trials_at_once = 2

[settings]
evaluation = { bm25 = false }
training = { stage1.steps = 3, stage2.steps = 6, save_every_steps = 2 }

[[variants]]
name = "half"
settings = { "training.stage2.retrieval_share" = 0.5 }

[[variants]]
name = "most"
settings = { "training.stage2.retrieval_share" = 0.9 }
"""
TRIALS = ("half-seed1", "most-seed1")
SHARED = ("transform", "synthesis")  # with the run beside them, which has finished them
# how many of the trials make a stage themselves
MADE = {"mining": 1, "training/stage1": 1, "training/stage2": 2, "evaluation": 2}


@pytest.fixture(scope="module")
def finished(submitted, head, tmp_path_factory):
    """The experiment's folder, and what its command said: killed in stage 2, ended, and given once more."""
    runs = submitted[0].parent
    path = runs / "eta.toml"
    path.write_text(EXPERIMENT, "utf-8")
    storage = tmp_path_factory.mktemp("experiment")
    shutil.copytree(
        runs / "runs" / "tiny", storage / "eta" / "tiny", ignore=shutil.ignore_patterns("checkpoints", "stale")
    )
    words = ("jobs/experiment.py", path, "--run.storage", storage)
    before = killed_in_stage2(words, storage, head)
    return storage / "eta", before, run(*words, **head), call(*words, **head)


def killed_in_stage2(words: tuple[str | Path, ...], storage: Path, head: dict[str, str]) -> str:
    """What the command printed until it was killed."""
    process = start(*words, **head)
    trials = [storage / "eta" / trial / "training" / "stage2" / "started.json" for trial in TRIALS]
    wait_until(lambda: any(one.exists() for one in trials), process)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert not (storage / "eta" / "results.json").exists()
    return str(out)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_what_trials_have_in_common_is_made_once_and_a_kill_loses_no_finished_stage(finished):
    folder, before, done, _ = finished
    assert done.status == 0, done.text

    said = before + done.out
    for stage in SHARED:
        assert f"{stage}: started" not in said
        assert len(copies_of(stage, folder, (*TRIALS, "tiny"))) == 1
    for stage, times in MADE.items():
        assert len(re.findall(rf"^{stage}: done in", said, re.MULTILINE)) <= times, said
        assert len(copies_of(stage, folder, TRIALS)) == times
    assert not list(folder.glob("*/training/*/checkpoints"))


def copies_of(stage: str, folder: Path, runs: tuple[str, ...]) -> set[int]:
    """Runs that share a stage have the same file of it."""
    return {(folder / name / stage / "manifest.json").stat().st_ino for name in runs}


def test_every_trial_is_a_run_of_its_own_judged_on_the_same_items(finished):
    folder, *_ = finished
    recipes = [json.loads((folder / trial / "recipe.json").read_text("utf-8")) for trial in TRIALS]
    found = results(folder)

    assert [(one["run"]["seed"], one["training"]["seed"]) for one in recipes] == [(3, 1), (3, 1)]
    assert {trial["variant"]: set(trial["scores"]) for trial in found["trials"]} == {
        variant: {"facts", "alike", "kinds"} for variant in ("half", "most")
    }
    for comparison in found["comparisons"]:
        baseline, other = comparison["lines"]
        assert baseline["difference"] is None
        assert other["difference"]["mean"] == pytest.approx(other["spread"]["mean"] - baseline["spread"]["mean"])
        assert other["by_items"]["value"] == pytest.approx(other["difference"]["mean"], abs=1e-3)


def test_the_table_and_the_plot_show_every_variant(finished):
    folder, _, done, _ = finished

    assert "facts (ndcg_at_10)" in done.out
    assert "mean of STS (cosine_spearman)" in done.out
    assert ONE_SEED in done.out
    assert f"results: {folder}/results.json" in done.out
    page = (folder / "results.html").read_text("utf-8")
    assert all(name in page for name in ("half", "most", "facts", "mean of STS"))
    assert "Traceback" not in on_an_idle_machine(done.text)


def test_a_finished_experiment_only_says_so(finished):
    *_, done, again = finished

    assert again.status == 0, again.text
    assert not re.findall(r"^[a-z0-9/]+: (started|taken over)", again.out, re.MULTILINE)
    assert tables(again) == tables(done)


def tables(done: Finished) -> str:
    return done.out[done.out.index("facts (ndcg_at_10)") :]
