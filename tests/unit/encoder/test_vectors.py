"""The store of vectors: found by content and encoder, encoded once, whole."""

import numpy as np
import pytest

from qzhou.data.storage import Folder
from qzhou.encoder.vectors import VectorStore


class Lengths:
    """A vector is the length of its text, and a 1."""

    fingerprint, probe = "lengths", None

    def __init__(self, arithmetic="torch-float32"):
        self.arithmetic, self.seen = arithmetic, []

    def encode(self, texts, *, max_tokens=None):
        self.seen += texts
        lengths = [min(len(text), max_tokens or len(text)) for text in texts]
        return np.array([[n, 1] for n in lengths], dtype=np.float32).reshape(len(texts), 2)


@pytest.fixture
def folder(tmp_path):
    return Folder.open(str(tmp_path))


def test_texts_are_encoded_once_and_come_back_in_their_order(folder):
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    encoder = Lengths()
    first = VectorStore(folder, encoder, rows=2)
    found = first.vectors(texts)

    again = VectorStore(folder, encoder, rows=2)

    assert (again.vectors(texts) == found).all()
    assert found[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert (first.encoded, again.encoded, encoder.seen) == (5, 0, texts)
    assert first.vectors([]).shape == (0, 2)


def test_another_arithmetic_length_or_text_finds_no_old_file(folder):
    names = [
        VectorStore(folder, Lengths()).file(["a long text"]),
        VectorStore(folder, Lengths("onednn-float32")).file(["a long text"]),
        VectorStore(folder, Lengths()).file(["a long text"], max_tokens=3),
        VectorStore(folder, Lengths()).file(["another text"]),
    ]

    assert len(set(names)) == len(names)
    assert folder.read_array(names[2])[0, 0] == 3


def test_vectors_that_are_refused_are_not_written(folder):
    def refuse(texts, vectors):
        raise ValueError(f"{len(texts)} texts, {vectors.shape}")

    with pytest.raises(ValueError, match=r"1 texts, \(1, 2\)"):
        VectorStore(folder, Lengths(), check=refuse).file(["a"])

    assert not folder.folders()
