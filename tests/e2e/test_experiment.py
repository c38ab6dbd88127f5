"""Two variants as a user starts them, killed on the way: what they have in common is made once, and nothing is lost."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from qzhou.experiments.results import ONE_SEED
from tests.e2e.commands import Finished, run, start

EXPERIMENT = """
name = "eta"
recipe = "recipe.toml"
seeds = [1]
scores = [{ task = "facts" }, { type = "STS" }]
baseline = "half"
trials_at_once = 2

[settings]
cluster = { encode_workers = 1 }
evaluation = { bm25 = false }
training = { workers = 1, stage1.steps = 4, stage2.steps = 8, save_every_steps = 2 }

[[variants]]
name = "half"
settings = { "training.stage2.retrieval_share" = 0.5 }

[[variants]]
name = "most"
settings = { "training.stage2.retrieval_share" = 0.9 }
"""
TRIALS = ("half-seed1", "most-seed1")
MADE = {  # how many of the trials make a stage themselves
    "transform": 1,
    "synthesis": 1,
    "mining": 1,
    "training/stage1": 1,
    "training/stage2": 2,
    "evaluation": 2,
}
WAIT_S = 240


@pytest.fixture(scope="module")
def finished(write_recipe, tmp_path_factory):
    """The experiment's folder, and what its command said: killed in stage 2, ended, and given once more."""
    path = write_recipe().parent / "eta.toml"
    path.write_text(EXPERIMENT, "utf-8")
    storage = tmp_path_factory.mktemp("experiment")
    words = ("jobs/experiment.py", path, "--run.storage", storage)
    return storage / "eta", killed_in_stage2(words, storage), run(*words), run(*words)


def killed_in_stage2(words: tuple[str | Path, ...], storage: Path) -> str:
    """What the command printed until it was killed."""
    process = start(*words)
    deadline = time.monotonic() + WAIT_S
    while not list(storage.glob("eta/*/training/stage2/started.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no trial has come to stage 2 after {WAIT_S} s"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert not (storage / "eta" / "results.json").exists()
    return str(out)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_what_trials_have_in_common_is_made_once_and_a_kill_loses_no_finished_stage(finished):
    folder, before, done, _ = finished
    assert done.status == 0, done.text

    assert "transform: started" not in done.out
    for stage, times in MADE.items():
        said = before + done.out
        assert len(re.findall(rf"^{stage}: done in", said, re.MULTILINE)) <= times, said
        assert (
            len({(folder / trial / stage / "manifest.json").stat().st_ino for trial in TRIALS})
            == times
        )
    assert not list(folder.glob("*/train/*/checkpoints"))


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
        assert baseline["ahead"] is None
        assert other["ahead"]["mean"] == pytest.approx(
            other["spread"]["mean"] - baseline["spread"]["mean"]
        )
        assert other["by_items"]["value"] == pytest.approx(other["ahead"]["mean"], abs=1e-3)


def test_the_table_and_the_plot_show_every_variant(finished):
    folder, _, done, _ = finished

    assert "facts (ndcg_at_10)" in done.out
    assert "mean of STS (cosine_spearman)" in done.out
    assert ONE_SEED in done.out
    assert f"results: {folder}/results.json" in done.out
    assert (folder / "results.svg").read_text("utf-8").startswith("<svg")
    assert "Traceback" not in done.text


def test_a_finished_experiment_only_says_so(finished):
    *_, done, again = finished

    assert again.status == 0, again.text
    assert not re.findall(r"^[a-z0-9/]+: (started|taken over)", again.out, re.MULTILINE)
    assert tables(again) == tables(done)


def tables(done: Finished) -> str:
    return done.out[done.out.index("facts (ndcg_at_10)") :]
