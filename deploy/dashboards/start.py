"""Prometheus and Grafana on this machine, with the files beside this one; Ctrl-C ends both.

    make dashboards
    python deploy/dashboards/start.py --prometheus-port 9091 --grafana-port 3001

Starts what of the two is on PATH; what they have collected goes with them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qzhou.cli.errors import errors_for_people
from qzhou.errors import SetupError
from qzhou.telemetry.events import log_event

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
NO_PROMETHEUS = (
    "Prometheus is not on PATH: apt-get install prometheus, or the archive of prometheus.io.\n"
    "       Grafana, for the dashboards: the package or the archive of grafana.com, its bin folder on PATH."
)
NO_GRAFANA = "Grafana is not on PATH, so there are no dashboards: take the package or the archive of grafana.com"
ENDING_S = 20.0

Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the two listen, on this machine alone."""

    prometheus: int = 9090
    grafana: int = 3000

    @property
    def source(self) -> str:
        """Prometheus' address."""
        return f"http://{HOST}:{self.prometheus}"


def commands(found: Mapping[str, str | None], scratch: Path, ports: Ports) -> dict[str, Command]:
    """What is started: name -> its command, and what its environment has besides.

    Args:
        found: Program -> where it is, None where it is not.
        scratch: A folder for what both write.

    Raises:
        SetupError: Without Prometheus there is nothing to see.
    """
    prometheus, grafana = (found.get("prometheus"), found.get("grafana") or found.get("grafana-server"))
    if not prometheus:
        raise SetupError(NO_PROMETHEUS)
    words = [
        prometheus,
        f"--config.file={HERE / 'prometheus.yml'}",
        f"--storage.tsdb.path={scratch / 'prometheus'}",
    ]
    words += [f"--web.listen-address={HOST}:{ports.prometheus}", "--log.level=warn"]
    started: dict[str, Command] = {"prometheus": (words, {})}
    if grafana:
        words = [grafana, "server"] if Path(grafana).name == "grafana" else [grafana]
        if home := _home(Path(grafana)):
            words += ["--homepath", str(home)]
        started["grafana"] = (words, _grafana_environment(scratch, ports))
    return started


def _home(program: Path) -> Path | None:
    """Where Grafana's own files are: beside the folder of the program, or where Debian packages put them."""
    places = (program.resolve().parent.parent, Path("/usr/share/grafana"))
    return next((place for place in places if (place / "conf" / "defaults.ini").exists()), None)


def _grafana_environment(scratch: Path, ports: Ports) -> dict[str, str]:
    return {
        "GF_SERVER_HTTP_ADDR": HOST,
        "GF_SERVER_HTTP_PORT": str(ports.grafana),
        "GF_PATHS_DATA": str(scratch / "grafana"),
        "GF_PATHS_LOGS": str(scratch / "grafana" / "log"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",  # it listens on this machine alone
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_LOG_LEVEL": "warn",
        "QZHOU_PROMETHEUS": ports.source,
        "QZHOU_DASHBOARDS": str(HERE / "grafana" / "dashboards"),
    }


def run(found: Mapping[str, str | None], ports: Ports) -> None:
    """Start what is there and wait for Ctrl-C, or for one of them to end.

    Raises:
        SetupError: Nothing can be started, a port is taken, or one of them ended by itself.
    """
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="qzhou-dashboards-", ignore_cleanup_errors=True)
        wanted = commands(found, Path(stack.enter_context(folder)), ports)
        for name in wanted:
            _check_free(name, getattr(ports, name))
        running: dict[str, subprocess.Popen[bytes]] = {}
        for name, (words, environment) in wanted.items():
            running[name] = subprocess.Popen(words, env=os.environ | environment, start_new_session=True)
            stack.callback(_end, running[name])
        log_event(
            f"dashboards: Prometheus {ports.source}, alerts {ports.source}/alerts; Ctrl-C ends it",
            "prometheus_started",
        )
        if "grafana" in running:
            log_event(f"dashboards: Grafana http://{HOST}:{ports.grafana}/dashboards", "grafana_started")
        else:
            log_event(f"dashboards: {NO_GRAFANA}", "grafana_missing", level="warning")
        while all(one.poll() is None for one in running.values()):
            time.sleep(0.2)
        ended = next(name for name, one in running.items() if one.poll() is not None)
        raise SetupError(f"{ended} ended by itself with status {running[ended].returncode}; what it said is above.")


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"{name} cannot listen on port {port}: {error.strerror}. Debian's package runs one of its own "
                f"(systemctl stop {name}); or choose another port with --{name}-port."
            ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus-port", type=int, default=Ports().prometheus)
    parser.add_argument("--grafana-port", type=int, default=Ports().grafana)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors_for_people():
        try:
            programs = {name: shutil.which(name) for name in ("prometheus", "grafana", "grafana-server")}
            run(programs, Ports(chosen.prometheus_port, chosen.grafana_port))
        except KeyboardInterrupt:
            log_event("dashboards: ended", "ended")


if __name__ == "__main__":
    main()
