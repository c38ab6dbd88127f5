"""The actor that encodes, without Ray: each chunk once, and nothing that is no number."""

import numpy as np
import pytest

from qzhou.data.prompts import Prompt
from qzhou.data.records import Document
from qzhou.data.storage import Folder, write_records
from qzhou.errors import ModelError
from qzhou.mining.actors import EncodeActor
from qzhou.mining.corpus import chunks_of, read_chunks


class Teacher:
    """Vectors of two numbers; a text that says so has none."""

    fingerprint, arithmetic, probe = "teacher", "torch-float32", None

    def __init__(self):
        self.seen, self.truncated, self.prompts = [], 0, {}

    def encode(self, texts, *, max_tokens):
        assert max_tokens is None  # documents have the encoder's own limit
        self.seen += texts
        self.truncated += sum(len(text) > 12 for text in texts)
        return np.array([[1.0, np.nan if "nothing" in text else 0.0] for text in texts], dtype=np.float32)


@pytest.fixture
def make_actor(tmp_path, make_recipe):
    """An actor that encodes documents; keyword arguments are settings of mining."""
    folder = Folder.open(str(tmp_path))
    texts = ["one", "", "a very long text", "four", "five", "six", "seven", "nothing"]
    write_records(folder / "texts", (Document(id=str(n), text=text) for n, text in enumerate(texts)), Document)

    def make(*, symmetric=True, **mining):
        prompt = Prompt(instruction="find", symmetric=symmetric)
        chunks = chunks_of(folder / "texts", "text", prompt, are_queries=False, chunk_rows=3)
        made = EncodeActor(make_recipe(mining=mining), "", folder / "vectors", chunks)
        made.__dict__["_encoder"] = Teacher()  # in place of a model
        return made

    return make


@pytest.fixture
def actor(make_actor):
    return make_actor()


def encoded(actor, number):
    (table,) = read_chunks(None, [(number, actor._chunks[number])])
    (row,) = actor(table).to_pylist()
    return row


def test_a_chunk_is_encoded_with_its_prompt_and_only_once(actor, tmp_path):
    first, again = encoded(actor, 0), encoded(actor, 0)
    second = encoded(actor, 1)

    prefix = "Instruct: find\nQuery: "
    assert actor._encoder.seen[:3] == [f"{prefix}one", f"{prefix}Null", f"{prefix}a very long text"]
    assert (first["encoded"], again["encoded"], second["encoded"]) == (3, 0, 3)
    assert first["name"] == again["name"] != second["name"]
    assert first["name"].startswith("teacher-torch-float32/")
    assert np.load(tmp_path / "vectors" / first["name"]).shape == (3, 2)
    assert len(actor._encoder.seen) == 6


def test_a_vector_that_is_no_number_is_an_error_that_names_the_text(actor, tmp_path):
    with pytest.raises(ModelError, match=r"no finite vector for 1 of 2 texts, .*nothing.*model\.encoding_dtype"):
        encoded(actor, 2)

    assert not list((tmp_path / "vectors").rglob("*.npy"))


@pytest.mark.parametrize(
    ("declared", "symmetric", "before"),
    [
        ({"query": "query: ", "passage": "passage: "}, False, "passage: "),
        # both sides of the dataset ask
        ({"query": "query: ", "passage": "passage: "}, True, "query: "),
        ({"query": "", "document": ""}, True, "Instruct: find\nQuery: "),  # nothing of its own
    ],
)
def test_a_teacher_reads_the_prompts_that_its_folder_declares(make_actor, declared, symmetric, before):
    actor = make_actor(symmetric=symmetric, teacher_prompts="model")
    actor._encoder.prompts = declared

    encoded(actor, 0)

    assert actor._encoder.seen[:2] == [f"{before}one", f"{before}Null"]


def test_a_vector_file_that_is_cut_off_is_made_again(actor, tmp_path):
    name = encoded(actor, 0)["name"]
    file = tmp_path / "vectors" / name
    whole = file.read_bytes()

    for broken in (whole[:-3], whole[:20], b""):
        file.write_bytes(broken)
        assert encoded(actor, 0)["encoded"] == 3
        assert file.read_bytes() == whole
