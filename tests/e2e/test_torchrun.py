"""Training on ranks that `torchrun` started, without Ray: the same run, the same losses, and nothing lost."""

import json
import shutil

import psutil
import pytest

from tests.e2e.clusters import wait_until
from tests.e2e.commands import call, run, start


def torchrun(ranks, recipe, storage):
    return (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        ranks,
        "jobs/train.py",
        recipe,
        "--run.storage",
        storage,
    )


def losses(storage, stage):
    lines = (storage / "tiny" / "training" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.long
def test_killed_ranks_go_on_in_another_number_and_end_where_ray_train_does(submitted, head, tmp_path):
    recipe, _ = submitted
    with_ray, without = recipe.parent / "runs", tmp_path / "runs"
    shutil.copytree(with_ray, without)
    shutil.rmtree(without / "tiny" / "training")

    first = start(*torchrun(2, recipe, without))
    saved = without / "tiny" / "training" / "stage2"
    wait_until(lambda: list(saved.glob("torchrun_checkpoints/*/complete.json")), first)
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.communicate()
    done = run(*torchrun(1, recipe, without))

    assert done.status == 0, done.text
    assert "training/stage1: unchanged since" in done.out
    assert "training/stage2: resumed with what an earlier attempt had finished" in done.out
    assert "training: stage2: continues after step " in done.out
    for stage in ("stage1", "stage2"):
        assert losses(without, stage) == pytest.approx(losses(with_ray, stage), rel=1e-3), stage
    again = call("jobs/train.py", recipe, "--run.storage", without, **head)
    assert "training/stage2: unchanged since" in again.out, "both ways make the same run"


def test_pairs_and_classes_alone_are_trained_on_in_stage_2_from_the_backbone(submitted, tmp_path):
    recipe, _ = submitted
    shutil.copytree(recipe.parent / "runs" / "tiny" / "mining", tmp_path / "tiny" / "mining")
    alone = ("--training.datasets", "alike,kinds", "--training.stage1.steps", "0")

    done = run(*torchrun(1, recipe, tmp_path), *alone, "--training.stage2.retrieval_share", "0")

    assert done.status == 0, done.text
    assert "training/stage1: left out (training.stage1.steps is 0)" in done.out
    training = tmp_path / "tiny" / "training"
    assert [one.name for one in training.iterdir()] == ["stage2"]
    lines = (training / "stage2" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["dataset"] for line in lines} == {"alike", "kinds"}
    assert (training / "stage2" / "model" / "config.json").exists()


def test_a_mistake_is_said_by_the_ranks(submitted, tmp_path):
    recipe, _ = submitted

    done = run(*torchrun(1, recipe, tmp_path / "nothing"))

    assert done.status != 0
    assert "the stage 'mining' has not finished" in done.err
