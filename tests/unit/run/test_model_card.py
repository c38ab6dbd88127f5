"""The README.md of a model's folder."""

import dataclasses

import pytest

from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.run.model_card import write_model_card
from qzhou.run.models import weights_fingerprint

ROW = {"task": "docs", "type": "Retrieval", "metric": "ndcg_at_10", "model": "stage2", "score": 0.61, "n": 300}
DATA = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "instruction": "Find it"}


@pytest.fixture
def run(tmp_path):
    folder = Folder.open(str(tmp_path / "run"))
    (folder / "model").create().write_json("config.json", {"hidden_size": 32, "is_causal": False})
    done = Manifest(
        stage="model", fingerprint="f00d", inputs={}, outputs={"dimensions": 32}, settings={}, code_version="0.9",
        finished_at="today", wall_s=0.0,
    )  # fmt: skip
    (folder / "model").write_json("manifest.json", dataclasses.asdict(done))
    counts = {"datasets": {"docs": {"written": {"examples": 1234}}}}
    (folder / "transform").create().write_json("report.json", counts)
    return folder


def card(make_recipe, run, **sections):
    recipe = make_recipe(model={"backbone": "org/base"}, datasets=[{**DATA, "license": "cc0-1.0"}], **sections)
    write_model_card(recipe, run)
    return (run / "model").read_bytes("README.md").decode()


def test_a_card_says_what_the_model_is_and_how_it_is_used(make_recipe, run):
    written = card(make_recipe, run)

    for part in (
        "base_model: org/base", "library_name: sentence-transformers", "vectors of 32 dimensions",
        r"| `query` | `'Instruct: Find it\nQuery: '` |", "| docs | retrieval | 1234 | cc0-1.0 |",
        "| model | today | `f00d` |", "in both spellings, `is_causal`",
    ):  # fmt: skip
        assert part in written
    assert "## Scores" not in written


def test_scores_come_with_their_intervals_once_there_are_some(make_recipe, run):
    gain = {"task": "docs", "model": "stage2", "against": "backbone", "difference": 0.05, "low": 0.02, "high": 0.08}
    content = {"rows": [{**ROW, "low": 0.58, "high": 0.64}], "differences": [gain]}
    (run / "evaluation").create().write_json("comparison.json", content)

    assert "| docs | ndcg_at_10 | 300 | 0.6100 | 0.5800 to 0.6400 | +0.0500* |" in card(make_recipe, run)


def test_the_card_does_not_change_what_the_model_is(make_recipe, run):
    place = str(run.path) + "/model"
    before = weights_fingerprint(place)
    card(make_recipe, run)

    assert weights_fingerprint(place) == before


def test_layers_after_pooling_give_the_width(make_recipe, run):
    """As the export has found it in the files of the model, and wrote it into its manifest."""
    manifest = (run / "model").read_json("manifest.json")
    (run / "model").write_json("manifest.json", {**manifest, "outputs": {"dimensions": 16}})

    assert "vectors of 16 dimensions" in card(make_recipe, run)
