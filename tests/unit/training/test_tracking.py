"""Metrics arrive where the recipe wants them, in the real trackers."""

import json
import time
from pathlib import Path

import pytest

from qzhou.data.storage import Folder
from qzhou.errors import SetupError
from qzhou.training.tracking import MetricsFile, open_sinks


def metrics(step):
    return {
        "step": step,
        "task": "pair",
        "dataset": "sts",
        "loss": 1.0 / (step + 1),
        "learning_rate": 1e-3,
    }


def sinks(folder, *trackers, first_step=0):
    return open_sinks(
        trackers, Folder.open(str(folder)), name="run", stage="stage1", settings={"seed": 1}, first_step=first_step,
        scratch=folder / "scratch",
    )  # fmt: skip


def filled(folder, *trackers):
    opened = sinks(folder, *trackers)
    for sink in opened:
        for step in range(3):
            sink.add(metrics(step))
        sink.keep()


def test_metrics_of_an_attempt_after_its_last_checkpoint_are_written_again(tmp_path):
    filled(tmp_path)
    again = MetricsFile(Folder.open(str(tmp_path)), 2)
    again.add(metrics(2) | {"loss": 7.0})
    again.keep()

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    assert [(one["step"], one["loss"]) for one in lines] == [(0, 1.0), (1, 0.5), (2, 7.0)]


def test_tensorboard_reads_the_curves_of_all_steps_and_of_each_dataset(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    filled(tmp_path, "tensorboard")

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [one.value for one in events.Scalars("loss")] == pytest.approx([1.0, 0.5, 1 / 3])
    assert len(events.Scalars("loss_of/sts")) == 3
    assert "dataset" not in events.Tags()["scalars"]


def test_wandb_writes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")

    filled(tmp_path, "wandb")
    import wandb

    wandb.finish()

    (log,) = Path(tmp_path).rglob("*.wandb")
    deadline = time.monotonic() + 300  # a process of wandb's writes it
    while b"loss_of/sts" not in log.read_bytes():
        assert time.monotonic() < deadline, log.stat().st_size
        time.sleep(0.1)


def test_mlflow_has_one_run_a_stage_also_after_a_restart(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())

    filled(tmp_path, "mlflow")
    filled(tmp_path, "mlflow")

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'qzhou'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run/stage1"
    assert run.data.metrics["loss_of/sts"] == pytest.approx(1 / 3)
    assert run.data.params["seed"] == "1"


def test_a_tracker_that_is_not_installed_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)

    with pytest.raises(SetupError, match=r"names wandb.*pip install 'qzhou\[trackers\]'"):
        sinks(tmp_path, "wandb")
