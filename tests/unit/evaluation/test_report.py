"""The page says what the run folder says, in order, escaped, and nothing of what is not there."""

import json
import re
from dataclasses import asdict

import plotly.graph_objects as go
import pytest

from qzhou.errors import DataError
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.report import write_report
from qzhou.evaluation.report.plots import Bar, Line, bars, histograms, lines, thinned
from qzhou.evaluation.report.tables import Column
from qzhou.run.files import RunFiles
from qzhou.run.run import Run
from tests.finished_run import comparison, fill

SECTIONS = ("data", "synthesis", "mining", "training", "results", "diagnosis", "provenance")


def page_of(run: Run) -> str:
    """The page without Plotly's own script, which has words of its own."""
    write_report(run)
    page = run.folder.read_bytes("report.html").decode()
    before, script, after = page.partition("<script>/**")
    assert script
    return before + after.partition("</script>")[2]


def section_of(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def figures_of(page: str) -> list[dict]:
    return [json.loads(one) for one in re.findall(r'<script type="application/json">(.*?)</script>', page)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from tests.conftest import recipe_in

    run = Run.open(recipe_in(tmp_path_factory.mktemp("report"))())
    fill(run)
    return page_of(run)


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ("data", ["docs_search", "9,000", "blank_positive", "1,240", "3.44", "en 90 %, zh 8 %, de 2 %"]),
        ("data", ["part of a row", "shares 13 words", "copied queries", "0.07", "word for word"]),
        ("synthesis", ["43,000", "43,232", "95,600", "0.0397", "a-model-2026", "60 too_far, 12 empty", "76.32"]),
        ("synthesis", ["Give back what the elements add up to.", "rewrite: 0.871", "&#39;query&#39; says nothing"]),
        ("mining", ["12,300", "6,015", "0.6412", "7.75", "24,787", "[mined 0.553] Returns the largest element."]),
        (
            "training",
            [
                "stage1",
                "stage2",
                "docs_siblings",
                "classification",
                "ndcg_at_10",
                "tokens per second",
                "0.8830",
                "0.7100",
            ],
        ),
        ("results", ["ndcg_at_10", "0.6300", "+0.0600", "+0.0300", "MTEB(cmn, v1)", "76.90", "212.7", "1,204"]),
        (
            "results",
            ["143 queries better than with backbone, 61 worse", "sort &lt;b&gt;?", "Opens a file.", "0.2500"],
        ),
        ("results", ["forum_reranking", "no query has a negative", "Beside published scores", "64.12", "91.40"]),
        (
            "diagnosis",
            ["classification_poor", "95 % from -0.0540", "training.stage2.retrieval_share", "fewer than 6 steps"],
        ),
        (
            "provenance",
            ["print-4", "stage1 an-older-one (another since)", "code-6", "140.5", "deepspeed", "max_query_tokens"],
        ),
    ],
)
def test_each_section_shows_what_its_files_hold(finished, section, shown):
    found = section_of(finished, section)

    assert not [one for one in shown if one not in found]


def test_the_sections_stand_in_order_in_the_page_and_in_its_contents(finished):
    assert tuple(re.findall(r'<section id="([\w-]+)"', finished)) == SECTIONS
    assert tuple(re.findall(r'href="#([\w-]+)"', finished)) == SECTIONS


def test_every_score_has_a_bar_with_its_interval(finished):
    found = {figure["data"][0]["y"][0]: figure for figure in figures_of(section_of(finished, "results"))}

    stage2 = found["docs_search"]["data"][3]
    assert (stage2["name"], stage2["x"]) == ("stage2", [0.63, 0.49])
    assert stage2["error_x"]["array"] == pytest.approx(stage2["error_x"]["arrayminus"])
    assert stage2["error_x"]["array"][0] == pytest.approx(300**-0.5, abs=1e-6)


def test_there_is_a_panel_of_losses_for_each_stage_and_task(finished):
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", section_of(finished, "training"))

    assert titles[:4] == ["stage1: retrieval", "stage2: retrieval", "stage2: pair", "stage2: classification"]
    losses = figures_of(section_of(finished, "training"))[0]["data"]
    assert [line["name"] for line in losses] == ["docs_search", "forum"]
    assert [len(line["x"]) for line in losses] == [60, 60]


def test_plotly_knows_every_property_of_every_plot(finished):
    figures = figures_of(finished)

    assert len(figures) > 15
    for figure in figures:
        go.Figure(figure)  # raises where it does not


def test_the_page_loads_nothing(make_recipe):
    run = Run.open(make_recipe())
    fill(run)

    page = page_of(run)

    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", page)


def test_the_same_run_gives_the_same_page(make_recipe):
    run = Run.open(make_recipe())
    fill(run)

    assert page_of(run) == page_of(run)


def test_of_a_run_that_has_just_begun_each_section_says_what_is_missing(make_recipe):
    page = page_of(Run.open(make_recipe()))

    assert tuple(re.findall(r'<section id="([\w-]+)"', page)) == SECTIONS
    names = (
        "transform/report.json",
        "synthesis/ledger.json",
        "mining/report.json",
        "training/stage1/metrics.jsonl",
    )
    names += ("evaluation/comparison.json", "evaluation/diagnosis.json")
    for section, name in zip(SECTIONS, names, strict=False):
        assert f"{name} is not there" in section_of(page, section)
    assert "Not finished: transform, synthesis" in section_of(page, "provenance")
    assert figures_of(page) == []


@pytest.mark.parametrize("name", ["transform/report.json", "synthesis/ledger.json", "synthesis/report.json"])
@pytest.mark.parametrize(
    "other", ["mining/report.json", "training/stage1/metrics.jsonl", "evaluation/manifest.json"]
)
def test_any_file_may_be_missing(make_recipe, name, other):
    run = Run.open(make_recipe())
    fill(run)
    run.folder.remove(name)
    run.folder.remove(other)

    assert tuple(re.findall(r'<section id="([\w-]+)"', page_of(run))) == SECTIONS


def test_scores_of_an_earlier_model_are_called_so(make_recipe):
    run = Run.open(make_recipe())
    fill(run)
    words = "ran again since. Run `qzhou evaluate` to score the models that are there now"
    trained, judged = (
        run.folder.read_json(f"{stage}/manifest.json") for stage in ("training/stage2", "evaluation")
    )
    run.folder.write_json("evaluation/manifest.json", judged | {"inputs": {"stage2": trained["fingerprint"]}})
    before = page_of(run)
    run.folder.write_json("training/stage2/manifest.json", trained | {"fingerprint": "another"})
    after = page_of(run)

    for section in ("results", "diagnosis"):
        assert words not in section_of(before, section)
        assert f"training/stage2, which {words}" in section_of(after, section)


def test_what_a_run_did_not_do_is_not_called_missing(make_recipe):
    run = Run.open(make_recipe())
    fill(run)
    run.folder.remove("synthesis/ledger.json")
    run.folder.remove("synthesis/report.json")
    (run.folder / "evaluation").write_json("diagnosis.json", {"findings": [], "skipped": []})

    page = page_of(run)

    assert "Nothing: the recipe has no synthesis." in section_of(page, "synthesis")
    assert "Nothing was found." in section_of(page, "diagnosis")
    assert "Not looked for" not in section_of(page, "diagnosis")


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_text_from_data_cannot_write_into_the_page(make_recipe):
    run = Run.open(make_recipe())
    fill(run)
    scores = [asdict(Row(EVIL, "STS", EVIL, model, 0.5, 3)) for model in ("backbone", EVIL)]
    (run.folder / "evaluation").write_json(
        "comparison.json", comparison() | {"rows": scores, "not_judged": {EVIL: EVIL}}
    )
    notice = {"check": EVIL, "message": EVIL, "evidence": EVIL, "setting": EVIL}
    (run.folder / "evaluation").write_json("diagnosis.json", {"findings": [notice], "skipped": []})
    line = {"step": 0, "task": EVIL, "dataset": EVIL, "loss": 2.5}
    (run.folder / "training" / "stage1").write_bytes("metrics.jsonl", json.dumps(line).encode())

    page = page_of(run)

    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    for figure in figures_of(page):  # Plotly takes tags in names and labels for its own
        assert "<img" not in json.dumps(figure)


def test_numbers_that_json_has_no_word_for_leave_a_gap():
    plot = lines(
        "loss", [Line("docs", [(0, 1.0), (1, float("nan")), (2, float("inf"))], "red")], x="step", y="loss"
    )

    assert plot.traces[0]["y"] == [1.0, None, None]
    assert Column("loss", "count").cell(float("nan")).sort == ""


def test_a_long_line_is_averaged():
    points = [(step, float(step % 2)) for step in range(1001)]

    found = thinned(points, most=100)

    assert len(found) == 91
    assert found[0] == (10, pytest.approx(5 / 11))
    assert found[-1][0] == 1000
    assert thinned(points[:5]) == points[:5]


def test_histograms_are_in_percent_of_what_each_counts():
    plot = histograms("docs", [0.0, 0.5, 1.0], {"mined": ("red", [1, 3]), "given": ("blue", [0, 0])}, x="x", y="y")

    assert [trace["name"] for trace in plot.traces] == ["mined"]
    assert (plot.traces[0]["x"], plot.traces[0]["y"]) == ([0.25, 0.75], [25.0, 75.0])


def test_a_bar_without_a_score_has_neither_length_nor_whiskers():
    (trace,) = bars("STS", ["a", "b"], [Bar("stage2", "red", [0.5, None], [(0.4, 0.7), None])], x="score").traces

    assert trace["x"] == [0.5, None]
    assert trace["error_x"]["array"] == [pytest.approx(0.2), 0]
    assert trace["error_x"]["arrayminus"] == [pytest.approx(0.1), 0]


def test_a_long_label_is_broken_and_has_room():
    labels = {"short": "short", "a" * 30: f"{'a' * 22}<br>{'a' * 8}"}
    labels["AmazonCounterfactualClassification"] = "AmazonCounterfactual<br>Classification"
    labels["docs_siblings_pair_classification"] = "docs_siblings_pair_<br>classification"

    plots = [bars("STS", [label], [Bar("stage2", "red", [0.5])], x="score") for label in labels]

    assert [plot.traces[0]["y"] for plot in plots] == [[broken] for broken in labels.values()]
    assert plots[1].height > plots[0].height


def test_a_run_that_was_never_begun_is_not_found(make_recipe):
    with pytest.raises(DataError, match="there is no run of that name"):
        Run.find(make_recipe())

    begun = Run.open(make_recipe())
    assert Run.find(make_recipe()).folder == begun.folder


def test_a_report_reads_the_recipe_that_the_run_used(make_recipe):
    run = Run.open(make_recipe())
    run.folder.write_json("recipe.json", {"run": {"name": "as it was"}})

    assert RunFiles(run.folder).name == "as it was"
