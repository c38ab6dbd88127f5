"""What an endpoint serves stays what it is, whatever becomes of the run's model."""

import shutil
from pathlib import Path

import pytest

from qzhou.errors import DataError, SetupError
from qzhou.run.run import Run
from qzhou.serving.snapshots import (
    KEPT,
    forget_old_ones,
    is_snapshot,
    refuse_changed,
    roll_back,
    serve_newest,
    snapshot_of,
)
from tests.ray.served import write_manifest


@pytest.fixture
def run(make_recipe):
    return Run.at(make_recipe())


def export(run, content: bytes, fingerprint="f", finished_at="then") -> Path:
    """What the stage leaves in place of an earlier model."""
    model = Path(run.folder.path) / "model"
    shutil.rmtree(model, ignore_errors=True)
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(content)
    write_manifest(model, fingerprint)
    manifest = model / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"then"', f'"{finished_at}"'))
    return model


def test_a_model_that_is_served_outlives_the_one_of_the_run(run):
    model = export(run, b"first")
    first = snapshot_of(run)
    assert snapshot_of(run) == first
    shutil.rmtree(model)
    with pytest.raises(DataError, match="has not finished"):
        snapshot_of(run)
    export(run, b"second")
    second = snapshot_of(run)

    assert first != second
    for place, content in ((first, b"first"), (second, b"second")):
        assert is_snapshot(place, run)
        assert Path(place, "model.safetensors").read_bytes() == content
        assert Path(place, "1_Pooling", "config.json").exists()
        refuse_changed(place)
    assert not is_snapshot(str(model), run)


def test_files_that_were_changed_in_place_are_not_served(run):
    model = export(run, b"first")
    place = snapshot_of(run)
    (model / "model.safetensors").write_bytes(b"other")  # hard links share it

    with pytest.raises(SetupError, match="changed in place while an endpoint serves them"):
        refuse_changed(place)


def test_what_a_killed_copy_left_is_no_part_of_a_model(run):
    export(run, b"first")
    place = snapshot_of(run)
    Path(place, ".writing-0-model.safetensors").write_bytes(b"half")

    refuse_changed(place)


def test_the_models_that_are_served_or_finished_last_are_kept(run):
    places = []
    for n in range(KEPT + 2):
        export(run, b"%d" % n, finished_at=f"2026-01-0{n + 1}")
        places.append(snapshot_of(run))

    forget_old_ones(run, {places[0]})

    assert [Path(place).exists() for place in places] == [True, False] + [True] * KEPT


def test_a_run_that_cannot_be_written_is_served_as_it_lies_there_and_says_so(run, capsys):
    model = export(run, b"first")
    (model.parent / "served").write_text("no folder")

    assert snapshot_of(run) == str(model)
    assert "cannot be written" in capsys.readouterr().out


def exported_and_served(run, count):
    """As many models, one after the other, each of which an endpoint has served."""
    places = []
    for n in range(count):
        export(run, b"%d" % n, finished_at=f"2026-01-0{n + 1}")
        places.append(snapshot_of(run))
    return places


def test_an_endpoint_goes_back_step_by_step_and_to_the_newest_again(run, capsys):
    places = exported_and_served(run, 3)

    assert roll_back(run) == "2026-01-02"
    assert snapshot_of(run) == places[1]
    assert "the model of 2026-01-02 is served, by --rollback" in capsys.readouterr().out
    assert roll_back(run) == "2026-01-01"
    assert snapshot_of(run) == places[0]
    with pytest.raises(SetupError, match="keeps no model that is earlier"):
        roll_back(run)
    assert snapshot_of(run) == places[0]

    assert serve_newest(run)
    assert not serve_newest(run)
    assert snapshot_of(run) == places[2]


def test_a_model_that_was_gone_back_to_is_served_while_the_run_has_none_and_is_not_forgotten(run):
    places = exported_and_served(run, 2)
    roll_back(run)
    shutil.rmtree(Path(run.folder.path) / "model")
    assert snapshot_of(run) == places[0]

    serve_newest(run)
    exported_and_served(run, KEPT + 2)
    (Path(run.folder.path) / "served" / "pinned.json").write_text(f'{{"model": "{Path(places[0]).name}"}}')
    forget_old_ones(run, set())

    assert Path(places[0]).exists()
    shutil.rmtree(places[0])
    with pytest.raises(SetupError, match=r"is not there\. `qzhou serve RECIPE --newest`"):
        snapshot_of(run)


def test_there_is_nothing_to_go_back_to_before_anything_was_served(run):
    with pytest.raises(SetupError, match="keeps no model that is earlier"):
        roll_back(run)
    assert not serve_newest(run)
