"""The Ray Serve application, and the loop of ``qzhou serve`` around it.

``qzhou serve`` starts a cluster on this machine, or joins the one of RAY_ADDRESS, and
serves until Ctrl-C. SIGHUP takes the run's newest model into service without refusing a
request.
"""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from pydantic import BaseModel, ConfigDict
from ray import serve

from qzhou.cluster.session import session
from qzhou.config.api_keys import LOOPBACK
from qzhou.config.recipe import Recipe, load_recipe
from qzhou.errors import SetupError, first_line
from qzhou.run.run import Run
from qzhou.serving.keys import ApiKeys
from qzhou.serving.pipeline import application
from qzhou.serving.port import check_port, open_port
from qzhou.serving.snapshots import forget_old_ones, snapshot_of
from qzhou.telemetry.events import log_event, print_block

READY_TIMEOUT_S = 60.0
SAY_EVERY_S = 10.0
CLOSING_S = 3.0  # what takes longer is answered too, by the old HAProxy and a replica that drains
QUIET = {"log_level": "WARNING", "enable_access_log": False}
# to files; our own lines replace Serve's
LOGS = {"log_level": "INFO", "encoding": "JSON", "enable_access_log": False}


class Arguments(BaseModel):
    """What ``serve run`` and ``serve deploy`` pass to :func:`build`."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    model: str = ""


def build(arguments: Arguments) -> serve.Application:
    """The application for a recipe file.

    Args:
        arguments: ``recipe`` is the file; ``model`` a folder, hub id or package instead of the run's own model.

    Raises:
        DataError: The run has no finished model.
    """
    recipe = load_recipe(arguments.recipe)
    return application(recipe, arguments.model or snapshot_of(Run.at(recipe)))


def serve_until_stopped(recipe: Recipe) -> None:
    """Serve the run's model until SIGINT or SIGTERM, then end what was started here."""
    model, settings = snapshot_of(Run.at(recipe)), recipe.serving
    joining = bool(os.environ.get("RAY_ADDRESS"))
    with tempfile.TemporaryDirectory(prefix="qzhou-serve-", ignore_cleanup_errors=True) as scratch:
        if not joining:
            check_port(settings.host, settings.port)
            os.environ.update(haproxy_environment(settings.port, scratch) | os.environ)
        with session(), _serving(recipe, model, joining=joining), _signals() as asked:
            address = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
            if not joining:
                _wait_until_ready(address)
            print_block(welcome(address, recipe), "serving", "ready", address=address, model=recipe.run.name)
            while not asked.stop.is_set():
                asked.anything.wait()
                asked.anything.clear()
                if asked.update.is_set() and not asked.stop.is_set():
                    asked.update.clear()
                    model = _updated(recipe, model)
            log_event("serve: stopping", "stopping")
            _drain_haproxy(scratch)


def haproxy_environment(port: int, scratch: str) -> dict[str, str]:
    """The environment in which Ray Serve forwards a request in one step instead of three.

    HAProxy stands in front of the replicas and asks them itself. Its files (in ``scratch``)
    and ports are this endpoint's own, so that two endpoints fit on one machine.
    """
    haproxy = {
        "NBTHREAD": "1",
        "CONFIG_FILE_LOC": f"{scratch}/haproxy.cfg",
        "SOCKET_PATH": f"{scratch}/admin.sock",
        "SERVER_STATE_BASE": scratch,
        "SERVER_STATE_FILE": f"{scratch}/server-state",
        "METRICS_SOCKET_PATH": f"{scratch}/metrics.sock",
        "METRICS_PORT": str(open_port(port + 1101)),
        "STATS_PORT": str(open_port(port + 404)),
        "RETRY_ON": "conn-failure empty-response",  # vectors are made twice as well as once
        "TUNE_BUFSIZE": str(2**20),  # a request above this is not tried again
        "HARD_STOP_AFTER_S": "30",
        "TIMEOUT_CLIENT_S": "75",  # of one that sends nothing; an hour would let idle ones take every connection
    }
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # lines of the access log that are kept back: a thousand would show nothing of a quiet endpoint for hours
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # a busy machine takes more than the usual five
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # HAProxy learns of a replica that leaves in less
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        **{f"RAY_SERVE_HAPROXY_{name}": value for name, value in haproxy.items()},
    }


def _drain_haproxy(scratch: str) -> None:
    """Take no more connections and answer what is there: HAProxy's soft stop.

    Without it Ray Serve would forget the application first, and clients would hear 404
    until the end.
    """
    doors = [
        one
        for one in psutil.process_iter(["cmdline"])
        if any(scratch in word for word in one.info["cmdline"] or [])
    ]
    doors = [one for one in doors if "haproxy" in Path(one.info["cmdline"][0]).name]
    for door in doors:
        with contextlib.suppress(psutil.NoSuchProcess):
            door.send_signal(signal.SIGUSR1)
    psutil.wait_procs(doors, timeout=CLOSING_S)


@contextlib.contextmanager
def _serving(recipe: Recipe, model: str, *, joining: bool) -> Iterator[None]:
    """Run the application for the block; a joined cluster's Serve, if running, goes on."""
    settings, found = recipe.serving, _serve_is_running()
    # of this process; replicas have their own
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        if not found:
            serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=QUIET)
        with _said_now_and_then("serve: starting"):
            _run(recipe, model)
        yield
    finally:
        serve.delete(recipe.run.name)
        if joining and not found:
            serve.shutdown()


def _updated(recipe: Recipe, served: str) -> str:
    """What is served after the run's model was taken into service as it is now, if that was possible.

    The model that is served leaves when the new one answers, and stays where that never
    happens. ``served`` is the place of the one that is served.
    """
    log_event("serve: taking the run's model into service as it is now", "updating")
    try:
        model = snapshot_of(Run.at(recipe))
        _run(recipe, model)
    # Ray Serve raises a RuntimeError for whatever hinders a replica, and one of ours is no reason to stop either
    except Exception as error:  # noqa: BLE001
        line = f"serve: the update failed, and the model of before goes on: {first_line(error)}"
        log_event(line, "update_failed", level="error", served=served)
        _restore(recipe, served)
        return served
    log_event("serve: updated", "updated", served=model)
    try:
        forget_old_ones(Run.at(recipe), {model, served})
    except Exception as error:  # noqa: BLE001 - room that is not freed is no reason to stop
        line = f"serve: models that are not served any more could not be removed: {first_line(error)}"
        log_event(line, "not_removed", level="warning")
    return model


def _restore(recipe: Recipe, served: str) -> None:
    """Have Ray Serve forget an update that failed; it has kept the replicas of before."""
    try:
        _run(recipe, served)
    except Exception as error:  # noqa: BLE001 - as above
        log_event(f"serve: {served} cannot be deployed again: {first_line(error)}", "restore_failed", level="error")


def _run(recipe: Recipe, model: str) -> None:
    serve.run(application(recipe, model), name=recipe.run.name, logging_config=LOGS)


@contextlib.contextmanager
def _said_now_and_then(what: str) -> Iterator[None]:
    """Say how long the block has taken, as long as it takes."""
    over, started = threading.Event(), time.monotonic()

    def say() -> None:
        while not over.wait(SAY_EVERY_S):
            log_event(f"{what}, {time.monotonic() - started:.0f} s so far", "waits")

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _serve_is_running() -> bool:
    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return True
    return False


class _Asked:
    """What signals asked for."""

    def __init__(self) -> None:
        self.anything, self.stop, self.update = (threading.Event(), threading.Event(), threading.Event())

    def take(self, number: int) -> None:
        (self.update if number == signal.SIGHUP else self.stop).set()
        self.anything.set()


@contextlib.contextmanager
def _signals() -> Iterator[_Asked]:
    """SIGINT and SIGTERM end, SIGHUP updates."""
    asked = _Asked()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, lambda number, _: asked.take(number)) for one in wanted}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _wait_until_ready(address: str) -> None:
    """Wait for the proxy to have learnt the route: an application runs a little before it can be reached."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ready", timeout=READY_TIMEOUT_S):
            return
        time.sleep(0.1)
    raise SetupError(f"{address}/ready did not answer in {READY_TIMEOUT_S:g} s; see the logs of Ray Serve.")


def welcome(address: str, recipe: Recipe) -> str:
    """What is said when an endpoint is ready: where it is, how to ask it, and whether everyone may."""
    settings = recipe.serving
    variable = settings.api_keys_env
    asks = ApiKeys.found(variable, settings.api_keys_file, os.environ).asked
    key = f"-H 'Authorization: Bearer <one of {variable}>' " if asks else ""
    names = ", ".join(f"'{name}'" for name in (recipe.run.name, *settings.models))
    lines = [
        f"ready: {address}/v1/embeddings serves {names}; Ctrl-C stops it",
        f"try it in a browser: {address}/",
        f"curl {address}/v1/embeddings -H 'Content-Type: application/json' {key}"
        f"""-d '{{"model": "{recipe.run.name}", "input": "how to sort a list"}}'""",
    ]
    if not asks and settings.host not in LOOPBACK:
        lines.append(
            f"open to everyone who reaches port {settings.port} of {settings.host}: no key is asked for; {variable} or "
            "serving.api_keys_file holds some"
        )
    return "\n".join(lines)
