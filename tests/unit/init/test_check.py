"""``--check``: what would end a run in its first minutes ends here, and what is there is said."""

import json
import random
import re

import pytest

from tests.e2e.commands import QZHOU, call
from tests.small_recipe import RECIPE


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    answer = "it is {}, as everybody knows who has ever counted the houses of this street"
    rows = [{"question": f"what is {n}?", "answer": answer.format(n)} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "checked.toml"
    path.write_text(RECIPE.format(folder=tmp_path, backbone=tiny_bert))
    return path


def test_a_few_lines_and_nothing_is_written(recipe, tmp_path):
    done = call(QZHOU, "run", recipe, "--check")
    assert done.status == 0, done.text
    lines = done.out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "data", "examples", "model", "llm", "judged on", "takes", "next",
    ]  # fmt: skip
    assert "about 50 rows (tickets 50)" in lines[0]
    assert lines[1].endswith("tickets: of 50 rows that were looked at, 50 become examples")
    assert lines[4].endswith("tickets")
    assert "minutes on this machine" in lines[5]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "kept", "dropped"),
    [
        ("min_query_chars = 11", 40, "10 short_query"),
        ("max_tokens = 3", 0, "50 too_many_tokens"),
        ('languages = ["zh"]', 0, "50 other_language"),
        ("eval_fraction = 0.5", 50, ""),
    ],
)
def test_rows_become_examples_by_the_rules_of_a_run(recipe, setting, kept, dropped):
    content = recipe.read_text()
    if setting.startswith("eval_fraction"):
        content = re.sub(r"^eval_fraction = .*$", "", content, flags=re.MULTILINE)
    recipe.write_text(content.replace('rule = "question_answer"', f'rule = "question_answer"\n{setting}', 1))

    done = call(QZHOU, "run", recipe, "--check")

    assert f"; dropped: {dropped}" in done.text or not dropped
    if kept:
        assert done.status == 0, done.text
        assert f"tickets: of 50 rows that were looked at, {kept} become examples" in done.out
    else:
        assert done.status == 2, done.text
        assert "dataset 'tickets': none of its 50 rows becomes an example" in done.err


def test_of_a_large_file_some_rows_are_converted_from_its_beginning_to_its_end(recipe, tmp_path):
    rows = [{"question": f"what is {n}?" if n < 2500 else "", "answer": f"it is {n}"} for n in range(5000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    done = call(QZHOU, "run", recipe, "--check")

    assert "of 400 rows that were looked at, 201 become examples; dropped: 199 blank_query" in done.out, done.text


@pytest.mark.parametrize(
    ("count", "broken", "said"),
    [
        (799, 0.0, r"of 400 rows that were looked at, 400 become examples\n"),
        (10_000, 0.1, r"of 400 rows that were looked at, 3[3-8]\d become examples; dropped: [2-6]\d not_json"),
        (300, 0.1, r"of 300 rows that were looked at, 2[5-8]\d become examples; dropped: [2-4]\d not_json"),
    ],
)
def test_lines_that_cannot_be_read_count_as_the_others_do(recipe, tmp_path, count, broken, said):
    good = [json.dumps({"question": f"what is {n}?", "answer": f"it is {n}"}) for n in range(count)]
    draw = random.Random(0)
    lines = ["{" if draw.random() < broken else line for line in good]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    assert re.search(said, call(QZHOU, "run", recipe, "--check").out)


def test_rows_of_one_example_are_converted_together(recipe, tmp_path):
    rows = [
        {"query": f"what is {n // 10}?", "document": f"it is {n}", "grade": int(n % 10 == 0)} for n in range(10_000)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe.write_text(
        recipe.read_text().replace('rule = "question_answer"', 'rule = "graded"\npositive_grade = 1', 1)
    )

    done = call(QZHOU, "run", recipe, "--check")

    assert "of 400 rows that were looked at, 400 become examples\n" in done.out, done.text


def test_rows_without_a_side_are_counted_with_their_reasons(recipe, tmp_path):
    rows = [{"question": "", "answer": "blank"}, {"question": "what is it?"}, "no object"]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("\n" + "\n".join(map(json.dumps, rows)))

    done = call(QZHOU, "run", recipe, "--check")

    expected = "of 53 rows that were looked at, 50 become examples; dropped: 2 blank_query, 1 blank_positive"
    assert expected in done.out, done.text


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
