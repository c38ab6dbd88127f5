"""What a cluster is told of a job, without a cluster."""

import shlex
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from qzhou.cluster.submission import RUN, Jobs
from qzhou.errors import SetupError, StorageError

NASTY = """a "name"; touch 'x' && echo $HOME `id` *"""
ADDRESS = "http://head:8265"


@dataclass
class Job:
    submission_id: str
    status: JobStatus
    metadata: dict
    start_time: int
    end_time: int | None = None
    message: str = ""


@dataclass
class Client:
    """A dashboard that remembers."""

    jobs: list[Job] = field(default_factory=list)
    submitted: dict = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    after_stop: JobStatus = JobStatus.STOPPED

    def submit_job(self, **words) -> str:
        self.submitted = words
        return words["submission_id"]

    def list_jobs(self) -> list[Job]:
        return self.jobs

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    def get_job_status(self, _: str) -> JobStatus:
        return self.after_stop

    async def tail_job_logs(self, _: str):
        yield "done\n"

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0, job=job)


@pytest.fixture
def client():
    return Client()


def jobs_of(recipe, client, **options):
    return Jobs(recipe, ADDRESS, lambda _: client, **options)


@pytest.fixture
def run_folder(make_recipe):
    return make_recipe(), f"{make_recipe().run.storage}/tiny"


def test_every_word_reaches_the_job_as_it_was_typed(client, run_folder, monkeypatch):
    recipe, folder = run_folder
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")  # pragma: allowlist secret

    jobs_of(recipe, client).submit("jobs/mine.py", ["recipes/quickstart.toml", "--model.backbone", NASTY])

    told = client.submitted
    assert shlex.split(told["entrypoint"]) == [
        "python", "jobs/mine.py", "recipes/quickstart.toml", "--model.backbone", NASTY,
    ]  # fmt: skip
    assert told["submission_id"].startswith("mine-")
    assert told["metadata"] == {RUN: folder}
    assert told["runtime_env"]["working_dir"] == "."
    assert set(told["runtime_env"]["env_vars"]) == {
        "PYTHONPATH", "RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S",
    }, "nothing of the environment travels: whoever lists jobs would see it"  # fmt: skip


@pytest.mark.parametrize("name", ["../recipe.toml", "recipes/not-there.toml"])
def test_a_recipe_that_does_not_travel_is_refused(client, run_folder, name):
    with pytest.raises(SetupError, match=f"'{name}' does not lie below"):
        jobs_of(run_folder[0], client).submit("jobs/mine.py", [name])

    assert not client.submitted


def test_a_run_that_would_go_with_its_job_is_refused_before_anything_is_sent(client, make_recipe):
    with pytest.raises(StorageError, match=r"run\.storage is 'runs', a path below the copy"):
        jobs_of(make_recipe(run={"name": "tiny", "storage": "runs"}), client).submit(
            "jobs/mine.py", ["recipes/quickstart.toml"]
        )

    assert not client.submitted


def test_a_runs_jobs_are_found_without_access_to_its_storage(client, make_recipe, capsys):
    recipe = make_recipe(run={"name": "tiny", "storage": "s3://a-bucket-that-nobody-has/runs/?region=eu-north-1"})
    client.jobs = [Job("mine-a", JobStatus.RUNNING, {RUN: "s3://a-bucket-that-nobody-has/runs/tiny"}, 1)]

    jobs_of(recipe, client).status()

    assert "mine-a" in capsys.readouterr().out


def test_a_run_has_one_job_at_a_time_and_other_runs_do_not_count(client, run_folder):
    recipe, folder = run_folder
    client.jobs = [
        Job("mine-1", JobStatus.RUNNING, {RUN: f"{folder}-2"}, 1),
        Job("mine-2", JobStatus.FAILED, {RUN: folder}, 2),
    ]
    jobs = jobs_of(recipe, client)

    assert jobs.submit("jobs/mine.py", ["recipes/quickstart.toml"]) == 0
    client.jobs.append(Job("mine-3", JobStatus.PENDING, {RUN: folder}, 3))
    with pytest.raises(SetupError, match=f"mine-3 works on {folder}"):
        jobs.submit("jobs/mine.py", ["recipes/quickstart.toml"])


def test_status_shows_the_runs_jobs_in_their_order_and_where_the_results_are(client, run_folder, capsys):
    recipe, folder = run_folder
    client.jobs = [
        Job("train-b", JobStatus.RUNNING, {RUN: folder}, 1_700_000_100_000),
        Job("mine-a", JobStatus.SUCCEEDED, {RUN: folder}, 1_700_000_000_000, 1_700_000_050_000, "done"),
        Job("other", JobStatus.RUNNING, {}, 1),
    ]

    jobs_of(recipe, client).status()

    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("mine-a  SUCCEEDED  2023-11-1")
    assert first.endswith("done")
    assert second.startswith("train-b  RUNNING")
    assert second.endswith(" to now")
    assert last == f"results: {folder}"


def test_only_what_runs_is_stopped(client, run_folder):
    recipe, folder = run_folder
    jobs = jobs_of(recipe, client)
    with pytest.raises(SetupError, match="no job works on"):
        jobs.stop()
    client.jobs = [Job("a", JobStatus.RUNNING, {RUN: folder}, 1), Job("b", JobStatus.SUCCEEDED, {RUN: folder}, 2)]

    jobs.stop()

    assert client.stopped == ["a"]


def test_an_address_that_is_no_dashboards_is_refused_at_once(run_folder):
    with pytest.raises(SetupError, match=r"'10\.0\.0\.1:6379'.*http://127\.0\.0\.1:8265"):
        Jobs(run_folder[0], "10.0.0.1:6379")


def test_a_directory_that_is_too_large_to_travel_is_named(client, run_folder):
    def too_large(**_):
        raise RuntimeError("Package size (600.00MiB) exceeds the maximum size of 512.00MiB.")

    client.submit_job = too_large

    with pytest.raises(
        SetupError, match=r"600\.00MiB\) exceeds the maximum size of 512\.00MiB\. The whole.*\.rayignore"
    ):
        jobs_of(run_folder[0], client).submit("jobs/pipeline.py", ["recipes/quickstart.toml"])


def test_a_job_that_does_not_end_is_named(client, run_folder):
    recipe, folder = run_folder
    client.jobs, client.after_stop = ([Job("a", JobStatus.RUNNING, {RUN: folder}, 1)], JobStatus.RUNNING)
    with pytest.raises(SetupError, match=r"a was told to stop 0 s ago and is still RUNNING.*ray job logs a"):
        jobs_of(recipe, client, stop_timeout_s=0).stop()


def test_without_a_job_there_is_nothing_to_follow(client, run_folder):
    with pytest.raises(SetupError, match="no job has worked on"):
        jobs_of(run_folder[0], client).follow()
