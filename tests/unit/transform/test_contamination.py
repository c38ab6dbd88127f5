import itertools

import numpy as np
import pyarrow as pa
import pytest

from qzhou.config.transform import ContaminationSection
from qzhou.data.ngrams import Tokens, windows
from qzhou.data.overlap import Overlap, grams_of
from qzhou.data.records import LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import table_of
from qzhou.transform.contamination.index_builder import IndexBuilder

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()  # noqa: SIM905
SETTINGS = ContaminationSection()


def index_of(settings=SETTINGS, **tasks):
    builder = IndexBuilder(settings)
    for task, texts in tasks.items():
        builder.add_texts(task, texts)
    return builder.index()


def hits(texts, index):
    rows = [LabeledExample(id="", dataset="d", text=text, label="") for text in texts]
    overlap = Overlap("d")
    hit = overlap.compare(table_of(rows, LabeledExample), "classification", index)
    return hit.tolist(), overlap


def by_hand(text, size):
    words = text.casefold().split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


@pytest.mark.parametrize("size", [1, 2, 3, 13])
def test_windows_are_the_runs_of_tokens_written_in_loops(size):
    texts = ["a b c d", "", "b c d", "B, c! d?", " ".join(WORDS), "x"]
    tokens = Tokens.of(texts)

    grams, ends = windows(tokens, size, whole_if_shorter=False)

    found = [set(grams[start:end].tolist()) for start, end in itertools.pairwise(ends)]
    plain = [text.replace(",", "").replace("!", "").replace("?", "") for text in texts]
    for one, text in zip(found, plain, strict=True):
        for other, other_text in zip(found, plain, strict=True):
            assert len(one & other) == len(by_hand(text, size) & by_hand(other_text, size))


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not():
    index = index_of(task=["before that " + " ".join(WORDS) + " and after"])

    found, overlap = hits(
        ["So: " + " ".join(WORDS[:13]).upper() + "!", "so " + " ".join(WORDS[:12]) + " so"], index
    )

    assert found == [True, False]
    assert (overlap.compared, overlap.tasks) == (2, {"task": 1})
    assert overlap.examples["task"][0].startswith("So: ONE TWO")


def test_chinese_is_compared_by_characters():
    text = "这是一个用来测试评测集污染检测功能的中文句子，它比二十个字要长得多。"
    index = index_of(task=[text])

    assert hits(
        ["前面的话" + text[3:25] + "后面的话题完全不同于此", text[:10] + "别的内容别的内容别的内容"], index
    )[0] == [True, False]


def test_short_texts_overlap_when_they_are_equal():
    index = index_of(task=["What is a transformer?", "你好"])

    assert hits(["what is a TRANSFORMER", "what is a transformer model", "你好！", "你好吗"], index)[0] == [
        True,
        False,
        True,
        False,
    ]


def test_every_side_counts_and_each_task_is_counted_by_itself():
    rows = [
        RetrievalExample(id="", dataset="d", query="q", positives=("same text", "other")),
        RetrievalExample(id="", dataset="d", query="z", positives=("y",)),
    ]
    index = index_of(one=["same text"], two=["same text", "nothing"], three=["w"])
    overlap = Overlap("d")

    hit = overlap.compare(table_of(rows, RetrievalExample), "retrieval", index)

    assert hit.tolist() == [True, False]
    assert overlap.tasks == {"one": 1, "two": 1, "three": 0}


def test_a_text_of_which_most_is_known_is_a_copy_and_a_phrase_in_common_is_none():
    text = " ".join(f"w{n}" for n in range(40))  # 28 runs of thirteen words
    index = index_of(task=[text])

    phrase = " ".join(["x y z", *text.split()[:20], "x y z"])
    found, overlap = hits([f"so {text} and more", text.replace("w20", "x"), phrase, "w1 w2"], index)

    assert (found, overlap.tasks) == ([True, True, True, False], {"task": 3})
    assert overlap.copied == {"task": 1}, (
        "28 of 31 runs; 15 of 28, because 13 have the word that was changed; 8 of 14"
    )


def test_a_copied_document_is_not_a_copied_query():
    texts = [("query here", "other"), ("mine", "document here"), ("query here", "document here")]
    rows = [RetrievalExample(id="", dataset="d", query=query, positives=("new", one)) for query, one in texts]
    overlap = Overlap("d")

    overlap.compare(table_of(rows, RetrievalExample), "retrieval", index_of(task=["query here", "document here"]))

    assert (overlap.copied, overlap.asked) == ({"task": 3}, {"task": 2})


def test_a_pair_is_a_copy_where_both_sides_are():
    first, second = ("One two three four.", "Five six seven.")
    pairs = [(first, second), (first, "Something else."), ("Something else.", second)]
    rows = [PairExample(id=str(n), dataset="d", text_a=a, text_b=b, score=0) for n, (a, b) in enumerate(pairs)]
    parts = [Overlap("d"), Overlap("d")]
    for part in parts:
        part.compare(table_of(rows, PairExample), "pair", index_of(task=[first, second]))

    parts[0].add(parts[1])

    assert (parts[0].compared, parts[0].tasks) == (6, {"task": 6})
    assert parts[0].copied == parts[0].asked == {"task": 2}


def test_a_bounded_index_still_finds_long_overlaps():
    rng = np.random.default_rng(0)
    long_texts = [" ".join(f"w{n}" for n in rng.integers(0, 10**6, 300)) for _ in range(20)]
    index = index_of(ContaminationSection(max_index_ngrams=1000), task=long_texts)

    assert len(index.hashes) <= 1000
    assert index.kept_of > 1
    found, overlap = hits(long_texts, index)
    assert (found, overlap.copied) == ([True] * 20, {"task": 20})
    assert not any(hits([" ".join(f"v{n}" for n in range(300))], index)[0])


def test_what_is_added_twice_counts_once():
    builder = IndexBuilder(SETTINGS)
    grams, _ = grams_of(["a b c"], SETTINGS.sizes)
    builder.add("t", grams)
    builder.add("t", grams)

    assert len(builder.index().hashes) == 1
    assert isinstance(table_of([], LabeledExample), pa.Table)
