"""A cluster on this machine for jobs, as ``ray start --head --block`` starts it, ended by handle."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil
import ray

from qzhou.cluster.ports import free_port
from qzhou.cluster.session import local_cpus
from qzhou.errors import SetupError

# The head ends with its standard input, which the system closes when this process dies in whatever way.
UNTIL_INPUT_ENDS = 'exec 3<&0; "$@" <&3 & head=$!; (read -r _ <&3; kill $head) & wait $head'
# the command `ray`, which need not be on the PATH
RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 5.0  # for processes that Ray itself would wait for half a minute
POLL_S = 0.05
STARTED = "Ray runtime started"
SHOWN_CHARS = 1000
TOKEN = Path("~/.ray/auth_token")
DASHBOARD_PORT = 8265  # the usual one


@dataclass(frozen=True, slots=True)
class LocalHead:
    """Where a cluster on this machine is found.

    Attributes:
        address: ``IP:PORT`` of its control store, as ``RAY_ADDRESS`` takes it.
        dashboard: URL of its dashboard, to which jobs are submitted.
        folder: Ray's logs, which stay.
    """

    address: str
    dashboard: str
    folder: str


@contextlib.contextmanager
def local_head() -> Iterator[LocalHead]:
    """Start a cluster of one node, guarded by Ray's token, on ports that no other cluster of the machine has.

    Raises:
        SetupError: Ray does not start; gives its last lines.
    """
    port, dashboard = free_port(), DASHBOARD_PORT if _is_free(DASHBOARD_PORT) else free_port()
    words: list[object] = ["start", "--head", "--block", "--num-cpus", local_cpus(), "--port", port]
    words += ["--dashboard-port", dashboard, "--include-dashboard", "true"]
    # a folder of its own, or Ray would lead others to this cluster for ever; a short path, because those of sockets are
    folder = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    words += ["--temp-dir", folder]
    # the usual ones may be those of another cluster
    words += ["--dashboard-agent-listen-port", 0, "--ray-client-server-port", free_port()]
    environment = _environment()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        head = subprocess.Popen(
            ["sh", "-c", UNTIL_INPUT_ENDS, "sh", *RAY, *map(str, words)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the job
        )
        try:
            _wait_until_it_runs(head, log)
            yield LocalHead(f"{ray.util.get_node_ip_address()}:{port}", f"http://127.0.0.1:{dashboard}", folder)
        finally:
            _end(head)


def _environment() -> dict[str, str]:
    """A job's driver is ``python``: the one that runs here, whatever PATH says. A token is made where there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"RAY_AUTH_MODE": "token", **os.environ, "PATH": path}
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & environment.keys() or TOKEN.expanduser().exists()
    if environment["RAY_AUTH_MODE"] == "token" and not given:
        subprocess.run([*RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    return environment


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_until_it_runs(head: subprocess.Popen[bytes], log: TextIO) -> None:
    patience = time.monotonic() + START_TIMEOUT_S
    while True:
        log.seek(0)
        said = log.read()
        if STARTED in said:
            return
        if head.poll() is not None or time.monotonic() > patience:
            last = "\n       ".join(line for line in said.splitlines() if line.strip())[-SHOWN_CHARS:]
            raise SetupError(
                "Ray did not start on this machine, which happens when it is very busy. See what else runs, processes "
                f"of an earlier run perhaps, and give the same command again. It said: {last}"
            )
        time.sleep(POLL_S)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and what it started."""
    try:
        below = psutil.Process(head.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    assert head.stdin is not None
    head.stdin.close()
    _, alive = psutil.wait_procs(below, timeout=END_TIMEOUT_S)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    head.wait()
