"""Nodes of clusters as ``ray start`` starts them, each ended by its handle."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from ray._common.utils import reset_ray_address

from tests.e2e.commands import run
from tests.ports import free_port

QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen, seconds: float = 120
) -> None:
    """Until something holds, while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, ("the process has ended", *process.communicate())
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.3)


@contextlib.contextmanager
def ray_node(*words: object, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A node from the moment it has joined; ended with all its processes."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *map(str, words)]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, env=os.environ | QUIET | environment, stdout=sink, stderr=sink
        )
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process)
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        psutil.wait_procs(below, timeout=5)
        for one in below:  # it would wait for some of them half a minute
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(60)
        reset_ray_address()  # or commands that look for a cluster would go on finding this one


def head_words(gcs_port: int, cpus: int = 0) -> list[object]:
    """For a head on ports of its own, that runs no task unless it is given CPUs."""
    ports = [
        "--port",
        gcs_port,
        "--dashboard-port",
        free_port(),
        "--dashboard-agent-listen-port",
        0,
    ]
    return ["--head", "--num-cpus", cpus, *ports]


def asked(code: str, **environment: str) -> str:
    """The last line that a driver prints which has joined the cluster of ``RAY_ADDRESS``."""
    # no autoscaler's lines
    join = "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)"
    done = run("-c", f"{join}; {code}", **QUIET | environment)
    assert done.status == 0, done.text
    return done.out.strip().splitlines()[-1]
