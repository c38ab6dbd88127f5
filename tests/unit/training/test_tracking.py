"""Metrics arrive where the recipe wants them, in the real trackers."""

import json
import time
from pathlib import Path

import pyarrow.fs
import pytest

from qzhou.data.storage import Folder
from qzhou.errors import SetupError
from qzhou.training.tracking import MetricsFile, open_sinks


def metrics(step):
    return {"step": step, "task": "pair", "dataset": "sts", "loss": 1.0 / (step + 1), "learning_rate": 1e-3}


def sinks(folder, *trackers, first_step=0):
    return open_sinks(
        trackers,
        Folder.open(str(folder / "stage1")),
        run_name="run",
        settings={"seed": 1},
        first_step=first_step,
        scratch=folder / "scratch",
    )


def filled(folder, *trackers):
    opened = sinks(folder, *trackers)
    for sink in opened:
        for step in range(3):
            sink.log(metrics(step))
        sink.flush()


def lines_of(file):
    """Step and loss of each line."""
    return [(one["step"], one["loss"]) for one in map(json.loads, file.read_bytes().splitlines())]


def test_a_line_is_appended_at_every_step(tmp_path):
    """So that ``tail -f`` follows the training; nothing is flushed here."""
    file = MetricsFile(Folder.open(str(tmp_path)), 0)
    with (tmp_path / "metrics.jsonl").open() as follower:
        for step in range(3):
            file.log(metrics(step))
            assert json.loads(follower.readline())["step"] == step


def test_steps_after_the_checkpoint_are_written_again_and_stand_once(tmp_path):
    filled(tmp_path)
    file = tmp_path / "stage1" / "metrics.jsonl"
    with file.open("a") as killed:
        killed.write('{"step": 3, "lo')

    again = MetricsFile(Folder.open(str(file.parent)), 2)
    again.log(metrics(2) | {"loss": 7.0})

    assert lines_of(file) == [(0, 1.0), (1, 0.5), (2, 7.0)]


def test_where_lines_cannot_be_appended_the_file_is_written_at_checkpoints(tmp_path):
    """A folder with a scheme counts as an object store."""
    folder = Folder(pyarrow.fs.LocalFileSystem(), str(tmp_path), "s3://")
    file = tmp_path / "metrics.jsonl"
    first = MetricsFile(folder, 0)
    first.log(metrics(0))
    assert not file.exists()
    first.flush()
    first.log(metrics(1))
    first.log(metrics(2))
    first.flush()
    assert lines_of(file) == [(0, 1.0), (1, 0.5), (2, 1 / 3)]

    again = MetricsFile(folder, 1)
    again.log(metrics(1) | {"loss": 7.0})
    assert len(lines_of(file)) == 3, "an object store shows nothing before the next checkpoint"
    again.flush()

    assert lines_of(file) == [(0, 1.0), (1, 7.0)]


def test_tensorboard_reads_the_curves_of_all_steps_and_of_each_dataset(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    filled(tmp_path, "tensorboard")

    events = EventAccumulator(str(tmp_path / "stage1" / "tensorboard")).Reload()
    assert [one.value for one in events.Scalars("loss")] == pytest.approx([1.0, 0.5, 1 / 3])
    assert len(events.Scalars("loss_of/sts")) == 3
    assert "dataset" not in events.Tags()["scalars"]


@pytest.mark.slow
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
