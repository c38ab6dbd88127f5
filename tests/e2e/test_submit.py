"""`ray job submit --working-dir .` as the README says it, to a cluster that runs already."""

import os
import sys
from pathlib import Path

import pytest
import ray

from qzhou.cluster import local_options
from tests.e2e.commands import Finished, run


@pytest.fixture(scope="module")
def cluster():
    """The dashboard's address of a cluster on this machine, whose jobs find this Python first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        context = ray.init(**local_options(), log_to_driver=False)
        yield f"http://{context.dashboard_url}"
        ray.shutdown()


def submit(cluster: str, *job: str | Path) -> Finished:
    place = ("--address", cluster, "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml")
    return run("-m", "ray.scripts.scripts", "job", "submit", *place, "--", "python", *job, RAY_AUTH_MODE="token")


def test_a_job_runs_on_the_cluster_from_an_uploaded_copy_of_the_project(cluster, write_recipe):
    recipe = write_recipe()

    done = submit(cluster, "jobs/transform.py", recipe)

    assert done.status == 0, done.text
    assert "transform: done in" in done.text
    assert (recipe.parent / "runs" / "tiny" / "transform" / "manifest.json").exists()


def test_a_run_that_would_be_lost_with_the_uploaded_copy_is_refused(cluster, write_recipe):
    done = submit(cluster, "jobs/transform.py", write_recipe(), "--run.storage", "runs")

    assert done.status != 0
    assert "error: run.storage is 'runs', a path below the copy of the project" in done.text
    assert "Traceback" not in done.text


def test_models_are_merged_on_the_cluster(cluster, tiny_qwen2, tmp_path):
    done = submit(cluster, "jobs/merge.py", tiny_qwen2, tiny_qwen2, "--into", tmp_path / "merged")

    assert done.status == 0, done.text
    assert (tmp_path / "merged" / "merge.json").exists()
