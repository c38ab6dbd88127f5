"""Cluster jobs: submitted, followed, stopped, and found again by the run they work on.

A job carries its run's folder as metadata, so that nobody has to remember its id. What it
needs to know of itself is in the run folder: a job that is submitted again goes on where
the last one stopped.
"""

import asyncio
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from qzhou.cluster.local_head import local_head
from qzhou.cluster.session import DASHBOARD_VARIABLE
from qzhou.config.recipe import Recipe
from qzhou.errors import SetupError, first_line
from qzhou.run.run import Run, refuse_what_would_be_lost
from qzhou.telemetry.events import LOG_FORMAT_VARIABLE, log_event

RUNTIME_ENV = Path("jobs/runtime_env.yaml")
RUN = "qzhou_run"  # metadata of a job: the folder of the run
GOING_ON = (JobStatus.PENDING, JobStatus.RUNNING)
INTERRUPTED = 130  # as every job of ours ends after Ctrl-C
DASHBOARD_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 150.0  # more than jobs/runtime_env.yaml gives a job to end


def run_as_job(script: str, arguments: Sequence[str]) -> int:
    """Start a local cluster with dashboard, submit a job to it, follow it, end the cluster.

    Ray's client has to be loaded with ``RAY_AUTH_MODE=token`` in the environment.

    Args:
        script: Relative to the working directory, in which the job runs.
        arguments: Of the script.

    Returns: The exit status of the job's driver.

    Raises:
        SetupError: The cluster does not start, or takes no job.
    """
    job = _job_id(script)
    with local_head() as head:
        client = _client(head.dashboard)
        # Ray lets a job's driver join any cluster of the machine; this names the one just started
        own = f"RAY_ADDRESS={head.address} {DASHBOARD_VARIABLE}={head.dashboard}"
        command = f"cd {shlex.quote(str(Path.cwd()))} && {own} exec {shlex.join(['python', script, *arguments])}"
        try:
            client.submit_job(entrypoint=shlex.join(["sh", "-c", command]), submission_id=job)
        except RuntimeError as error:
            raise SetupError(f"ray job submit failed: {error}\n       Ray's logs: {head.folder}") from None
        line = f"ray job submit: {job}; dashboard: {head.dashboard}; Ray's logs: {head.folder}"
        log_event(line, "job_submitted", job=job, dashboard=head.dashboard)
        return _followed(client, job)


def _client(dashboard: str) -> JobSubmissionClient:
    """A client of a cluster that has just been started, whose dashboard comes up a little later."""
    patience = time.monotonic() + DASHBOARD_TIMEOUT_S
    while True:
        try:
            return JobSubmissionClient(dashboard)
        except ConnectionError as error:
            if time.monotonic() > patience:
                raise SetupError(
                    f"the dashboard of the cluster that was started here does not answer at {dashboard} after "
                    f"{DASHBOARD_TIMEOUT_S:g} s: {first_line(error)}. Give the same command again."
                ) from None
            time.sleep(0.2)


class Jobs:
    """The jobs of one run on a cluster that runs already.

    Args:
        recipe: The recipe of the run; jobs are found by its run folder.
        address: URL of the cluster's dashboard: ``http://head:8265``.
        connect: Opens a client of the dashboard.
        stop_timeout_s: Seconds that a job may take to stop.

    Raises:
        SetupError: Nothing answers there, or it wants a token.
    """

    def __init__(
        self,
        recipe: Recipe,
        address: str,
        connect: Callable[[str], JobSubmissionClient] = JobSubmissionClient,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._stop_timeout_s = stop_timeout_s
        self._recipe, self._run, self._address = recipe, Run.address(recipe), address
        if not address.startswith(("http://", "https://")):
            raise SetupError(
                f"--address is '{address}', and the address of a dashboard begins with http:// or https://, like "
                "http://127.0.0.1:8265; port 6379 is another one of Ray's."
            )
        try:
            self._client = connect(address)
        except Exception as error:  # noqa: BLE001 - ConnectionError, or RuntimeError for an answer that is none
            raise SetupError(
                f"--address is '{address}', and no Ray dashboard lets us in there: {first_line(error).rstrip('.')}. "
                "`ray dashboard cluster.yaml` or `kubectl port-forward` brings it to this machine; a cluster that is "
                "guarded by a token wants RAY_AUTH_MODE=token and its own token in ~/.ray/auth_token besides."
            ) from None

    def submit(self, script: str, words: Sequence[str]) -> int:
        """Submit a job of the working directory and follow it to its end.

        Returns: The exit status of its driver.

        Raises:
            SetupError: Another one works on the run, or what the job needs does not travel with the directory.
            StorageError: The results would be lost with the job.
        """
        _refuse_what_stays_behind(script, words[0])
        refuse_what_would_be_lost(self._recipe)
        if running := self._those(*GOING_ON):
            raise SetupError(
                f"{running[0].submission_id} works on {self._run}, and two jobs would disturb each other. Follow it "
                "with --follow, stop it with --stop, or give this run another --run.name."
            )
        environment: dict[str, Any] = yaml.safe_load(RUNTIME_ENV.read_text("utf-8"))
        try:
            job = self._client.submit_job(
                entrypoint=shlex.join([*_log_format(), "python", script, *words]),
                submission_id=_job_id(script),
                runtime_env={**environment, "working_dir": "."},
                metadata={RUN: self._run},
            )
        except (RuntimeError, ValueError) as error:  # the directory is too large, or the cluster refuses
            raise SetupError(
                f"{Path.cwd()} could not be submitted to {self._address}: {first_line(error).rstrip('.')}. The whole "
                "directory travels with a job, but for what .gitignore and .rayignore leave out: large data belong "
                "outside of it, on storage that all nodes share."
            ) from error
        line = f"ray job submit: {job}; dashboard: {self._address}"
        log_event(line, "job_submitted", job=job, dashboard=self._address)
        return self._follow(job)

    def follow(self) -> int:
        """Print the log of the latest job from its beginning, and on to its end."""
        return self._follow(self._latest())

    def stop(self) -> None:
        """Let the run's job end as by Ctrl-C: finished work and checkpoints stay."""
        running = self._those(*GOING_ON)
        if not running:
            raise SetupError(f"no job works on {self._run} at {self._address}; --status shows those that did")
        for one in running:
            print(f"stopping {one.submission_id}; the same submission goes on from what is finished", flush=True)
            self._client.stop_job(one.submission_id)
            self._wait_for_the_end(one.submission_id)

    def status(self) -> None:
        """Print the run's jobs and where the results are."""
        for one in self._those():
            started, ended = (_clock(at) for at in (one.start_time, one.end_time))
            print(f"{one.submission_id}  {one.status.value:<10} {started} to {ended}  {one.message or ''}".rstrip())
        print(f"results: {self._run}", flush=True)

    def _those(self, *states: JobStatus) -> list[JobDetails]:
        """Jobs of this run in the order of their submission."""
        found = [one for one in self._client.list_jobs() if (one.metadata or {}).get(RUN) == self._run]
        wanted = (one for one in found if not states or one.status in states)
        return sorted(wanted, key=lambda one: one.start_time or 0)

    def _latest(self) -> str:
        found = self._those()
        if not found:
            raise SetupError(f"no job has worked on {self._run} at {self._address}")
        return str(found[-1].submission_id)

    def _follow(self, job: str) -> int:
        try:
            return _followed(self._client, job)
        except KeyboardInterrupt:
            print(f"\n{job} goes on; --follow, --status and --stop find it again", flush=True)
            return INTERRUPTED

    def _wait_for_the_end(self, job: str) -> None:
        patience = time.monotonic() + self._stop_timeout_s
        while (state := self._client.get_job_status(job)) in GOING_ON:
            if time.monotonic() > patience:
                raise SetupError(
                    f"{job} was told to stop {self._stop_timeout_s:g} s ago and is still {state.value}; --status shows "
                    f"it, and `ray job logs {job}` what it does. The nodes may be gone, or too busy to end it."
                )
            time.sleep(0.5)
        print(f"{job}: {state.value}", flush=True)


def _refuse_what_stays_behind(script: str, recipe: str) -> None:
    here = Path.cwd()
    for name in (script, recipe, str(RUNTIME_ENV)):
        place = Path(name)  # an absolute one is on storage that all nodes share
        travels = place.exists() and place.resolve().is_relative_to(here)
        if not place.is_absolute() and not travels:
            raise SetupError(
                f"'{name}' does not lie below {here}, which is what the job takes along. Submit from the project's "
                "root, with paths below it."
            )


def _log_format() -> list[str]:
    """Sets the log format in the job's command, because the job's runtime environment may set it already."""
    chosen = os.environ.get(LOG_FORMAT_VARIABLE)
    return [] if chosen is None else ["env", f"{LOG_FORMAT_VARIABLE}={chosen}"]


def _job_id(script: str) -> str:
    return f"{Path(script).stem}-{uuid.uuid4().hex[:8]}"


def _clock(milliseconds: int | None) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}" if milliseconds else "now"


def _followed(client: JobSubmissionClient, job: str) -> int:
    """Print a job's log to its end; its driver's exit status, or that of an interrupted one if it was stopped."""
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # "WebSocket closed"
    asyncio.run(_follow(client, job))
    ended = client.get_job_info(job)
    if ended.status == JobStatus.STOPPED:
        return INTERRUPTED
    return 1 if ended.driver_exit_code is None else int(ended.driver_exit_code)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print a job's log as it grows."""
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
