"""`ray job submit --working-dir .` as the README says it, to a cluster that runs already."""

import contextlib
import json
import re
import shutil
import signal
import socket
from pathlib import Path

import psutil
import pytest
import ray

from tests.e2e.clusters import PATIENCE_S, wait_until
from tests.e2e.commands import Finished, call, run, start


@pytest.fixture(scope="module")
def cluster(head):
    """The dashboard's address of a cluster on this machine."""
    return head["RAY_API_SERVER_ADDRESS"]


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


def test_a_cluster_of_this_machine_ends_with_a_command_that_was_killed(write_recipe):
    """It starts although another cluster has the port through which jobs come, and goes although nobody ends it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another cluster may really have it
            taken.bind((ray.util.get_node_ip_address(), 52365))
            taken.listen()
        job = start("jobs/submit.py", write_recipe(), "--job", "transform")
        said = next(line for line in job.stdout if "dashboard: " in line)
    processes = psutil.Process(job.pid).children(recursive=True)
    names = {one.name() for one in processes}

    job.send_signal(signal.SIGKILL)
    job.communicate()

    assert "raylet" in names, said
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


STEPS = 600  # the stop comes a second or two after the first
SECRET = "sk-the-key-of-an-endpoint"  # pragma: allowlist secret


@pytest.mark.long
def test_a_job_is_stopped_and_found_again_by_its_run_and_the_next_one_goes_on(cluster, submitted, tmp_path):
    """Stopped in training, as by Ctrl-C; the log, the listing and the run folder hold no key."""
    storage = tmp_path / "runs"
    shutil.copytree(submitted[0].parent / "runs" / "tiny", storage / "tiny")
    run_folder = storage / "tiny"
    words = (submitted[0], "--run.storage", storage, "--address", cluster)
    # what is left there was saved because of the stop
    seldom = ("--training.save_every_steps", str(STEPS))
    longer = (*words, "--training.stage2.steps", str(STEPS), *seldom)
    token = {"RAY_AUTH_MODE": "token", "OPENAI_API_KEY": SECRET}

    first = start("jobs/submit.py", *longer, "--job", "train", **token)
    wait_until(lambda: not (run_folder / "training" / "stage2" / "manifest.json").exists(), first)
    second = call("jobs/submit.py", *longer, **token)
    status = call("jobs/submit.py", *words, "--status", **token)
    wait_until((run_folder / "training" / "stage2" / "checkpoints").exists, first)
    stopped = call("jobs/submit.py", *words, "--stop", **token)
    said, _ = first.communicate(timeout=PATIENCE_S)
    done_before = len(steps_in(run_folder))
    again = run("jobs/submit.py", *longer, "--job=train", **token)

    assert second.status == 2
    assert "works on" in second.err
    assert re.search(r"train-\w+ +RUNNING +20\d\d-.* to now", status.out), status.text
    assert f"results: {run_folder}" in status.out
    assert re.search(r"train-\w+: (STOPPED|FAILED)", stopped.out), stopped.text
    assert first.returncode == 130, said
    assert "the same command goes on" in said
    assert 0 < done_before < STEPS
    assert again.status == 0, again.text
    assert f"continues after step {done_before}" in again.text
    assert [json.loads(line)["step"] for line in steps_in(run_folder)] == list(range(STEPS))
    nothing_left = call("jobs/submit.py", *words, "--stop", **token)
    assert (nothing_left.status, "no job works on" in nothing_left.err) == (2, True)
    listing = run("-m", "ray.scripts.scripts", "job", "list", "--address", cluster, **token)
    for text in (listing.text, status.text, said, again.text):
        assert SECRET not in text
    files = [
        path for path in run_folder.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".html")
    ]
    assert files
    assert not [path for path in files if SECRET in path.read_text("utf-8")]


def steps_in(run_folder: Path) -> list[str]:
    file = run_folder / "training" / "stage2" / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--address", "http://127.0.0.1:1"), "no Ray dashboard lets us in there"),
        (("--job",), "Option '--job' requires an argument"),
        (("--status", "--job", "mine"), "--status and --job are different things to do"),
    ],
)
def test_a_submission_that_cannot_be_is_named(words, said):
    done = call("jobs/submit.py", "recipes/quickstart.toml", *words)

    assert done.status == 2
    assert said in done.err
    assert "Traceback" not in done.text
