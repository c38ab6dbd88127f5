"""Events of jobs: lines for people, or one JSON object a line; no secret in either."""

import ast
import json
from pathlib import Path

import pytest

from qzhou.cli.errors import errors_for_people
from qzhou.errors import DataError, SetupError
from qzhou.telemetry.events import check_log_format, log_event, print_block
from qzhou.telemetry.progress import Progress

ROOT = Path(__file__).parents[2]
ANSWERS = {  # files that print what somebody asked for, and no events
    "cli/main.py", "telemetry/events.py", "cluster/submission.py",
    "estimate/command.py",
}  # fmt: skip


@pytest.fixture
def for_machines(monkeypatch):
    monkeypatch.setenv("QZHOU_LOG", "json")


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_people_get_the_line(capsys, monkeypatch):
    monkeypatch.delenv("QZHOU_LOG", raising=False)

    log_event("mining: docs: 3 queries", "dataset_mined", dataset="docs")
    print_block("a table\nof two lines", "evaluation", "scores", scores=[])

    assert capsys.readouterr().out == "mining: docs: 3 queries\na table\nof two lines\n"


@pytest.mark.usefixtures("for_machines")
def test_machines_get_one_object_a_line(capsys):
    log_event("mining: docs: 3 queries", "dataset_mined", dataset="docs")
    print_block("a table\nof two lines", "evaluation", "scores", scores=[0.5])

    first, second = events(capsys.readouterr().out)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info", "stage": "mining", "event": "dataset_mined", "message": "docs: 3 queries", "dataset": "docs"
    }  # fmt: skip
    assert (second["stage"], second["scores"]) == ("evaluation", [0.5])
    assert "message" not in second


@pytest.mark.usefixtures("for_machines")
def test_progress_is_an_event_with_numbers(capsys):
    Progress("transform: convert", total=4, unit="shards", line_every_s=0.0).advance(1)

    (event,) = events(capsys.readouterr().out)
    assert (event["stage"], event["step"], event["done"], event["total"]) == ("transform", "convert", 1, 4)


@pytest.mark.parametrize("switch", ["text", "json"])
def test_a_secret_of_the_environment_is_in_no_line(switch, capsys, monkeypatch):
    monkeypatch.setenv("QZHOU_LOG", switch)
    monkeypatch.setenv("OPENAI_API_KEY", 'sk-"quoted"-12345')
    monkeypatch.setenv("QZHOU_API_KEYS", "first-of-two, second-of-two")

    log_event('synthesize: refused sk-"quoted"-12345', "refused", key="second-of-two", other=["first-of-two"])

    said = capsys.readouterr().out
    assert "***" in said
    assert not [secret for secret in ("quoted", "first-of-two", "second-of-two") if secret in said]


@pytest.mark.usefixtures("for_machines")
def test_an_error_is_an_event_with_its_kind(capsys):
    with pytest.raises(SystemExit) as end, errors_for_people():
        raise DataError("no rows\nat all")

    (event,) = events(capsys.readouterr().err)
    assert end.value.code == 2
    assert (event["level"], event["event"], event["kind"]) == ("error", "failed", "DataError")
    assert event["message"] == "no rows\nat all"


@pytest.mark.usefixtures("for_machines")
def test_a_defect_is_told_by_its_place_and_never_by_what_it_held(capsys):
    with pytest.raises(KeyError), errors_for_people():
        raise KeyError("a text of the data")

    (event,) = events(capsys.readouterr().err)
    assert (event["event"], event["kind"]) == ("crashed", "KeyError")
    assert "test_events.py" in event["where"][-1]
    assert "a text of the data" not in json.dumps(event)


def test_refused_rows_are_shown_to_people_only(make_recipe, monkeypatch):
    from qzhou.transform.writing.report import refuse_bad_datasets
    from qzhou.transform.writing.row_counts import RowCounts

    tally = RowCounts("docs", read=1)
    tally.dropped["short_positive"] += 1
    tally.examples["short_positive"] = [["too short", "a text of the data"]]
    told = {}
    for switch in ("text", "json"):
        monkeypatch.setenv("QZHOU_LOG", switch)
        with pytest.raises(DataError) as raised:
            refuse_bad_datasets(make_recipe(), {"docs": tally})
        told[switch] = str(raised.value)

    assert "a text of the data" in told["text"]
    assert "a text of the data" not in told["json"]
    assert "1 short_positive" in told["json"]


def test_a_switch_that_means_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("QZHOU_LOG", "yaml")

    with pytest.raises(SetupError, match="QZHOU_LOG is 'yaml'; set it to json or text"):
        check_log_format()


def test_the_package_says_what_happens_through_events():
    package = ROOT / "platform" / "qzhou"
    for path in package.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing or str(path.relative_to(package)) in ANSWERS, (path, printing)
