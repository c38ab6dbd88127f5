"""The training stages on a local Ray: whole after any death, and as good as an undisturbed run."""

import json
import pickle
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from qzhou.cluster.session import session
from qzhou.errors import TrainingError
from qzhou.export.pipeline import export
from qzhou.training.pipeline import train
from qzhou.training.signals import Signals
from tests.ranks.problem import with_training
from tests.ray.training_run import (
    LOSS_TOLERANCE,
    STAGE,
    kill_a_worker,
    losses,
    metrics,
    prepared,
    stage_folder,
    start_driver,
    wait_for_checkpoint,
)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One on a machine where another has gone without taking its address back."""
    # for the paths of sockets
    short = tempfile.TemporaryDirectory(prefix="qz", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, short as home:
        patch.setenv("RAY_TMPDIR", home)
        Path(home, "ray").mkdir()
        Path(home, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
        with session():
            yield Path(home, "ray", "session_latest", "logs")


@pytest.fixture(scope="module")
def undisturbed(cluster, train_undisturbed):
    """A run to which nothing happened."""
    assert cluster
    return train_undisturbed()


def test_both_stages_leave_metrics_checkpoints_and_a_model(undisturbed):
    for stage in ("stage1", "stage2"):
        lines = metrics(undisturbed, stage)
        assert [one["step"] for one in lines] == list(range(12))
        assert [one["step"] for one in lines if "validation_ndcg_at_10" in one] == [5, 11]
        assert all(0 <= one["validation_accuracy"] <= 1 for one in lines if "validation_accuracy" in one)
        kept = [path.name for path in (stage_folder(undisturbed, stage) / "checkpoints").glob("step_*")]
        assert sorted(kept) == ["step_000010", "step_000012"]
    assert {one["task"] for one in metrics(undisturbed, "stage1")} == {"retrieval"}
    assert len({one["task"] for one in metrics(undisturbed, "stage2")}) == 3
    export(undisturbed)
    model = SentenceTransformer(str(stage_folder(undisturbed).parent.parent / "model"), device="cpu")
    assert model.encode(["a text"]).shape == (1, 32)


def test_two_ranks_keep_the_weights_of_the_best_validation(make_recipe, tiny_qwen2):
    """A learning rate that ruins the model: what it starts with is kept, by both stages and on all ranks."""
    stage = {**STAGE, "steps": 4}
    chosen = {"select": "best", "validate_every_steps": 1, "patience": 2}
    ruinous = {**stage, "learning_rate": 10.0, "warmup_steps": 0}
    recipe = prepared(
        make_recipe, tiny_qwen2, "best", stage1=ruinous, stage2={**stage, "retrieval_share": 0.5}, **chosen
    )

    train(recipe)

    for name in ("stage1", "stage2"):
        best = json.loads((stage_folder(recipe, name) / "best.json").read_text())
        lines = metrics(recipe, name)
        outputs = json.loads((stage_folder(recipe, name) / "manifest.json").read_text())["outputs"]
        assert outputs == {"steps": best["trained"], "of them in the kept weights": best["step"]}
        assert best["trained"] == len(lines)
        measures = {one for line in lines for one in line if one.startswith("validation_")}
        expected = {"validation_ndcg_at_10", "validation_accuracy"}
        if name == "stage2":
            expected |= {"validation_spearman", "validation_nearest_label"}
        assert measures == expected
        main = [
            statistics.fmean(line[one] for one in measures - {"validation_accuracy"})
            for line in lines
            if "validation_accuracy" in line
        ]
        assert best["score"] >= max(main)
        if best["step"]:
            assert best["score"] == main[best["step"] - 1]
        assert not list((stage_folder(recipe, name) / "best").glob("*"))
    kept = load_file(stage_folder(recipe, "stage1") / "model" / "model.safetensors")
    start = load_file(tiny_qwen2 / "model.safetensors")
    assert json.loads((stage_folder(recipe, "stage1") / "best.json").read_text())["step"] == 0
    assert len(metrics(recipe, "stage1")) == 2  # its patience
    for name, weight in start.items():
        assert torch.equal(kept[name.removeprefix("model.")].float(), weight.float()), name


@pytest.mark.long
def test_killed_workers_and_a_killed_driver_cost_no_step(cluster, undisturbed, make_recipe, tiny_qwen2, tmp_path):
    """A worker and then the driver die in stage 1; stage 2 is given up by two workers and ended by one."""
    recipe = prepared(make_recipe, tiny_qwen2, "disturbed")
    job = start_driver(recipe, tmp_path)
    wait_for_checkpoint(recipe, 2)
    kill_a_worker(job.pid)
    wait_for_checkpoint(recipe, 6)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (stage_folder(recipe, "stage1") / "manifest.json").exists()

    killer = threading.Thread(target=lambda: (wait_for_checkpoint(recipe, 4, "stage2"), kill_a_worker()))
    killer.start()
    with pytest.raises(TrainingError, match="continues from the last checkpoint"):
        train(with_training(recipe, max_failures=0))
    killer.join()
    assert losses(recipe, "stage1") == pytest.approx(losses(undisturbed, "stage1"), abs=LOSS_TOLERANCE)

    train(with_training(recipe, workers=1))

    assert losses(recipe, "stage2") == pytest.approx(losses(undisturbed, "stage2"), rel=1e-3)
    controllers = [path.read_text() for path in (cluster / "train").glob("ray-train-sys-controller-*.log")]
    assert controllers
    assert not [said for said in controllers if "Failed to stop" in said], "it asks no other cluster of the machine"


def test_a_stage_whose_loss_is_not_finite_keeps_its_batch_says_where_and_is_not_tried_again(
    make_recipe, tiny_qwen2, tmp_path
):
    """Ray Train starts ranks again after any error: the same steps would be trained twice more, to the same end."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_qwen2, broken)
    weights = load_file(broken / "model.safetensors")
    weights["norm.weight"] = torch.full_like(weights["norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = prepared(make_recipe, broken, "broken", max_failures=2)
    batch = stage_folder(recipe, "stage1") / "not_finite" / "step-000000.json"

    def keep_first():
        while not batch.exists():
            time.sleep(0.05)
        batch.rename(tmp_path / "first.json")

    keeper = threading.Thread(target=keep_first, daemon=True)
    keeper.start()
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 0 on 'r'; its batch is in .*step-000000.json"
    ):
        train(recipe)
    keeper.join(timeout=60)

    assert json.loads((tmp_path / "first.json").read_text())["step"] == 0
    assert not batch.exists(), "the step was tried again"


def test_signals_reach_those_who_come_later_and_two_ranks_that_lack_memory_halve_once():
    signals = Signals()
    assert (signals.failure(), signals.halvings()) == (None, 0)
    later = pickle.loads(pickle.dumps(signals))

    for _ in range(2):
        signals.halve(0)
    assert later.halvings() == 1
    signals.halve(1)
    assert later.halvings() == 2

    signals.fail(TrainingError("the first reason"))
    signals.fail(TrainingError("what followed from it"))
    assert isinstance(later.failure(), TrainingError)
    assert str(later.failure()) == "the first reason"
