"""deploy/dashboards: what Prometheus and Grafana read is valid, and names only numbers that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import ray
import yaml

from deploy.dashboards import dashboards, start
from qzhou.cluster.resources import StageName
from qzhou.errors import SetupError
from qzhou.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "dashboards"
NAME = re.compile(r"\b(?:ray_|qzhou_)[a-z_]+\b")


BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((FOLDER / "grafana").rglob("*.json"))}
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]


@pytest.fixture(scope="module")
def exposed():
    """Names that Prometheus can know: ours, and those that Ray's source declares or its own dashboards ask for."""
    ours = {
        metric.exposed + suffix
        for metric in METRICS
        for suffix in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
    }
    package = Path(ray.__file__).parent
    sources = [*package.glob("dashboard/modules/reporter/*.py"), *package.glob("serve/_private/*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources)
    rays = {f"ray_{name}" for name in re.findall(r'(?:Gauge|Counter|Histogram)\(\s*"([a-z_]+)"', text)}
    return ours | rays


def expressions():
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def test_every_number_that_is_asked_for_exists(exposed):
    asked = {(place, name) for place, expression in expressions() for name in NAME.findall(expression)}

    assert len(asked) > 40
    assert {(place, name) for place, name in asked if name not in exposed} == set()


def test_every_number_of_ours_is_on_a_dashboard_or_in_an_alert():
    asked = {name for _, expression in expressions() for name in NAME.findall(expression)}

    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {metric.exposed for metric in METRICS} <= shown


def test_labels_that_are_asked_for_are_labels_of_the_metric():
    labels = {metric.exposed: {*metric.labels, "le"} for metric in METRICS}
    for place, expression in expressions():
        for by, name in re.findall(r"by \(([a-z, ]+)\) \((?:rate|increase)?\(?(\w+?)(?:_bucket)?\b", expression):
            if name in labels:
                assert set(by.split(", ")) <= labels[name], (place, expression)


def test_the_files_are_what_the_description_makes():
    for path, content in dashboards.files().items():
        assert path.read_text("utf-8") == content, (
            f"run python deploy/dashboards/dashboards.py: {path.name} differs"
        )


def test_every_panel_has_a_title_a_unit_and_a_place_of_its_own():
    assert set(BOARDS) == {"pipeline", "training", "serving"}
    for board in BOARDS.values():
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
        assert len(places) == len(board["panels"]) == len({panel["title"] for panel in board["panels"]})
        for panel in board["panels"]:
            assert panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "prometheus"


def test_grafana_finds_the_source_and_the_dashboards():
    provisioned = {
        path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (FOLDER / "grafana").rglob("*.yml")
    }

    assert provisioned["prometheus"]["datasources"][0]["uid"] == "prometheus"
    variables = start._grafana_environment(Path("scratch"), start.Ports())
    for text in (
        provisioned["prometheus"]["datasources"][0]["url"],
        provisioned["provider"]["providers"][0]["options"]["path"],
    ):
        assert text.removeprefix("$") in variables


def test_stages_that_are_asked_for_are_stages_that_there_are():
    """An alert of a stage under its old name never fires."""
    asked = {
        stage
        for _, expression in expressions()
        for stage in re.findall(r'stage_started_timestamp_seconds\{stage="(\w+)"', expression)
    }
    assert asked
    assert asked <= set(get_args(StageName))


def test_the_page_names_every_metric_with_its_labels_and_unit():
    page = (ROOT / "docs" / "observability.md").read_text("utf-8")
    for metric in METRICS:
        labels = ", ".join(label for label in metric.labels if label != "replica")
        assert f"| `{metric.name}` | {labels} | {metric.meaning} | {metric.unit} |" in page, metric.name


def test_every_alert_says_what_happened_and_stands_in_the_page():
    page = (ROOT / "docs" / "observability.md").read_text("utf-8")
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert f"| `{rule['alert']}` |" in page


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed")
@pytest.mark.parametrize(("what", "file"), [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_prometheus_takes_the_files(what, file):
    checked = subprocess.run(["promtool", "check", what, FOLDER / file], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed")
def test_alerts_fire_when_they_should_and_not_before():
    checked = subprocess.run(
        ["promtool", "test", "rules", ROOT / "tests" / "unit" / "alerts_fire.yml"], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_without_prometheus_two_lines_say_how_to_get_it(tmp_path):
    with pytest.raises(SetupError) as raised:
        start.commands({"prometheus": None, "grafana": None}, tmp_path, start.Ports())

    assert "apt-get install prometheus" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_grafana_is_started_where_it_is_found(tmp_path):
    home = tmp_path / "grafana"
    (home / "conf").mkdir(parents=True)
    (home / "conf" / "defaults.ini").touch()

    found = start.commands(
        {"prometheus": "/usr/bin/prometheus", "grafana": str(home / "bin" / "grafana")}, tmp_path, start.Ports()
    )

    words, environment = found["grafana"]
    assert words[1:] == ["server", "--homepath", str(home)]
    assert Path(environment["GF_PATHS_PROVISIONING"]).is_dir()
    assert set(start.commands({"prometheus": "/usr/bin/prometheus"}, tmp_path, start.Ports())) == {"prometheus"}
