"""The door to Ray: every stage runs inside :func:`session`.

Inside a submitted job the session joins the job's cluster; otherwise it starts one on this
machine and ends it by handle. The package travels to every worker, so that workers run the
driver's code.
"""

import contextlib
import inspect
import io
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ray
import yaml
from ray._private.parameter import RayParams
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from qzhou.cluster.metrics import export_metrics, stop_export
from qzhou.cluster.resources import MIN_LOCAL_CPUS, NodeType, ResourceRequest, refuse_impossible
from qzhou.errors import QzhouError, SetupError, first_line, kind_of
from qzhou.telemetry.events import LOG_FORMAT_VARIABLE
from qzhou.telemetry.metrics import STAGE_STARTED, measure

PACKAGE = Path(__file__).parents[1]
# where `ray up` leaves a cluster's configuration on its head
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")

# Loggers that tell every run what is no news: that Ray guards its cluster with a token, that its bars are off.
CHATTY = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # worker processes are the parallelism
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",  # a worker has no terminal; the stages say how far they are
    "PYTHONWARNINGS": "ignore::FutureWarning",  # DeepSpeed's, about torch names that still work
}


def local_options() -> dict[str, Any]:
    """What a cluster on this machine is started with; where another one runs, its agent takes another port."""
    _free_the_agents_port()
    return {
        "address": "local",
        "num_cpus": max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
        "include_dashboard": True,  # Ray Train asks it which actors are alive
        "logging_level": logging.WARNING,
    }


def _free_the_agents_port() -> None:
    """Let the dashboard's agent choose its port if the usual one is taken.

    Jobs are submitted through the agent, and every cluster of a machine wants the same port
    for it; ``ray start`` has a setting for that, ``ray.init`` has none and takes the
    default of this function.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ray.util.get_node_ip_address(), DEFAULT_DASHBOARD_AGENT_LISTEN_PORT))
        except OSError:
            initialise = RayParams.__init__
            _, *names = inspect.signature(initialise).parameters  # the first is self
            defaults = dict(zip(names, initialise.__defaults__ or (), strict=True))
            initialise.__defaults__ = tuple((defaults | {"dashboard_agent_listen_port": 0}).values())


WORKER_PREFIX = re.compile(r"^\x1b\[\d+m\(\w+ pid=\d+\)\x1b\[0m ")
NOISE = re.compile(
    # the last thread of Ray Train's cleaner ends in a traceback when its cluster goes before it
    r"\(PlacementGroupCleaner pid="
    r"|PYTHON worker processes have been started"
    r"|^INFO .* serve \d+ -- |^  \u2022 "
    r"|core_worker\.cc|job_manager\.py|^Running entrypoint|Progress bars disabled|available CPUs"
    r"|Reporting training result|Checkpoint successfully created|Saving model to|built successfully"
    r"|`word_embedding_dimension`|it/s\]|\?it/s|^\s*\r?\s*$|minimum number of concurrent actors|Loaded \d+ prompt"
)


def filter_ray_log(line: str) -> str | None:
    """A line without the prefix of the worker that said it; None where Ray and its libraries talk to themselves."""
    said = WORKER_PREFIX.sub("", line)
    return None if NOISE.search(line) or NOISE.search(said) else said


class _Quiet(io.TextIOBase):
    """A standard stream without the lines that :func:`filter_ray_log` drops.

    ``print`` writes a text, then its line end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._left_out = stream, False

    def write(self, text: str) -> int:
        if not text.strip():
            said = "" if self._left_out else text
            self._left_out = False
        else:
            plain = filter_ray_log(text)
            self._left_out, said = plain is None, plain or ""
        self._stream.write(said)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextlib.contextmanager
def session(*asks: ResourceRequest) -> Iterator[None]:
    """Join ``RAY_ADDRESS``'s cluster, or one already joined, or start one for the block.

    Args:
        asks: What will be asked of the cluster in the block.

    Raises:
        QzhouError: One that was raised on a worker comes out as itself, without Ray's wrapping.
        SetupError: There is no cluster at ``RAY_ADDRESS``, or it refuses, or it can never give what is asked.
    """
    with contextlib.redirect_stdout(_Quiet(sys.stdout)), contextlib.redirect_stderr(_Quiet(sys.stderr)):
        joined = ray.is_initialized()
        if not joined:
            for name in CHATTY:
                logging.getLogger(name).setLevel(logging.ERROR)
            _join_or_start()
        _set_up_ray_data()  # in each process: a stage may run in a worker
        export_metrics()
        # more are a whole pipeline's, each with its own
        began = [one.stage for one in asks] if len(asks) == 1 else []
        for stage in began:
            measure(STAGE_STARTED, time.time(), stage=stage)
        try:
            if asks and (kinds := node_kinds()) is not None:
                refuse_impossible(asks, kinds, "this cluster" if os.environ.get("RAY_ADDRESS") else "this machine")
            yield
        except Exception as error:  # to take off what Ray wrapped around an error meant for people
            ours = our_error(error)
            if ours is None:
                raise
            raise ours from None
        finally:
            for stage in began:
                measure(STAGE_STARTED, 0, stage=stage)
            if not joined:
                stop_export()
                ray.shutdown()


def node_kinds() -> list[NodeType] | None:
    """The nodes that the cluster has and those that its autoscaler may start; None where only the latter knows.

    ``ray up`` leaves the node types on the head node, where jobs are driven from. KubeRay
    keeps them outside.
    """
    there = [
        NodeType(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]
    if "KUBERAY_GEN_RAY_START_CMD" in os.environ:
        return None
    if not os.environ.get("RAY_ADDRESS") or not BOOTSTRAP.expanduser().exists():
        return there
    config = yaml.safe_load(BOOTSTRAP.expanduser().read_text("utf-8"))
    head = [node for node in there if "node:__internal_head__" in node.resources]
    return head + [
        NodeType(name, kind.get("resources") or {}, kind.get("labels") or {}, int(kind.get("max_workers", 0)))
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


def _join_or_start() -> None:
    inside = {"address": "auto", "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            **(inside if address else local_options()),
            runtime_env={"py_modules": [str(PACKAGE)], "env_vars": _worker_env()},
        )
    except ConnectionError as error:
        raise SetupError(
            f"RAY_ADDRESS is '{address}', and no Ray cluster can be joined there: {first_line(error)}. Unset it to "
            "start one on this machine; a cluster that is guarded by a token wants RAY_AUTH_MODE=token besides."
        ) from None
    except Exception as error:  # Ray raises a bare one
        if "timed out during startup" not in str(error):
            raise
        raise SetupError(
            "Ray did not start on this machine in time, which happens when it is very busy. See what else runs, "
            "processes of an earlier run perhaps, and give the same command again."
        ) from None


def our_error(error: BaseException | None, depth: int = 12) -> QzhouError | None:
    """The platform's own error inside what Ray raised for it, or None."""
    if error is None or depth == 0:
        return None
    if isinstance(error, QzhouError):
        original = getattr(error, "cause", None)
        return original if isinstance(original, QzhouError) else kind_of(error)(*error.args)
    inner = [getattr(error, "cause", None), error.__cause__, error.__context__]
    inner += list(getattr(error, "worker_failures", {}).values())
    found = (our_error(one, depth - 1) for one in inner if isinstance(one, BaseException) and one is not error)
    return next((one for one in found if one), None)


def _worker_env() -> dict[str, str]:
    """``WORKER_ENV`` and the switch of the log.

    What the environment sets already, by the job's own runtime environment for one, reaches
    the workers without us; Ray refuses to hear it twice.
    """
    ours = {name: value for name, value in WORKER_ENV.items() if name not in os.environ}
    return ours | {name: value for name, value in os.environ.items() if name == LOG_FORMAT_VARIABLE}


def _set_up_ray_data() -> None:
    """Ray Data's bars suit terminals, ours say the same in lines; and rows keep order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # a second run gives the same files
    logging.getLogger("ray.data").setLevel(logging.WARNING)
