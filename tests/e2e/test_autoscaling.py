"""The pipeline with its data on S3, on a cluster that has no worker node when it begins; its driver is killed once.

S3 is moto's server; the nodes that Ray's autoscaler starts are processes of this machine.
Ray's own helper for such clusters (``ray.cluster_utils.AutoscalingCluster``) ends the clusters of everybody on the
machine before it begins and when it is over. This one is started and ended by its handle.
"""

import json

import pytest
import ray
import requests

from bench.object_store import store
from qzhou.cluster.ports import free_port
from qzhou.config.recipe import load_recipe
from qzhou.data.storage import Folder
from qzhou.run.run import Run
from tests.e2e.clusters import QUIET, asked, head_words, ray_node, wait_until
from tests.e2e.commands import run, start

HEAD = "ray.head.default"  # what the provider calls its head
HEAD_ID = "f" * 51 + "00000"
NODES = 2
MOST_REQUESTS = 1_500

pytestmark = pytest.mark.nodes  # minutes, by `make nodes-test`


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
def s3():
    """A bucket, in an environment in which S3 is a server of this machine; and the server, which counts requests."""
    with store() as (url, server), pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-should-see",  # pragma: allowlist secret
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        requests.put(f"{url}/a-bucket", timeout=10).raise_for_status()
        yield "s3://a-bucket", server


@pytest.fixture(scope="module")
def recipe(s3, write_recipe):
    """The tiny recipe with everything on S3."""
    path = write_recipe()
    data, text, (bucket, _) = path.parent, path.read_text("utf-8"), s3
    for name in ("facts.jsonl", "alike.csv", "kinds.parquet"):
        Folder.open(f"{bucket}/data").write_bytes(name, (data / name).read_bytes())
    text = text.replace(f'"{data}/runs"', f'"{bucket}/runs"').replace(f'"{data}/', f'"{bucket}/data/')
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def cluster(s3, tmp_path_factory):
    """The head node of a cluster without worker nodes, and the environment of a job there."""
    assert s3
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


def test_nodes_come_with_the_pipeline_and_go_when_it_is_over_and_a_kill_loses_no_finished_stage(
    cluster, s3, recipe
):
    (head, environment), (bucket, server) = cluster, s3
    folder = Run.at(load_recipe(str(recipe), [])).folder
    words = ("jobs/pipeline.py", recipe)
    assert workers(environment) == 0
    first = start(*words, **environment)
    checkpoints = folder / "training" / "stage2" / "checkpoints"
    wait_until(lambda: any("step_" in name for name in checkpoints.folders()), first)
    first.kill()
    first.communicate()

    done = run(*words, **environment)

    assert folder.uri == f"{bucket}/runs/tiny"
    assert done.status == 0, done.text
    unchanged = ("transform", "synthesis", "mining", "training/stage1")
    assert [stage for stage in unchanged if f"{stage}: unchanged since" not in done.text] == []
    steps = [json.loads(line)["step"] for line in folder.read_bytes("training/stage2/metrics.jsonl").splitlines()]
    assert steps == list(range(10))
    assert {"model", "evaluation", "transform", "training"} <= set(folder.folders())
    assert folder.exists("report.html")
    assert "a-secret-that-nobody-should-see" not in folder.read_bytes("recipe.json").decode() + done.text
    with (folder / "model").local_copy() as local:
        from sentence_transformers import SentenceTransformer

        assert SentenceTransformer(str(local)).encode(["a text"]).shape[0] == 1
    print(server.by_folder)
    # where training has got to is asked for here until it is killed
    assert server.by_folder.total() - server.by_folder["training"] <= MOST_REQUESTS
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
