"""Training on several nodes: one dies, one is about to leave."""

import threading

import pytest

from qzhou.cluster import spot
from qzhou.cluster.session import session
from qzhou.training.pipeline import train
from tests.metadata import metadata_server
from tests.ray.nodes import busy_node, kill_a_busy_node, small_nodes
from tests.ray.training_run import LOSS_TOLERANCE, STAGE, losses, metrics, prepared, wait_for_checkpoint


@pytest.fixture(scope="module")
def nodes():
    """A head without CPUs, and four nodes of one CPU each: two to train on, two to take their places."""
    with small_nodes(4) as (cluster, added), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        # not 5: steps take a tenth of a second here
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
        with session():
            yield cluster, added


def test_a_dead_node_and_a_leaving_one_cost_no_step(nodes, make_recipe, tiny_qwen2, capfd):
    """In stage 1 a node dies; in stage 2 another gets a notice, and a checkpoint is written at once."""
    cluster, added = nodes
    long = {**STAGE, "retrieval_share": 0.5, "steps": 100}
    recipe = prepared(make_recipe, tiny_qwen2, "nodes", save_every_steps=4, max_failures=3, stage2=long)
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
    train(calm := prepared(make_recipe, tiny_qwen2, "calm", save_every_steps=50, stage2=long))
    for stage in ("stage1", "stage2"):
        assert losses(recipe, stage) == pytest.approx(losses(calm, stage), abs=LOSS_TOLERANCE)
    assert "a node is about to leave the cluster; a checkpoint is written now" in told.out + told.err


def give_notice(address: str, node: str) -> None:
    """The cloud takes a node: its watcher hears of it and tells Ray."""
    with metadata_server() as (metadata, url):
        metadata.notice = True
        with pytest.raises(SystemExit) as end:
            spot.main(["--provider", "aws", "--metadata", url, "--node-id", node, "--address", address])
    assert end.value.code == 0
