"""The promise of the README: `make quickstart` makes the backbone better at searching documentation it never saw."""

import json

import pyarrow.parquet as pq
import pytest

from tests.e2e.commands import run

GAIN = 0.05  # nDCG@10 over the untouched backbone
LOSS = 0.01  # that stage 2 may cost against stage 1


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    storage = tmp_path_factory.mktemp("quickstart")
    done = run("jobs/submit.py", "recipes/quickstart.toml", "--run.storage", storage)
    assert done.status == 0, done.text
    return storage / "quickstart"


def test_training_gains_on_held_out_modules(quickstart):
    rows = json.loads((quickstart / "evaluation" / "comparison.json").read_text("utf-8"))["rows"]
    score = {row["model"]: row["score"] for row in rows if row["metric"] == "ndcg_at_10"}

    assert set(score) == {"bm25", "backbone", "stage1", "stage2"}
    assert score["stage2"] >= score["backbone"] + GAIN
    assert score["stage2"] >= score["stage1"] - LOSS


def test_no_module_is_on_both_sides_and_the_corpus_is_large_enough(quickstart):
    def texts(folder: str) -> set[str]:
        rows = pq.read_table(
            quickstart / "transform" / folder / "retrieval" / "docs_search"
        ).to_pylist()
        return {positive for row in rows for positive in row["positives"]}

    trained, held_out = texts("examples"), texts("held_out")

    assert not trained & held_out
    assert len(held_out) >= 3000
    assert len(trained) > 3500
