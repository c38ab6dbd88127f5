"""The door to Ray: every stage runs inside :func:`session`.

Inside a submitted job the session joins the job's cluster; otherwise it starts one on this
machine and ends it by handle. The package travels to every worker, so that workers run the
driver's code.
"""

import logging
import os
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from qzhou.cluster.metrics import export_metrics, stop_export
from qzhou.cluster.ports import free_port
from qzhou.cluster.resources import MIN_LOCAL_CPUS, NodeType, ResourceRequest, refuse_impossible
from qzhou.errors import QzhouError, SetupError, first_line, kind_of
from qzhou.telemetry.events import LOG_FORMAT_VARIABLE, as_json
from qzhou.telemetry.metrics import STAGE_STARTED, measure

PACKAGE = Path(__file__).parents[1]
# where `ray up` leaves a cluster's configuration on its head
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")

# where Ray's own tools, and the actors of Ray Train, look for the dashboard
DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"

INTERFACE_HOOK = "qzhou.cluster.interfaces.talk_over_own_address"
NO_FREE_CPU = "does not have any available CPUs"

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # worker processes are the parallelism
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",  # a worker has no terminal; the stages say how far they are
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # batches have many shapes; else a GPU's memory falls to pieces
    "PYTHONWARNINGS": "ignore::FutureWarning",  # DeepSpeed's, about torch names that still work
}


def local_cpus() -> int:
    """CPUs that a cluster on this machine offers."""
    return max(MIN_LOCAL_CPUS, os.cpu_count() or 1)


@contextmanager
def session(*asks: ResourceRequest) -> Iterator[None]:
    """Join ``RAY_ADDRESS``'s cluster, or one already joined, or start one for the block.

    Args:
        asks: What will be asked of the cluster in the block.

    Raises:
        QzhouError: One that was raised on a worker comes out as itself, without Ray's wrapping.
        SetupError: There is no cluster at ``RAY_ADDRESS``, or it refuses, or it can never give what is asked.
    """
    joined = ray.is_initialized()
    if not joined:
        _join_or_start()
    _set_up_ray_data()  # in each process: a stage may run in a worker
    export_metrics()
    # more are a whole pipeline's, each with its own
    began = [one.stage for one in asks] if len(asks) == 1 else []
    for stage in began:
        measure(STAGE_STARTED, time.time(), stage=stage)
    try:
        refuse_what_never_comes(*asks)
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


def refuse_what_never_comes(*asks: ResourceRequest) -> None:
    """Refuse what the cluster can never give.

    Raises:
        SetupError: Names what is missing, and the setting.
    """
    if asks and (kinds := node_kinds()) is not None:
        refuse_impossible(asks, kinds, "this cluster" if os.environ.get("RAY_ADDRESS") else "this machine")


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
    address, _, _ = ray.get_runtime_context().gcs_address.rpartition(":")
    head = [node for node in there if node.name == address]
    return head + [
        NodeType(name, kind.get("resources") or {}, kind.get("labels") or {}, int(kind.get("max_workers", 0)))
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


def _join_or_start() -> None:
    _quieten()
    address = os.environ.get("RAY_ADDRESS")
    variables = _worker_env()
    # lines of other processes are no JSON after Ray has put their origin before them
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": not as_json()}
    try:
        if address:
            runtime = {
                "py_modules": [str(PACKAGE)],
                "env_vars": variables,
                "worker_process_setup_hook": INTERFACE_HOOK,
            }
            ray.init(address="auto", runtime_env=runtime, **common)
            return
        # a port that is known before the cluster starts, so that its workers can be told
        port = free_port()
        variables[DASHBOARD_VARIABLE] = f"http://127.0.0.1:{port}"
        if PACKAGE.parent != Path(sysconfig.get_path("purelib")):  # where the package is found without help
            found = [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        # Processes of a cluster inherit what this one has when it starts it. A runtime environment would do the same
        # and cost each worker a second, since those that Ray starts ahead have none.
        with _environment(variables):
            # with a dashboard, because Ray Train asks it which actors are alive
            ray.init(address="local", num_cpus=local_cpus(), include_dashboard=True, dashboard_port=port, **common)
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


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _quieten() -> None:
    """Ray's own settings for less talk: no news at level INFO, and no colours where nobody reads them."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")


def our_error(error: BaseException | None, depth: int = 12) -> QzhouError | None:
    """The platform's own error inside what Ray raised for it, or None."""
    if error is None or depth == 0:
        return None
    if isinstance(error, QzhouError):
        original = getattr(error, "cause", None)
        return original if isinstance(original, QzhouError) else kind_of(error)(str(error))
    inner = [getattr(error, "cause", None), error.__cause__, error.__context__]
    inner += list(getattr(error, "worker_failures", {}).values())
    found = (our_error(one, depth - 1) for one in inner if isinstance(one, BaseException) and one is not error)
    return next((one for one in found if one), None)


def _worker_env() -> dict[str, str]:
    """``WORKER_ENV``, the switch of the log and where the dashboard of a joined cluster is.

    What the environment sets already, by the job's own runtime environment for one, reaches
    the workers without us; Ray refuses to hear it twice.
    """
    ours = {name: value for name, value in WORKER_ENV.items() if name not in os.environ}
    passed_on = (LOG_FORMAT_VARIABLE, DASHBOARD_VARIABLE)
    return ours | {name: os.environ[name] for name in passed_on if name in os.environ}


def _set_up_ray_data() -> None:
    """Rows keep their order, so that a second run gives the same files."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # Ray Data hands out shares of the cluster, and until it has counted the cluster, for a second of each execution,
    # it runs one task at a time. Executions of one operator have nobody to share with.
    context.op_resource_reservation_enabled = False
    # on a terminal its bars and our lines would overwrite each other
    context.enable_progress_bars = not sys.stdout.isatty()
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        handler.removeFilter(_is_news)
        handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether what Ray Data logs is neither an error of ours, which is raised besides, nor a false alarm.

    The alarm is about a cluster without a free CPU, which it is for a moment after each
    execution; what a cluster can never give is refused before.
    """
    logged = record.exc_info[1] if record.exc_info else None
    return our_error(logged or sys.exc_info()[1]) is None and NO_FREE_CPU not in str(record.msg)
