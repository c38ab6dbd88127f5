"""Two variants with two seeds, as a user starts them: what is shared is made once, and a kill changes no score."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from qzhou.experiments.results import ONE_SEED
from tests.e2e.commands import run, start

EXPERIMENT = """
name = "eta"
recipe = "recipe.toml"
seeds = [1, 2]
scores = [{ task = "facts" }, { type = "STS" }]
baseline = "half"
trials_at_once = 2

[settings]
cluster = { encoders = 1 }
evaluation = { bm25 = false }
training = { workers = 1, stage1.steps = 4, stage2.steps = 8, save_every_steps = 2 }

[[variants]]
name = "half"
settings = { "training.stage2.retrieval_share" = 0.5 }

[[variants]]
name = "most"
settings = { "training.stage2.retrieval_share" = 0.9 }
"""
TRIALS = ("half-seed1", "most-seed1", "half-seed2", "most-seed2")
MADE = {  # how many of the four trials make a stage themselves
    "transform": 1,
    "synthesize": 1,
    "mine": 2,
    "train/stage1": 2,
    "train/stage2": 4,
    "evaluate": 4,
}
WAIT_S = 240


@pytest.fixture(scope="module")
def experiment(write_recipe):
    path = write_recipe().parent / "eta.toml"
    path.write_text(EXPERIMENT, "utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    storage = tmp_path_factory.mktemp("undisturbed")
    done = run("jobs/experiment.py", experiment, "--run.storage", storage)
    assert done.status == 0, done.text
    return storage / "eta", done


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def scores(folder: Path) -> dict[tuple[str, int, str], float]:
    return {
        (trial["variant"], trial["seed"], task): one["score"]
        for trial in results(folder)["trials"]
        for task, one in trial["scores"].items()
    }


def test_what_trials_have_in_common_is_made_once(undisturbed):
    folder, done = undisturbed

    for stage, times in MADE.items():
        assert len(re.findall(rf"^{stage}: done in", done.out, re.MULTILINE)) == times, done.text
        assert len(re.findall(rf"^{stage}: taken over from", done.out, re.MULTILINE)) == 4 - times
        assert len({(folder / trial / stage / "manifest.json").stat().st_ino for trial in TRIALS}) == times
    backbone = [(folder / trial / "evaluate/judged/backbone/facts.json").stat().st_ino for trial in TRIALS]
    assert set(backbone[2:]) <= set(backbone[:2]), "the untouched backbone is not judged again for each seed"
    assert not list(folder.glob("*/train/*/checkpoints"))


def test_every_trial_is_a_run_of_its_own_judged_on_the_same_items(undisturbed):
    folder, _ = undisturbed
    recipes = [json.loads((folder / trial / "recipe.json").read_text("utf-8")) for trial in TRIALS]

    assert [(one["run"]["seed"], one["training"]["seed"]) for one in recipes] == [(3, 1), (3, 1), (3, 2), (3, 2)]
    assert set(scores(folder)) == {
        (variant, seed, task) for variant in ("half", "most") for seed in (1, 2) for task in ("facts", "alike", "kinds")
    }
    for comparison in results(folder)["comparisons"]:
        baseline, other = comparison["lines"]
        assert baseline["ahead"] is None
        assert other["spread"]["low"] < other["spread"]["mean"] < other["spread"]["high"]
        assert other["ahead"]["mean"] == pytest.approx(other["spread"]["mean"] - baseline["spread"]["mean"])
        assert other["by_items"]["value"] == pytest.approx(other["ahead"]["mean"], abs=1e-3)


def test_the_table_and_the_plot_show_every_variant(undisturbed):
    folder, done = undisturbed
    plot = (folder / "results.svg").read_text("utf-8")

    assert "facts (ndcg_at_10)" in done.out
    assert "mean of STS (cosine_spearman)" in done.out
    assert f"results: {folder}/results.json" in done.out
    assert plot.startswith("<svg")
    assert "Traceback" not in done.text


def test_a_killed_experiment_goes_on_and_comes_out_the_same(undisturbed, experiment, tmp_path):
    """With one seed, for the sake of time."""
    words = ("jobs/experiment.py", experiment, "--run.storage", tmp_path, "--seeds", "1")
    killed = start(*words)
    deadline = time.monotonic() + WAIT_S
    while not list(tmp_path.glob("eta/*/train/stage2/started.json")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline, f"no trial has come to stage 2 after {WAIT_S} s"
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "eta" / "results.json").exists()

    again = run(*words)

    assert again.status == 0, again.text
    assert "transform: started" not in again.out
    calm = {trial: score for trial, score in scores(undisturbed[0]).items() if trial[1] == 1}
    assert scores(tmp_path / "eta") == pytest.approx(calm, abs=1e-4)
    assert ONE_SEED in again.out

    finished = results(tmp_path / "eta")
    last = run(*words)

    assert not re.findall(r"^[a-z0-9/]+: (started|taken over)", last.out, re.MULTILINE)
    assert results(tmp_path / "eta") == finished
