"""What a recipe reads is looked into before anything starts."""

import json

import pytest

from qzhou.errors import DataError
from qzhou.transform.raw import raw_data


def dataset(name, path, **settings):
    return {
        "name": name,
        "reader": "jsonl",
        "rule": "question_answer",
        "paths": [str(path)],
        **settings,
    }


def test_every_bad_dataset_is_named_at_once(tmp_path, make_recipe):
    good, odd = tmp_path / "good.jsonl", tmp_path / "odd.jsonl"
    good.write_text(json.dumps({"question": "q", "answer": "a"}))
    odd.write_text(json.dumps({"question": "q", "reply": "a"}))
    datasets = [
        dataset("good", good),
        dataset("odd", odd),
        dataset("gone", tmp_path / "gone.jsonl"),
    ]
    datasets += [
        dataset("lists", good, explode=["nope"]),
        dataset("foreign", good, reader="no_such_module:rows"),
    ]

    with pytest.raises(DataError) as caught:
        raw_data(make_recipe(datasets=datasets))

    lines = str(caught.value).splitlines()
    assert [line.split("'")[1] for line in lines] == ["odd", "gone", "lists", "foreign"]
    assert "no column 'answer'. It has: question, reply." in lines[0]
    assert "no column 'nope'" in lines[2]


def test_encodings_that_were_found_are_counted(tmp_path, make_recipe):
    text = "Где находится Москва? Москва находится в России, на реке Москве."
    for name, encoding in (("a", "cp1251"), ("b", "utf-8"), ("c", "utf-16")):
        row = json.dumps({"question": text, "answer": text}, ensure_ascii=False) + "\n"
        (tmp_path / f"{name}.jsonl").write_bytes((row * 20).encode(encoding))

    found = raw_data(make_recipe(datasets=[dataset("d", tmp_path / "*.jsonl", encoding="detect")]))

    assert found.encodings("d") == {"cp1251": 1, "utf-8": 1, "utf-16": 1}
