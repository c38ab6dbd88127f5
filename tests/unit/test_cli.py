"""The command: its list, its help pages, its flags, and errors as one message with an exit status."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qzhou.cli.command import GROUPS, RecipeCommand, flag
from qzhou.cli.errors import errors_for_people
from qzhou.cli.main import ALL, JOBS, cli, main
from qzhou.cli.shipped import recipe_path
from qzhou.config.describe import setting_names, tables_of
from qzhou.config.loading import nearest
from qzhou.config.recipe import Recipe
from qzhou.errors import DataError, EndpointError, RecipeError

ROOT = Path(__file__).parents[2]
QUICKSTART = "recipes/quickstart.toml"
RENAMED = tomllib.loads((ROOT / "platform/qzhou/config/renamed.toml").read_text("utf-8"))
COMMANDS = [name for names in GROUPS.values() for name in names]


def ended(*words, capsys):
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code, capsys.readouterr().err


def helped(*words):
    return CliRunner().invoke(cli, [*words, "--help"], prog_name="qzhou").output


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("no rows"), 2, "error: no rows\n"),
        (EndpointError("down"), 1, "error: down\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from what is finished\n"),
    ],
)
def test_an_error_is_one_message_and_its_exit_status(error, status, said, capsys):
    with pytest.raises(SystemExit) as end, errors_for_people():
        raise error

    assert (end.value.code, capsys.readouterr().err) == (status, said)


def test_an_error_that_nobody_meant_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), errors_for_people():
        raise ZeroDivisionError


def test_the_list_names_every_command_in_one_line_in_the_order_of_the_pipeline():
    lines = re.findall(r"^  (\w+)  +\S.*\.$", helped(), re.MULTILINE)

    assert lines == COMMANDS
    assert sorted(lines) == sorted(cli.commands)
    assert lines[:4] == ["run", "transform", "synthesize", "mine"]
    assert set(JOBS) <= set(COMMANDS)


def test_without_a_command_the_list_is_shown(capsys):
    main([])

    assert "mine" in capsys.readouterr().out


def test_a_help_page_has_the_flags_and_the_settings_of_its_tables_alone():
    page = helped("mine")

    for part in ("--keep STAGE", "--dry-run", "[run]:", "[model]:", "[cluster]:", "[mining]:"):
        assert part in page
    assert re.search(r"--mining\.rank_to +Last rank .*\[integer ≥ 1; default\s+30\]", page, re.DOTALL)
    assert "--training." not in page
    assert "--fail-below" not in page


def test_the_pages_name_every_setting_and_only_tables_that_there_are():
    page = helped("run")
    shown = set(re.findall(r"^  --([a-z_0-9.]+\.[a-z_0-9]+)", page, re.MULTILINE))

    assert shown == set(setting_names(Recipe)) - {"datasets"}
    for command in cli.commands.values():
        assert set(getattr(command, "tables", ())) <= set(ALL), command.name


def test_settings_that_no_measurement_shows_useful_are_marked():
    page = helped("train")
    marked = [
        re.search(r"--(\S+)", part)[1] for part in re.split(r"\n(?=  --)", page) if "(experimental)" in part
    ]  # fmt: skip

    assert "training.loss.focal" in marked
    assert "training.lora.rank" in marked
    assert "training.temperature" not in marked


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(capsys):
    main(["run", QUICKSTART, "--dry-run", "--training.stage1.steps", "20"])

    assert json.loads(capsys.readouterr().out)["training"]["stage1"]["steps"] == 20


def test_a_setting_outside_of_the_commands_tables_is_accepted(capsys):
    main(["mine", QUICKSTART, "--serving.port=8001", "--dry-run"])

    assert json.loads(capsys.readouterr().out)["serving"]["port"] == 8001


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine", "--run.seed", "3", QUICKSTART], "the recipe comes first, before --run.seed"),
        (["mine", "--dry-run"], "Missing argument 'RECIPE'"),
        (["mine", QUICKSTART, "--fail-below", "a=1"], "--fail-below belongs to qzhou evaluate"),
        (["mine", QUICKSTART, "--seeds=1"], "--seeds belongs to qzhou experiment"),
        (["plan", QUICKSTART, "--utilisation", "half"], "'half' is not a valid float"),
        (["plan", QUICKSTART, "--rows", "1", "--rows=2"], "--rows stands there twice; give it once"),
        (["plan", QUICKSTART, "--gpu"], "'--gpu' requires an argument"),
        (["plan", QUICKSTART, "--gpu="], "--gpu has no value"),
        (["plan", QUICKSTART, "--gpu", "--run.seed", "1"], "--gpu has no value"),
        (["submit", QUICKSTART, "--status", "--stop"], "--status and --stop are different things"),
        (["submit", QUICKSTART, "--job", "plan"], "'plan' is not one of 'run', 'transform'"),
        (["evaluate", QUICKSTART, "--fail-below", "docs"], "'docs' is not TASK=SCORE"),
        (["mine", QUICKSTART, "--keep", "no"], "--keep no: there is no such stage"),
        (["mine", QUICKSTART, "--keep", "mine", "--dry-run"], "no such stage; did you mean 'mining'?"),
        (["merge", "a", "b"], "Missing option '--into'"),
        (["merge", "a", "b", "--into", "x", "--gpu", "3"], "--gpu belongs to qzhou embed, qzhou plan"),
        (["mime", QUICKSTART], "there is no command 'mime'; did you mean 'mine'?"),
        (["run", "quickstrat"], "none that ships with qzhou: en-zh, english"),
        (["experiment", "beta"], "none that ships with qzhou: alpha, cosent_temperature"),
    ],
)
def test_words_that_cannot_be_are_refused_in_one_line(words, said, capsys):
    status, line = ended(*words, capsys=capsys)

    assert status == 2
    assert line.startswith("error: ")
    assert said in line
    assert line.count("\n") == 1
    assert len(line) < 300


def test_an_unknown_setting_is_answered_with_the_nearest_or_with_ten_and_a_count(capsys):
    _, near = ended("mine", QUICKSTART, "--mining.rank_too", "3", capsys=capsys)
    _, far = ended("mine", QUICKSTART, "--quux", "3", capsys=capsys)

    assert "--mining.rank_too: no such setting; did you mean 'mining.rank_to'?" in near
    assert far.count(",") == 9
    assert re.search(r"--quux: no such setting\. Known: .* and \d+ more\n", far)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_answered_with_the_new_one(old, new):
    assert nearest(old, ["other", new]) == f"; did you mean '{new}'?"
    assert nearest(f"some.{old}.{old}", [f"some.{new}.{new}"]) == f"; did you mean 'some.{new}.{new}'?"


def seen_by(*words):
    """What a command of this test gets for its flags."""
    seen = {}
    command = RecipeCommand("guess", callback=lambda _, **given: seen.update(given))
    command = flag("--share", "A share.", float)(flag("--on", "A word.")(command))
    command.main(list(words), standalone_mode=False)
    return seen


def test_a_command_gets_the_values_of_its_flags():
    assert seen_by(QUICKSTART, "--share", "0.5", "--on=a=b") == {"share": 0.5, "on": "a=b"}
    assert seen_by(QUICKSTART) == {"share": None, "on": None}
    with pytest.raises(click.UsageError, match="--on stands there twice"):
        seen_by(QUICKSTART, "--on", "a", "--on", "b")


def test_a_bare_name_is_a_recipe_that_ships_and_a_path_stays_a_path(tmp_path, monkeypatch):
    assert recipe_path("quickstart") == QUICKSTART
    assert recipe_path("eta", kind="experiment") == "recipes/experiments/eta.toml"
    assert recipe_path("my/own.toml") == "my/own.toml"

    monkeypatch.chdir(tmp_path)

    assert recipe_path("quickstart") == str(ROOT / QUICKSTART)
    (tmp_path / "quickstart").write_text("")
    assert recipe_path("quickstart") == "quickstart"
    with pytest.raises(RecipeError, match="nowhere: no such recipe file"):
        recipe_path("nowhere")


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_each_job_is_the_command_of_its_name(job):
    text = (ROOT / "jobs" / f"{job}.py").read_text("utf-8")

    (command,) = re.findall(r'main\(command="(\w+)"\)', text)
    assert command == {"pipeline": "run"}.get(job, job)
    assert command in COMMANDS


def test_every_table_of_a_recipe_is_found_once():
    places = [place for _, place, _ in tables_of(Recipe)]

    assert len(set(places)) == len(places)
    assert {"run", "datasets", "transform.contamination", "training.stage1"} <= set(places)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "qzhou.cli", "transform", QUICKSTART, "--dry-run"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "platform"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        said = process.stderr.read()

    assert "Traceback" not in said
