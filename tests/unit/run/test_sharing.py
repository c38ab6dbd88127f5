"""Stages that runs of one storage path share."""

import threading
import time
from pathlib import Path

import pyarrow.fs
import pytest

from qzhou.data.records import LabeledExample
from qzhou.data.storage import Folder, write_records
from qzhou.errors import DataError
from qzhou.run.run import Run, Stage
from qzhou.training.examples import local_copy


@pytest.fixture
def run(make_recipe):
    def opened(name, **settings):
        return Run.open(make_recipe(run={"name": name, "share_stages": True, **settings}))

    return opened


def made(folder):
    (folder / "rows").write_bytes("part", b"rows")
    (folder / "checkpoints").write_bytes("step_1", b"state")
    (folder / "paid").write_bytes(f"by-{folder.parent.name}", b"42")
    return {"rows": 1}


def again(_):
    pytest.fail("was made again")


def stage(run, work=made, name="training/stage1", **settings):
    return run.stage(
        Stage(
            name=name,
            settings=settings,
            inputs={},
            code_of=("qzhou.data.records",),
            persistent=("paid",),
            shared=("paid",),
        ),
        work,
    )


def test_a_stage_that_another_run_finished_is_taken_over_without_a_copy(run, capsys):
    first, second = run("a"), run("b")

    manifest = stage(first, eta=1)

    assert stage(second, again, eta=1) == manifest
    assert "training/stage1: taken over from a (1 rows)" in capsys.readouterr().out
    one, other = (Path(each.folder.path, "training/stage1/rows/part").stat() for each in (first, second))
    assert one.st_ino == other.st_ino
    assert not (second.folder / "training/stage1/checkpoints").exists()
    first.folder.delete()
    assert stage(second, again, eta=1) == manifest


def test_a_run_that_shares_nothing_makes_its_own(run):
    stage(run("a"), eta=1)
    asked = []

    stage(run("b", share_stages=False), lambda folder: asked.append(folder.name) or {}, eta=1)

    assert asked == ["stage1"]


def test_other_settings_are_another_stage_that_borrows_what_was_paid_for(run):
    stage(run("a"), eta=1)

    def looks(folder):
        assert not folder.exists("rows")
        return {"answers": len((folder / "paid").files())}

    assert stage(run("b"), looks, eta=2).outputs == {"answers": 1}


def test_what_a_run_had_begun_gives_way_and_what_it_paid_for_stays(run):
    first, second = run("a"), run("b")

    def dies(folder):
        (folder / "rows").write_bytes("half", b"")
        (folder / "paid").write_bytes("own", b"7")
        raise DataError("died")

    with pytest.raises(DataError):
        stage(second, dies, eta=1)
    stage(first, eta=1)
    stage(second, again, eta=1)

    place = second.folder / "training/stage1"
    assert (place / "rows").files() == ["part"]
    assert {"own"} < set((place / "paid").files())
    assert (first.folder / "training/stage1/paid").exists("own"), "an answer of a run that died is of use to all"


def test_a_stage_that_two_runs_want_at_the_same_time_is_made_once(run, capsys):
    begun, counted = threading.Event(), []

    def slow(folder):
        counted.append(folder.uri)
        begun.set()
        time.sleep(0.3)
        return made(folder)

    first = threading.Thread(target=stage, args=(run("a"), slow), kwargs={"eta": 1})
    first.start()
    begun.wait()
    stage(run("b"), slow, eta=1)
    first.join()

    assert len(counted) == 1
    assert "training/stage1: waits for another run, which makes the same" in capsys.readouterr().out


def test_a_stage_that_failed_is_made_by_the_run_that_waited(run):
    def dies(_):
        raise DataError("died")

    with pytest.raises(DataError):
        stage(run("a"), dies, eta=1)

    assert stage(run("b"), eta=1).outputs == {"rows": 1}


def test_an_object_store_copies_for_itself():
    first = Folder(pyarrow.fs._MockFileSystem(), "bucket/a", "mock://")
    first.create()
    (first / "rows").write_bytes("part", b"rows")
    (first / "checkpoints").write_bytes("step", b"")
    first.write_json("manifest.json", {})

    first.link_to(first.parent / "b", last="manifest.json", leave_out=["checkpoints"])

    assert (first.parent / "b").files(recursive=True) == ["manifest.json", "rows/part"]
    assert (first.parent / "b").read_bytes("rows/part") == b"rows"


def test_runs_that_train_on_the_same_examples_share_the_copy_of_a_node(tmp_path):
    """The examples are told by the fingerprint of the stage that mined them."""
    folder = Folder.open(str(tmp_path / "examples"))
    write_records(folder, [LabeledExample(id="1", dataset="d", text="x", label="l")], LabeledExample)

    first, second = (local_copy(folder, tmp_path / run / "mined" / "d.arrow") for run in ("run-a", "run-b"))

    assert first.stat().st_ino == second.stat().st_ino
