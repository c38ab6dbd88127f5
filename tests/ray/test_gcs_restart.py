"""The head's memory, Ray's GCS, dies and comes back with what Redis kept: training goes on meanwhile."""

import shutil
import subprocess
import time

import pytest
import ray

from qzhou.cluster.ports import free_port
from qzhou.cluster.session import session
from tests.ray.nodes import small_nodes
from tests.ray.training_run import STAGE, metrics, prepared, start_driver, wait_for_checkpoint

AWAY_S = 3.0

pytestmark = pytest.mark.nodes  # minutes, by `make nodes-test`


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """The address of an empty Redis."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server (Debian: apt-get install redis-server)")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    words = [
        server,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        folder,
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def cluster(redis):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_REDIS_ADDRESS", redis)
        with small_nodes(2) as (cluster, _):
            patch.delenv("RAY_REDIS_ADDRESS")
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster


@ray.remote(num_cpus=0)
class Memory:
    def __init__(self, word: str) -> None:
        self._word = word

    def word(self) -> str:
        return self._word


def test_training_and_actors_outlive_a_gcs_that_comes_back(cluster, make_recipe, tiny_qwen2, tmp_path):
    """The driver is a process of its own: this one starts the GCS again, and nothing here may wait for it meanwhile."""
    recipe = prepared(make_recipe, tiny_qwen2, "gcs", max_failures=0, stage1={**STAGE, "steps": 60})
    with session():
        kept = Memory.options(name="memory", namespace="kept", lifetime="detached").remote("kept")
        ray.get(kept.word.remote())
    driver = start_driver(recipe, tmp_path)
    try:
        wait_for_checkpoint(recipe, 4)
        cluster.head_node.kill_gcs_server()
        time.sleep(AWAY_S)
        cluster.head_node.start_gcs_server()
        assert driver.wait(900) == 0
    finally:
        driver.kill()

    assert [one["step"] for one in metrics(recipe, "stage1")] == list(range(60))
    assert [one["step"] for one in metrics(recipe, "stage2")] == list(range(STAGE["steps"]))
    with session():
        assert ray.get(ray.get_actor("memory", namespace="kept").word.remote()) == "kept"
        assert sum(node["Alive"] for node in ray.nodes()) == 3
