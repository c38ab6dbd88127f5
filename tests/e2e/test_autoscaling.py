"""The pipeline on a cluster that has no worker node when it begins: Ray's autoscaler with nodes of this machine.

Ray's own helper for such clusters (``ray.cluster_utils.AutoscalingCluster``) ends the clusters of everybody on the
machine before it begins and when it is over. This one is started and ended by its handle.
"""

import json
import shutil

import pytest
import ray

from tests.e2e.clusters import QUIET, asked, head_words, ray_node, wait_until
from tests.e2e.commands import run
from tests.ports import free_port

HEAD = "ray.head.default"  # what the provider calls its head
HEAD_ID = "f" * 51 + "00000"
NODES = 2


def configuration(gcs: str) -> dict:
    """What ``ray up`` leaves on a head node, for nodes that are processes of this machine."""
    nothing = ("auth", "file_mounts")
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
    lists += (
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    )
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "of-the-tests",
        "max_workers": NODES,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": provider,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs,
        },
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": NODES},
        },
        "file_mounts_sync_continuously": False,
        **{name: {} for name in nothing},
        **{name: [] for name in lists},
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The head node of a cluster without worker nodes, and the environment of a job there."""
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    file = home / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(configuration(gcs)))
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    words = (*head_words(port), "--autoscaling-config", file)
    with ray_node(*words, log=home / "head.log", **fake) as head:
        yield head, {**QUIET, "HOME": str(home), "RAY_ADDRESS": gcs}


def workers(environment) -> int:
    """How many worker nodes the cluster has now."""
    return int(asked("print(sum(node['Alive'] for node in ray.nodes()) - 1)", **environment))


def test_nodes_come_with_the_pipeline_and_go_when_it_is_over(cluster, submitted, tmp_path):
    head, environment = cluster
    recipe, storage = submitted[0], tmp_path / "runs"
    shutil.copytree(recipe.parent / "runs", storage)
    made_there = ("mining", "training/stage2", "model", "evaluation")  # what nodes of this cluster do
    for stage in made_there:
        shutil.rmtree(storage / "tiny" / stage)
    assert workers(environment) == 0

    settings = ("--run.storage", storage, "--training.workers", "1")
    done = run("jobs/pipeline.py", recipe, *settings, **environment)

    assert done.status == 0, done.text
    assert "report.html" in done.out
    assert [stage for stage in made_there if f"\n{stage}: done in" not in f"\n{done.out}"] == []
    wait_until(lambda: workers(environment) == 0, head)


def test_what_no_node_type_can_give_is_refused_before_one_is_started(cluster, write_recipe):
    _, environment = cluster

    done = run("jobs/pipeline.py", write_recipe(), "--cluster.training.cpus", "3", **environment)

    assert done.status == 2
    assert (
        "each worker of training asks for 3 CPU, and no node gives that; the nearest, cpu, has 2 CPU of 3 CPU"
        in done.err
    )
    assert f"{NODES} x cpu with 2 CPU" in done.err
    assert workers(environment) == 0
