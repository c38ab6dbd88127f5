"""Nodes of clusters as ``ray start`` starts them, each ended by its handle."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import ray

from qzhou.cluster.ports import free_port
from qzhou.cluster.resources import MIN_LOCAL_CPUS
from tests.e2e.commands import run

QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
# Deadlines of waits are reached only in failure: a machine may be three times slower, and busy.
PATIENCE_S = 600.0


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = PATIENCE_S) -> None:
    """Until something holds, while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, ("the process has ended", *process.communicate())
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.1)


@contextlib.contextmanager
def ray_node(
    *words: object, log: Path, inside: Sequence[str] = (), **environment: str
) -> Iterator[subprocess.Popen]:
    """A node from the moment it has joined; ended with all its processes.

    Its sockets, and the address that Ray writes down for others, lie in a folder of its own. ``inside`` are words
    before the command, for a node on another host.
    """
    command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *map(str, words)]
    # a short path, because those of sockets are limited
    with tempfile.TemporaryDirectory(prefix="qz", ignore_cleanup_errors=True) as folder:
        own = os.environ | QUIET | {"RAY_TMPDIR": folder} | environment
        with log.open("w") as sink:
            process = subprocess.Popen(command, env=own, stdout=sink, stderr=sink)
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), process)
            yield process
        finally:
            end(process)


def end(node: subprocess.Popen) -> None:
    """End a node and all its processes."""
    below = psutil.Process(node.pid).children(recursive=True)
    node.send_signal(signal.SIGTERM)
    psutil.wait_procs(below, timeout=5)
    for one in below:  # it would wait for some of them half a minute
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    node.wait(PATIENCE_S)


def head_words(gcs_port: int, cpus: int = 0, dashboard_port: int = 0) -> list[object]:
    """For a head on ports of its own, that runs no task unless it is given CPUs."""
    dashboard = ["--dashboard-port", dashboard_port or free_port(), "--dashboard-agent-listen-port", 0]
    return ["--head", "--num-cpus", cpus, "--port", gcs_port, *dashboard]


@contextlib.contextmanager
def shared_head(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that lets a job join a head with the CPUs of a local cluster, guarded by a token as that is.

    What is submitted there as a job finds this Python first.
    """
    gcs, dashboard, guarded = free_port(), free_port(), {"RAY_AUTH_MODE": "token"}
    words = head_words(gcs, max(MIN_LOCAL_CPUS, os.cpu_count() or 1), dashboard)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with ray_node(*words, log=folder / "head.log", PATH=path, **guarded):
        yield {
            "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            **guarded,
        }


def asked(code: str, **environment: str) -> str:
    """The last line that a driver prints which has joined the cluster of ``RAY_ADDRESS``."""
    # no autoscaler's lines
    join = "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)"
    done = run("-c", f"{join}; {code}", **QUIET | environment)
    assert done.status == 0, done.text
    return done.out.strip().splitlines()[-1]
