"""A run whose raw data, run folder, checkpoints and model are on S3, as moto's server speaks it."""

import json

import pytest
import requests
from moto.server import ThreadedMotoServer

from qzhou.config.recipe import load_recipe
from qzhou.data.storage import Folder
from qzhou.run.run import Run
from tests.e2e.clusters import wait_until
from tests.e2e.commands import run, start


@pytest.fixture(scope="module")
def s3():
    """A bucket, in an environment in which S3 is a server of this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-should-see",  # pragma: allowlist secret
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        requests.put(f"http://{host}:{port}/a-bucket", timeout=10).raise_for_status()
        yield "s3://a-bucket"
    server.stop()


@pytest.fixture(scope="module")
def recipe(s3, write_recipe):
    """The tiny recipe with everything on S3."""
    path = write_recipe()
    data, text = path.parent, path.read_text("utf-8")
    for name in ("facts.jsonl", "alike.csv", "kinds.parquet"):
        Folder.open(f"{s3}/data").write_bytes(name, (data / name).read_bytes())
    text = text.replace("workers = 2", "workers = 1")  # two are tried on local files
    text = text.replace(f'"{data}/runs"', f'"{s3}/runs"').replace(f'"{data}/', f'"{s3}/data/')
    path.write_text(text, "utf-8")
    return path


def test_a_killed_run_on_s3_goes_on_and_leaves_a_model_that_loads(s3, recipe):
    folder = Run.at(load_recipe(str(recipe), [])).folder
    first = start("jobs/pipeline.py", recipe)
    checkpoints = folder / "training" / "stage2" / "checkpoints"
    wait_until(lambda: any("step_" in name for name in checkpoints.folders()), first)
    first.kill()
    first.communicate()

    done = run("jobs/pipeline.py", recipe)

    assert folder.uri == f"{s3}/runs/tiny"
    assert done.status == 0, done.text
    assert "transform: unchanged since" in done.text, "what was finished before the kill is not done again"
    steps = [json.loads(line)["step"] for line in folder.read_bytes("training/stage2/metrics.jsonl").splitlines()]
    assert steps == list(range(10))
    assert {"model", "evaluation", "transform", "training"} <= set(folder.folders())
    assert folder.exists("report.html")
    assert "a-secret-that-nobody-should-see" not in folder.read_bytes("recipe.json").decode() + done.text
    assert done.text.count("unchanged since") >= 4, "transform, synthesize, mine, stage 1"
    with (folder / "model").local_copy() as local:
        from sentence_transformers import SentenceTransformer

        assert SentenceTransformer(str(local)).encode(["a text"]).shape[0] == 1
