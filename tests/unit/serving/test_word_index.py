"""Documents found by words, and two rankings made one."""

import math
from collections import Counter

import pytest

from qzhou.data.storage import Folder
from qzhou.serving.word_index import RANK_CONSTANT, WordIndex, WordIndexBuilder, fused, words_of

TEXTS = [
    "The kettle boils water.",
    "The radio plays music, and the radio is loud.",
    "Press the red button of the kettle.",
    "水壶的红色按钮在背面。",
    "Öffnen Sie den Deckel.",
    "---",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Kettle's lamp, 3rd!", ["the", "kettle", "s", "lamp", "3rd"]),
        ("水壶按钮", ["水壶", "壶按", "按钮"]),
        ("A7型 水", ["a7", "型", "水"]),
        ("snake_case ÖL", ["snake", "case", "öl"]),
        ("...", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


@pytest.fixture
def index(tmp_path):
    builder = WordIndexBuilder()
    builder.add(TEXTS[:2])
    builder.add(TEXTS[2:])
    assert builder.write(Folder.open(str(tmp_path)))
    return WordIndex(tmp_path / "words")


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("kettle button", [2, 0]),
        ("RADIO", [1]),
        ("红色按钮", [3]),
        ("deckel öffnen", [4]),
        ("nothing like it", []),
        ("", []),
        ("!?", []),
    ],
)
def test_documents_with_the_words_of_a_query(index, query, rows):
    found, scores = index.search(query, 3)
    assert found == rows
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)


def test_scores_are_those_of_the_formula(index):
    """Lucene's BM25 (k1 = 1.5, b = 0.75), which is bm25s' default."""
    documents = [words_of(text) for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    df = sum("kettle" in document for document in documents)
    idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
    expected = {}
    for row, document in enumerate(documents):
        if count := Counter(document)["kettle"]:
            expected[row] = idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    found = dict(zip(*index.search("kettle", 10), strict=True))
    assert found == pytest.approx(expected, rel=1e-4)


def test_documents_without_words_have_no_index(tmp_path):
    builder = WordIndexBuilder()
    builder.add(["...", ""])
    assert not builder.write(Folder.open(str(tmp_path)))


def test_two_rankings_made_one():
    rows, scores = fused([[3, 1, 2], [1, 4]], 3)
    assert rows == [1, 3, 4]
    place = RANK_CONSTANT
    assert scores == pytest.approx([1 / (place + 2) + 1 / (place + 1), 1 / (place + 1), 1 / (place + 2)])
    assert fused([[], []], 5) == ([], [])
