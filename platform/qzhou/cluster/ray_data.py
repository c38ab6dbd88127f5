"""What the pipelines on Ray Data are made of: a source of parts, a sink of tables, and a look at what is done.

    PartSource -> map_batches(...) -> TableSink

Where all of them ask for the same resources, Ray Data fuses them: one task reads a part and
writes what becomes of it, and no row goes over the network.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockAccessor, BlockMetadata

from qzhou.errors import SetupError, first_line

TRIES = 5  # of a part whose workers die
DEATHS = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
READERS = 4  # at the same time
LOOKS_S = (0.25, 5.0)  # between two looks at what is done: first and at last


class PartSource(ray.data.Datasource):  # type: ignore[misc]  # Ray's has no types
    """A read task for each part.

    Args:
        parts: What is read again after a kill.
        read: Given ``shared`` and a part, yields its rows as tables.
        shared: Sent once, and not with each part.
    """

    def __init__(self, parts: Sequence[Any], read: Callable[[Any, Any], Iterable[pa.Table]], shared: Any) -> None:
        super().__init__()
        self.parts, self._read, self._shared = parts, read, ray.put(shared)

    def get_name(self) -> str:
        """Shown by Ray's dashboard."""
        return _name_of(self._read)

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: what is packed may unpack to anything."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - the parts say how many there are
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: object = None,  # noqa: ARG002
    ) -> list[ray.data.ReadTask]:
        """One for each part."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        read = partial(_read_part, self._read, self._shared)
        return [ray.data.ReadTask(partial(read, part), unknown) for part in self.parts]


class TableSink(ray.data.Datasink[Any]):  # type: ignore[misc]
    """Gives the tables of each write task to ``write``; ``written`` collects what it returns.

    A task that dies is run again, so ``write`` must write whole files, and the same ones.
    """

    def __init__(self, write: Callable[[Iterator[pa.Table]], Any]) -> None:
        self._write = write
        self.written: list[Any] = []

    def get_name(self) -> str:
        """Shown by Ray's dashboard."""
        return _name_of(self._write)

    def write(self, blocks: Iterable[Any], ctx: object) -> Any:  # noqa: ARG002 - Ray gives it
        """Called on a worker."""
        return self._write(BlockAccessor.for_block(block).to_arrow() for block in blocks)

    def on_write_complete(self, write_result: Any) -> None:
        """Called on the driver."""
        self.written += write_result.write_returns


def stream(
    source: PartSource,
    sink: TableSink,
    *,
    through: Callable[[pa.Table], Iterable[pa.Table]] | None = None,
    options: Mapping[str, Any],
    workers: int | None = None,
) -> None:
    """Let the rows of a source flow into a sink, in one task a part.

    Args:
        source: Where rows come from.
        sink: Where they go to.
        through: What becomes of a table on the way.
        options: Resources of each task, as ``ray.remote().options`` takes them.
        workers: Tasks at the same time, at the most; None: as many as the cluster can.

    Raises:
        SetupError: A task has killed its workers TRIES times.
    """
    options = {**options, "max_retries": TRIES - 1}  # Ray Data's own number is infinite
    # a limit of each operator's own would keep Ray Data from fusing them
    limited = nullcontext() if workers is None else backpressure(cpus=workers * options.get("num_cpus", 1))
    with limited, warnings.catch_warnings():
        # only by a name that Ray has announced to remove can the retries of reading be bounded
        warnings.filterwarnings("ignore", ".*ray_remote_args")
        rows = ray.data.read_datasource(source, override_num_blocks=len(source.parts), ray_remote_args=options)
        if through is not None:
            rows = rows.map_batches(through, batch_size=None, batch_format="pyarrow", **options)
    try:
        rows.write_datasink(sink, ray_remote_args=options)
    except DEATHS as error:
        raise SetupError(
            f"a worker died {TRIES} times at the same part of the data ({source.get_name()}): {first_line(error)} "
            "Where memory ran out, give a task more of it (memory in the stage's table of [cluster])."
        ) from None


def read_for_actors(source: PartSource) -> ray.data.Dataset:
    """The rows of a source, read by a few tasks that ask for no CPU: the actors they are for may take every one."""
    count = len(source.parts)
    return ray.data.read_datasource(source, override_num_blocks=count, num_cpus=0, concurrency=min(READERS, count))


@contextmanager
def backpressure(*, block_bytes: int | None = None, cpus: float | None = None) -> Iterator[None]:
    """Executions of the block get shares of the cluster: an operator that is fast waits for one that is slow.

    Args:
        block_bytes: What a task gets at a time, rows being whole; default: Ray Data's own number.
        cpus: What an execution takes at the most; default: all that the cluster has.
    """
    context = ray.data.DataContext.get_current().copy()
    context.op_resource_reservation_enabled = True
    context.target_max_block_size = block_bytes or context.target_max_block_size
    if cpus is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
    with ray.data.DataContext.current(context):
        yield


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` now and then while the block runs, and once when it has ended well."""
    ended = threading.Event()

    def watch() -> None:
        wait_s, longest_s = LOOKS_S
        while not ended.wait(wait_s):
            with suppress(OSError):  # the next look may be luckier
                look()
            wait_s = min(1.5 * wait_s, longest_s)

    thread = threading.Thread(target=watch, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()


def _read_part(
    read: Callable[[Any, Any], Iterable[pa.Table]], shared: ray.ObjectRef[Any], part: Any
) -> Iterable[pa.Table]:
    return read(ray.get(shared), part)


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
