"""What a recipe reads is looked into before anything starts."""

import json
from pathlib import Path

import pytest

from qzhou.data.storage import Folder
from qzhou.errors import DataError
from qzhou.transform.layout import make_layout
from qzhou.transform.reading.discovery import find_inputs


def dataset(name, path, **settings):
    return {"name": name, "reader": "jsonl", "rule": "question_answer", "paths": [str(path)], **settings}


def test_every_bad_dataset_is_named_at_once(tmp_path, make_recipe):
    good, odd = tmp_path / "good.jsonl", tmp_path / "odd.jsonl"
    good.write_text(json.dumps({"question": "q", "answer": "a"}))
    odd.write_text(json.dumps({"question": "q", "reply": "a"}))
    datasets = [dataset("good", good), dataset("odd", odd), dataset("gone", tmp_path / "gone.jsonl")]
    datasets += [dataset("lists", good, explode=["nope"]), dataset("foreign", good, reader="no_such_module:rows")]

    with pytest.raises(DataError) as caught:
        find_inputs(make_recipe(datasets=datasets))

    lines = str(caught.value).splitlines()
    assert [line.split("'")[1] for line in lines] == ["odd", "gone", "lists", "foreign"]
    assert "no column 'answer'. It has: question, reply." in lines[0]
    assert "no column 'nope'" in lines[2]


def test_encodings_that_were_found_are_counted(tmp_path, make_recipe):
    text = "Где находится Москва? Москва находится в России, на реке Москве."
    for name, encoding in (("a", "cp1251"), ("b", "utf-8"), ("c", "utf-16")):
        row = json.dumps({"question": text, "answer": text}, ensure_ascii=False) + "\n"
        (tmp_path / f"{name}.jsonl").write_bytes((row * 20).encode(encoding))

    found = find_inputs(make_recipe(datasets=[dataset("d", tmp_path / "*.jsonl", encoding="detect")]))

    assert found.encodings("d") == {"cp1251": 1, "utf-8": 1, "utf-16": 1}


READER = """
from pathlib import Path

def files(folder):
    return sorted(Path(folder).iterdir())

def lines(stream, folder):
    for line in stream:
        yield {"question": line.decode(), "answer": folder}

def all_lines(streams, folder):
    for stream in streams:
        yield from lines(stream, folder)
"""


def own(name, folder):
    options = {"reader_options": {"folder": str(folder)}, "paths": []}
    return dataset("d", "", reader=f"finding_reader:{name}") | options


def test_a_reader_of_ones_own_may_find_its_files_whose_versions_count(tmp_path, make_recipe):
    (tmp_path / "finding_reader.py").write_text(READER)
    (tmp_path / "in").mkdir()
    for name in "ba":
        (tmp_path / "in" / name).write_text("text\n")
    recipe = make_recipe(datasets=[own("lines", tmp_path / "in")])
    recipe.in_folder(str(tmp_path))

    found = find_inputs(recipe)
    (tmp_path / "in" / "a").write_text("longer text\n")
    changed = find_inputs(recipe)

    assert [Path(file.uri).name for file in found.files["d"]["rows"]] == ["a", "b"]
    assert found.fingerprints()["d"] != changed.fingerprints()["d"]
    assert found.fingerprints()["readers"] == changed.fingerprints()["readers"]


def test_a_reader_that_takes_all_files_is_one_shard(tmp_path, make_recipe):
    (tmp_path / "finding_reader.py").write_text(READER)
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"{number}").write_bytes(b"x" * 2**18)
    shards = {}
    for name in ("lines", "all_lines"):
        recipe = make_recipe(datasets=[own(name, tmp_path / "in")])
        recipe.in_folder(str(tmp_path))
        found = find_inputs(recipe)
        folder = Folder.open(str(tmp_path / "out"))
        shards[name] = make_layout(recipe, folder, found.files, found.readers).shards

    assert len(shards["lines"]) > 1
    assert len(shards["all_lines"]) == 1
    assert sum(len(shard.files.files) for shard in shards["lines"]) == 40


def test_a_reader_without_paths_that_lists_no_files_is_refused(tmp_path, make_recipe):
    (tmp_path / "bare_reader.py").write_text("def lines(stream):\n    yield {}\n")
    recipe = make_recipe(datasets=[dataset("d", "", reader="bare_reader:lines") | {"paths": []}])
    recipe.in_folder(str(tmp_path))

    with pytest.raises(DataError, match="'d': reader 'bare_reader:lines' needs 'paths', or a func"):
        find_inputs(recipe)
