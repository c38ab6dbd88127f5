"""The door to Ray: every stage runs inside :func:`session`.

Inside a submitted job the session joins the job's cluster; otherwise it starts one on this machine
and ends it by handle. The package travels to every worker, so that workers run the driver's code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from qzhou.errors import QzhouError

PACKAGE = Path(__file__).parent
LOGICAL_CPUS = 4  # the least a local cluster offers: actor pools that take every CPU starve Ray Data's readers

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",  # worker processes are the parallelism
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def local_options() -> dict[str, Any]:
    """What a cluster on this machine is started with."""
    return {
        "address": "local",
        "num_cpus": max(LOGICAL_CPUS, os.cpu_count() or 1),
        "include_dashboard": False,
        "log_to_driver": True,
    }


@contextmanager
def session() -> Iterator[None]:
    """Join the cluster of ``RAY_ADDRESS``, or one that is already joined, or start one for the block.

    Raises:
        QzhouError: One that was raised on a worker comes out as itself, without Ray's wrapping.
    """
    joined = ray.is_initialized()
    if not joined:
        options = {"address": "auto"} if os.environ.get("RAY_ADDRESS") else local_options()
        ray.init(
            **options,
            logging_level=logging.WARNING,
            runtime_env={"py_modules": [str(PACKAGE)], "env_vars": WORKER_ENV},
        )
        _quieten_ray_data()
    try:
        yield
    except Exception as error:  # to take off what Ray wrapped around an error meant for people
        ours = our_error(error)
        if ours is None:
            raise
        raise ours from None
    finally:
        if not joined:
            ray.shutdown()


def our_error(error: BaseException | None, depth: int = 12) -> QzhouError | None:
    """The platform's own error inside what Ray raised for it, or None."""
    if error is None or depth == 0:
        return None
    if isinstance(error, QzhouError):
        plain = next((kind for kind in type(error).__mro__ if kind.__module__ == QzhouError.__module__), QzhouError)
        original = getattr(error, "cause", None)
        return original if isinstance(original, QzhouError) else plain(*error.args)
    inner = [getattr(error, "cause", None), error.__cause__, error.__context__]
    inner += list(getattr(error, "worker_failures", {}).values())
    found = (our_error(one, depth - 1) for one in inner if isinstance(one, BaseException) and one is not error)
    return next((one for one in found if one), None)


def _quieten_ray_data() -> None:
    """Ray Data's bars are for terminals; ours say the same in lines."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # a second run gives the same files
    logging.getLogger("ray.data").setLevel(logging.WARNING)
