"""A finished stage that has changed: what is said before it runs again, and how it is kept."""

import json

import pytest

from qzhou.errors import DataError, RecipeError
from qzhou.run.run import Run, Stage, accept_stages


@pytest.fixture(autouse=True)
def nothing_accepted():
    accept_stages([])
    yield
    accept_stages([])


def train(run, work=lambda _: {"steps": 1}, inputs=None, **settings):
    stage = Stage(name="training/stage1", settings=settings, inputs=inputs or {}, code_of=["qzhou.training.losses"])
    return run.stage(stage, work)


def not_again(_):
    pytest.fail("the stage ran again")


def test_before_a_finished_stage_runs_again_one_line_says_what_changed_and_what_it_cost(make_recipe, capsys):
    run = Run.open(make_recipe())
    train(run, temperature=0.02, data={"names": ("a", "b")})
    manifest = run.folder / "training/stage1"
    taken = manifest.read_json("manifest.json")
    manifest.write_json("manifest.json", taken | {"wall_s": 35_280.0})
    capsys.readouterr()

    train(run, temperature=0.05, data={"names": ("a", "b")}, inputs={"mining": "f"})

    (line,) = [one for one in capsys.readouterr().out.splitlines() if "runs again" in one]
    assert "settings changed: temperature 0.02 -> 0.05; inputs changed: mining." in line
    assert "took 9.8 h" in line
    assert "--keep training/stage1 takes it back" in line


def test_changed_code_is_named_by_its_module(make_recipe, capsys):
    run = Run.open(make_recipe())
    train(run)
    folder = run.folder / "training/stage1"
    manifest = folder.read_json("manifest.json")
    manifest["code"]["qzhou.training.losses"] = manifest["fingerprint"] = "another"
    folder.write_json("manifest.json", manifest)

    train(run)

    assert "because code changed: qzhou.training.losses." in capsys.readouterr().out


def test_a_stage_is_kept_as_it_is_and_its_manifest_says_so(make_recipe, capsys):
    run = Run.open(make_recipe())
    first = train(run, temperature=0.02)

    accept_stages(["training/stage1"])
    kept = train(run, not_again, temperature=0.05)

    assert kept.fingerprint == first.fingerprint, "what reads it does not run again either"
    (accepted,) = kept.accepted
    assert accepted["changed"] == ["settings changed: temperature 0.02 -> 0.05"]
    assert "kept as it is, although settings changed: temperature" in capsys.readouterr().out
    accept_stages([])
    assert train(run, not_again, temperature=0.05) == kept, "once accepted, it stays so"
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        train(run, not_again, temperature=0.07)


def test_a_stage_that_was_moved_aside_is_taken_back(make_recipe):
    run = Run.open(make_recipe())
    train(run, lambda folder: folder.write_bytes("weights", b"old") or {"steps": 1}, temperature=1)
    with pytest.raises(KeyboardInterrupt):
        train(run, interrupted, temperature=2)

    accept_stages(["training/stage1"])
    kept = train(run, not_again, temperature=2)

    assert kept.settings == {"temperature": 1}
    assert (run.folder / "training/stage1").read_bytes("weights") == b"old"
    assert len((run.folder / "stale").folders()) == 1, "the attempt that was interrupted"


def interrupted(_):
    raise KeyboardInterrupt


def test_what_has_not_finished_cannot_be_kept(make_recipe):
    accept_stages(["training"])
    with pytest.raises(DataError, match="the stage 'training/stage1' has not finished"):
        train(Run.open(make_recipe()), not_again)


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="--keep trainin: there is no such stage; did you mean 'training'"):
        accept_stages(["trainin"])


def test_a_manifest_is_plain_json(make_recipe):
    run = Run.open(make_recipe())
    train(run, temperature=0.02)
    accept_stages(["training"])
    train(run, not_again, temperature=0.05)

    text = (run.folder / "training/stage1").read_bytes("manifest.json")
    assert json.loads(text)["accepted"][0]["changed"]
