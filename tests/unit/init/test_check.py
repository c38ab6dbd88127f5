"""``--check``: what would end a run in its first minutes ends here, and what is there is said."""

import json

import pytest

from tests.e2e.commands import QZHOU, call
from tests.small_recipe import RECIPE


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    rows = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "checked.toml"
    path.write_text(RECIPE.format(folder=tmp_path, backbone=tiny_bert))
    return path


def test_five_lines_and_nothing_is_written(recipe, tmp_path):
    done = call(QZHOU, "run", recipe, "--check")
    assert done.status == 0, done.text
    lines = done.out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["data", "model", "llm", "judged on", "takes", "next"]
    assert "about 50 rows (tickets 50)" in lines[0]
    assert lines[3].endswith("tickets")
    assert "minutes on this machine" in lines[4]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rows.jsonl", "gone.jsonl", "dataset 'tickets': no file matches"),
        (
            'rule = "question_answer"',
            'rule = "question_answer"\ncolumns = { query = "frage" }',
            "no column 'frage'",
        ),
        ('backbone = "', 'backbone = "/nowhere', "/nowhere"),
        ("steps = 4", 'steps = "many"', "training.stage1.steps"),
        ('reader = "jsonl"', 'reader = "csv"', "has no column"),
        ('reader = "jsonl"', 'reader = "none:rows"', "the module 'none' of its reader cannot be imported"),
    ],
    ids=["file", "column", "model", "type", "reader", "own reader"],
)
def test_what_is_wrong_is_named(recipe, old, new, told):
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    done = call(QZHOU, "run", recipe, "--check")
    assert done.status == 2, done.text
    assert told in done.text
