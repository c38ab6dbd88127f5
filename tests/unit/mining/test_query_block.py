"""A dataset from its files to its negatives, without Ray: what order and shards must not change."""

import dataclasses

import numpy as np
import pytest

from qzhou.config.dataset import Dataset
from qzhou.config.mining import MiningSection
from qzhou.data.records import Document, Negative, RetrievalExample, Source, normalized_text, relevant_keys
from qzhou.data.storage import Folder, write_records
from qzhou.mining.corpus import Sources, document_digests, prepared, read_texts
from qzhou.mining.negative_selection import select_negatives
from qzhou.mining.query_block import (
    Queries,
    depth_of,
    ranking_of,
    relabelled,
    reranked,
    two_lowest,
    with_answers,
    with_one_judge,
)
from qzhou.mining.shard import QueryBlock, SearchResult, Shard, VectorFile, divided

DATASET = Dataset.model_validate({"name": "d", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]})
MINING = MiningSection(rank_from=2, rank_to=15, negatives_per_query=3, positive_ratio=None)


def vector(text: str) -> np.ndarray:
    """A direction that the words give: texts that share words are near."""
    seeds = [int.from_bytes(word.encode(), "big") % 2**32 for word in text.split()]
    made = np.sum([np.random.default_rng(seed).normal(size=16) for seed in seeds], axis=0)
    return (made / np.linalg.norm(made)).astype(np.float32)


def content() -> tuple[list[RetrievalExample], list[Document]]:
    words = np.random.default_rng(0).integers(0, 30, (140, 3))
    texts = [f"word{a} word{b} word{c} text{n}" for n, (a, b, c) in enumerate(words)]
    examples = [
        RetrievalExample(
            id=f"q{n}",
            dataset="d",
            query=f"word{words[n][0]} word{words[n][1]}" if n % 7 else "asked often",
            positives=(texts[n], texts[n + 1].upper()) if n % 4 == 0 else (texts[n],),
            source=Source(parent=f"q{n - 1}" if n % 9 == 1 else ""),
        )
        for n in range(60)
    ]
    copies = [f"{' ' * n}{texts[60]}" for n in range(60)]  # more of them than ranks
    return examples, [
        Document(id=str(n), text=text) for n, text in enumerate([*texts[40:], *texts[45:50], *copies])
    ]


def mined(place, examples, documents, *, shards=1, mining=MINING, rerank=None) -> dict[str, list[str]]:
    """Query id -> the texts of its negatives, by everything that the stage does between its actors."""
    folder = Folder.open(str(place))
    write_records(folder / "examples", examples, RetrievalExample)
    write_records(folder / "corpus", documents, Document)
    known = [document_digests(folder / "corpus", file) for file in (folder / "corpus").files(".parquet")]
    places = folder / "examples", folder / "corpus", folder / "extra"
    corpus = prepared(DATASET, Sources(*places), known, chunk_rows=13)
    files, texts = [], []
    for number, chunk in enumerate(corpus.documents):
        texts += read_texts(chunk.folder, chunk.file, np.arange(chunk.start, chunk.stop))
        files.append(VectorFile(f"{number}.npy", len(texts) - chunk.rows, chunk.rows))
        folder.write_array(files[-1].name, np.stack([vector(text) for text in texts[-chunk.rows :]]))
    parts = [Shard(folder, part, copies=corpus.copies) for part in divided(files, shards)]
    depth = depth_of(corpus, mining)
    found = {}
    for some in corpus.blocks(2):
        queries = Queries.of(corpus, some, mining)
        positive = np.stack([vector(texts[row]) for row in queries.positive_row_P])
        block = QueryBlock(np.stack([vector(one.query) for one in some]), positive, queries.owner_P)
        ranking, positive_P = ranking_of(
            corpus, queries, block, SearchResult.merged([part.search(block, depth) for part in parts], depth), 0.98
        )
        rankings = [ranking]
        if rerank:
            rankings, positive_P = reranked(
                rankings, queries, mining, lambda rows: [texts[row] for row in rows], rerank
            )
        assert positive_P.shape == queries.owner_P.shape
        if mining.relabel_from is not None:
            rankings, answers = relabelled(rankings, mining)
            for one, rows in zip(some, answers, strict=True):
                found[f"answers to {one.id}"] = [texts[row] for row in rows]
                assert list(rows.values()) == rerank([(one.query, texts[row]) for row in rows]).tolist()
        chosen = select_negatives(rankings, queries.seeds(1), mining)
        places = corpus.places(np.array([row for rows in chosen.rows for row in rows], dtype=np.int64))
        assert sum(len(rows) for _, _, rows, _ in places) == sum(map(len, chosen.rows))
        for one, rows in zip(some, chosen.rows, strict=True):
            found[one.id] = [texts[row] for row in rows]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sampling", ["uniform", "softmax", "top"])
def test_neither_order_nor_shards_change_a_negative_and_none_is_a_positive(tmp_path, seed, sampling):
    examples, documents = content()
    mining = MINING.model_copy(update={"sampling": sampling})
    expected = mined(tmp_path / "one", examples, documents, mining=mining)
    generator = np.random.default_rng(seed)
    shuffled = [examples[n] for n in generator.permutation(len(examples))]
    other = [documents[n] for n in generator.permutation(len(documents))]

    found = mined(tmp_path / "other", shuffled, other, shards=seed + 1, mining=mining)

    assert {name: sorted(map(normalized_text, texts)) for name, texts in found.items()} == {
        name: sorted(map(normalized_text, texts)) for name, texts in expected.items()
    }
    assert sum(map(len, expected.values())) > 100
    for one, own in zip(examples, relevant_keys(examples), strict=True):
        negatives = [normalized_text(text) for text in expected[one.id]]
        assert not set(negatives) & own
        # a text that stands twice in the corpus is chosen once
        assert len(set(negatives)) == len(negatives)


def test_a_document_that_is_a_negative_already_is_not_drawn_and_another_one_is(tmp_path):
    examples, documents = content()
    expected = mined(tmp_path / "without", examples, documents)
    fits = {name for name, texts in expected.items() if len(texts) == 3}
    first = {
        name: [Negative(text=text.upper(), origin="given") for text in own[:1]] for name, own in expected.items()
    }
    given = [dataclasses.replace(one, negatives=tuple(first[one.id])) for one in examples]

    found = mined(tmp_path / "with", given, documents)

    assert not [name for name, texts in found.items() if expected[name][:1] and expected[name][0] in texts]
    assert all(found[name][:2] == expected[name][1:] for name in fits)
    assert sum(len(found[name]) == 3 for name in fits) > len(fits) / 2


def test_a_reranker_reads_each_pair_once_and_its_scores_decide(tmp_path):
    examples, documents = content()
    examples = [one for one in examples if one.query != "asked often"]
    asked = []

    def rerank(pairs):
        asked.append(pairs)
        return np.array([0.9 if "TEXT" in text or "text1" in text else 0.2 for _, text in pairs], dtype=np.float32)

    hardest = MINING.model_copy(update={"max_score": 0.5, "sampling": "top"})
    found = mined(tmp_path, examples, documents, rerank=rerank, mining=hardest)

    assert all(len(set(pairs)) == len(pairs) for pairs in asked)
    assert not [text for texts in found.values() for text in texts if "text1" in text]
    assert sum(map(len, found.values())) > 50


def test_the_two_lowest_scores_of_each_owner():
    lowest, second = two_lowest(np.array([0.5, 0.2, 0.9, 0.4], np.float32), np.array([0, 0, 2, 2]), 4)

    assert lowest == pytest.approx([0.2, np.nan, 0.4, np.nan], nan_ok=True)
    assert second == pytest.approx([0.5, np.nan, 0.9, np.nan], nan_ok=True)


GIVEN, WRITTEN, MINED = (Negative(text=one, origin=one, score=0.5) for one in ("given", "synthetic", "mined"))
UNSCORED = dataclasses.replace(GIVEN, score=None)
OWN = {"given": 0.1, "synthetic": 0.2}  # of the judge


@pytest.mark.parametrize(
    ("scores", "negatives", "expected"),
    [
        pytest.param(
            (), (GIVEN, WRITTEN, MINED), ((0.9,), (0.1, 0.2, 0.5)), id="the judge scores what the data did not"
        ),
        pytest.param(
            (0.7,), (GIVEN, WRITTEN, MINED), ((0.7,), (0.5, None, None)), id="the data scored all it gave"
        ),
        pytest.param((0.7,), (UNSCORED, MINED), ((0.9,), (0.1, 0.5)), id="the data scored positives alone"),
        pytest.param((0.7,), (GIVEN, UNSCORED), ((0.9,), (0.1, 0.1)), id="the data scored a part"),
        pytest.param((0.7,), (MINED,), ((0.9,), (0.5,)), id="the data gave no negative"),
        pytest.param((), (), ((0.9,), ()), id="no negative"),
    ],
)
def test_the_scores_of_an_example_are_of_one_judge(scores, negatives, expected):
    example = RetrievalExample(
        id="1", dataset="d", query="q", positives=("p",), negatives=negatives, positive_scores=scores
    )

    found = with_one_judge(example, [0.9], OWN)

    assert (found.positive_scores, tuple(one.score for one in found.negatives)) == expected
    assert [one.text for one in found.negatives] == [one.text for one in negatives]


def test_what_the_reranker_scores_like_a_positive_is_an_answer_and_no_negative(tmp_path):
    """Whatever the other limits: here there are none. A candidate below the floor is none, however low the positive."""
    examples, documents = content()

    def rerank(pairs):
        return np.array(
            [int.from_bytes(vector(text).tobytes()[:2], "big") / 2**16 for _, text in pairs], np.float32
        )

    mining = MINING.model_copy(update={"relabel_from": 0.6, "rank_to": 30, "negatives_per_query": 15})
    found = mined(tmp_path / "relabelled", examples, documents, mining=mining, rerank=rerank)
    plain = mined(
        tmp_path / "plain",
        examples,
        documents,
        mining=mining.model_copy(update={"relabel_from": None}),
        rerank=rerank,
    )

    moved = 0
    for one in examples:
        lowest = min(rerank([("", text)])[0] for text in one.positives)
        answers, negatives = found[f"answers to {one.id}"], found[one.id]
        assert all(rerank([("", text)])[0] >= max(0.6, lowest) for text in answers)
        assert all(rerank([("", text)])[0] < max(0.6, lowest) for text in negatives)
        assert not set(answers) & set(negatives)
        assert {text for text in plain[one.id] if rerank([("", text)])[0] >= max(0.6, lowest)} <= set(answers)
        moved += len(answers)
    assert moved > 20


@pytest.mark.parametrize(
    ("candidates", "negatives", "least", "positives", "left"),
    [
        pytest.param({}, (GIVEN, WRITTEN, MINED), 0.5, ("p",), (GIVEN, WRITTEN, MINED), id="none is one"),
        pytest.param({"c": 0.9}, (GIVEN,), 0.5, ("p", "c"), (GIVEN,), id="a candidate"),
        pytest.param({}, (GIVEN, MINED), 0.1, ("p", "given"), (MINED,), id="a given negative"),
        pytest.param({}, (WRITTEN,), 0.1, ("p",), (WRITTEN,), id="what was written as a negative stays one"),
        pytest.param({"c": 0.9}, (GIVEN, WRITTEN), 0.1, ("p", "given", "c"), (WRITTEN,), id="both"),
    ],
)
def test_answers_become_positives(candidates, negatives, least, positives, left):
    example = RetrievalExample(
        id="1", dataset="d", query="q", positives=("p",), negatives=negatives, positive_scores=(0.7,)
    )

    found, moved = with_answers(example, candidates, OWN, least)

    assert (found.positives, found.negatives) == (positives, left)
    assert list(moved) == list(positives[1:])
    # scores of the data say nothing of the answers
    assert found.positive_scores == ((0.7,) if len(positives) == 1 else ())
