"""A source, a change and a sink on a cluster: rows arrive, and what goes wrong is said once."""

import os
import signal

import pyarrow as pa
import pytest

from qzhou.cluster import ray_data
from qzhou.cluster.ray_data import TRIES, PartSource, TableSink, stream
from qzhou.cluster.session import session
from qzhou.errors import DataError, SetupError

pytestmark = pytest.mark.usefixtures("cluster")

OPTIONS = {"num_cpus": 1, "num_gpus": 0}


def counted(shared, part):
    yield pa.table({"part": [part], "value": [shared * part]})
    yield pa.table({"part": [part], "value": [-part]})


def doubled(table):
    yield table.set_column(1, "value", pa.array([2 * value for value in table["value"].to_pylist()]))


def rows_of(tables):
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("workers", [None, 1])
def test_each_part_is_read_changed_and_written_by_one_task(workers):
    sink = TableSink(rows_of)

    with session():
        stream(PartSource([1, 2, 3], counted, 10), sink, through=doubled, options=OPTIONS, workers=workers)

    assert sink.written == [[(part, 20 * part), (part, -2 * part)] for part in (1, 2, 3)]


def test_an_error_of_ours_comes_out_as_itself_and_without_a_traceback(capfd):
    def refused(what, part):
        yield pa.table({"part": [part]})
        raise DataError(f"part {part} has no {what}")

    with pytest.raises(DataError, match=r"^part 1 has no text$"), session():
        stream(PartSource([1], refused, "text"), TableSink(rows_of), options=OPTIONS)

    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


def test_a_part_that_kills_its_workers_is_given_up(tmp_path):
    def deadly(folder, part):
        (folder / str(len(list(folder.iterdir())))).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        yield pa.table({"part": [part]})

    with pytest.raises(SetupError, match=rf"a worker died {TRIES} times .* \(deadly\)"), session():
        stream(PartSource([1], deadly, tmp_path), TableSink(rows_of), options=OPTIONS)

    assert len(list(tmp_path.iterdir())) == TRIES


def test_what_is_done_is_looked_at_in_the_end_too():
    looks = []

    with ray_data.watched(lambda: looks.append(1)):
        before = len(looks)

    assert len(looks) > before
