"""Training on several nodes: one dies, one is about to leave."""

import shutil
import threading

import pytest

from qzhou.cluster import spot
from qzhou.cluster.session import session
from qzhou.training.pipeline import train
from tests.metadata import metadata_server
from tests.ray.nodes import busy_node, kill_a_busy_node, small_nodes
from tests.ray.training_run import (
    LOSS_TOLERANCE,
    STAGE,
    losses,
    metrics,
    prepared,
    stage_folder,
    wait_for_checkpoint,
)

pytestmark = pytest.mark.nodes  # minutes, by `make nodes-test`


@pytest.fixture(scope="module")
def nodes():
    """A head without CPUs, and four nodes of one CPU each: two to train on, two to take their places."""
    with small_nodes(4) as (cluster, added), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        # not 5: steps take a tenth of a second here
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
        with session():
            yield cluster, added


def test_a_dead_node_and_a_leaving_one_cost_no_step(nodes, train_undisturbed, make_recipe, tiny_qwen2, capfd):
    """In stage 1 a node dies; in stage 2 another gets a notice, and a checkpoint is written at once."""
    cluster, added = nodes
    long = {**STAGE, "retrieval_share": 0.5, "steps": 100}
    settings = {"save_every_steps": 4, "max_failures": 3, "stage2": long}
    recipe = prepared(make_recipe, tiny_qwen2, "nodes", **settings)
    failed = []

    def disturb():
        try:
            wait_for_checkpoint(recipe, 4)
            kill_a_busy_node(cluster, added)
            wait_for_checkpoint(recipe, 4, "stage2")
            give_notice(cluster.address, busy_node(added))
        except Exception as error:  # shown by the test and not lost in its thread
            failed.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    train(recipe)
    thread.join()

    assert not failed
    assert [one["step"] for one in metrics(recipe, "stage1")] == list(range(12))
    assert [one["step"] for one in metrics(recipe, "stage2")] == list(range(100))
    told = capfd.readouterr()
    calm = prepared(make_recipe, tiny_qwen2, "calm", **settings)
    shutil.copytree(stage_folder(recipe, "stage1"), stage_folder(calm, "stage1"))
    train(calm)
    assert "stage1: unchanged" in capfd.readouterr().out
    for stage, wanted in (("stage1", train_undisturbed()), ("stage2", calm)):
        assert losses(recipe, stage) == pytest.approx(losses(wanted, stage), abs=LOSS_TOLERANCE)
    assert "a node is about to leave the cluster; a checkpoint is written now" in told.out + told.err


def give_notice(address: str, node: str) -> None:
    """The cloud takes a node: its watcher hears of it and tells Ray."""
    with metadata_server() as (metadata, url):
        metadata.notice = True
        with pytest.raises(SystemExit) as end:
            spot.main(["--provider", "aws", "--metadata", url, "--node-id", node, "--address", address])
    assert end.value.code == 0
