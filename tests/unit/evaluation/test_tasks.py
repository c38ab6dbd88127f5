"""Held-out examples as mteb tasks, judged by mteb with vectors that are known."""

from types import SimpleNamespace

import mteb
import numpy as np
import pytest

from qzhou.data.languages import script_of
from qzhou.data.prompts import Prompt
from qzhou.data.records import Document, LabeledExample, Negative, PairExample, Qrel, Query, RetrievalExample
from qzhou.errors import DataError
from qzhou.evaluation.judge.local_tasks import (
    classification_task,
    clustering_task,
    example_count,
    pair_classification_task,
    qrels_task,
    reranking_task,
    retrieval_task,
    sts_task,
    why_no_task,
)
from qzhou.evaluation.judge.mteb_models import BM25_MODEL, MtebEncoder
from qzhou.evaluation.judge.mteb_tasks import task_texts, texts_of

TOPICS = ["sorting", "files", "graphs", "dates", "sums", "trees"]


class WordEncoder:
    """Stands in for the encoder: a text's vector is the topic that it names; remembers what it was given."""

    fingerprint, dimensions, max_tokens = "0", len(TOPICS), 8

    def __init__(self):
        self.seen = []

    def encode(self, texts):
        self.seen += texts
        vectors = np.array([[float(topic in text) for topic in TOPICS] for text in texts], dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def score(task, prompts=None, encoder=None):
    model = MtebEncoder(encoder or WordEncoder(), prompts or {}, name="words")
    (result,) = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results
    return result.get_score()


def retrieval(query, *positives):
    return RetrievalExample(id=query, dataset="d", query=query, positives=positives)


ASKED = [retrieval(f"how {topic}", f"{topic} is done so") for topic in TOPICS]


def task_of(examples, max_queries=99, max_documents=99, seed=0):
    return retrieval_task("d", examples, max_queries=max_queries, max_documents=max_documents, seed=seed)


def test_perfect_retrieval_scores_one_and_a_wrong_answer_less():
    swapped = [
        retrieval("how sorting", "files is done so"),
        retrieval("how files", "sorting is done so"),
        *ASKED[2:],
    ]

    assert score(task_of(ASKED)) == pytest.approx(1.0)
    assert score(task_of(swapped)) < 0.9


def test_queries_with_the_same_text_are_one_query_with_all_answers():
    task = task_of([retrieval("How Sorting", "sorting a"), retrieval("how  sorting", "sorting b"), *ASKED[1:]])

    data = task.dataset["default"]["test"]
    assert example_count(task) == 6
    assert sorted(len(found) for found in data["relevant_docs"].values()) == [1, 1, 1, 1, 1, 2]


def test_relevant_documents_stay_when_the_corpus_is_cut():
    task = task_of(ASKED, max_queries=2, max_documents=3)

    data = task.dataset["default"]["test"]
    assert (len(data["queries"]), len(data["corpus"])) == (2, 3)
    relevant = {document for found in data["relevant_docs"].values() for document in found}
    assert relevant <= set(data["corpus"]["id"])


def test_the_sample_does_not_depend_on_the_order_of_the_examples():
    one, other = (task_of(order, max_queries=3).dataset["default"]["test"] for order in (ASKED, ASKED[::-1]))

    assert set(one["queries"]["text"]) == set(other["queries"]["text"])
    assert one["relevant_docs"] == other["relevant_docs"]
    assert set(task_of(ASKED, max_queries=3, seed=1).dataset["default"]["test"]["queries"]["text"]) != set(
        one["queries"]["text"]
    )


def test_a_sts_task_is_the_rank_correlation():
    pairs = [
        PairExample(id=str(n), dataset="d", text_a=f"{TOPICS[n]} x", text_b=f"{TOPICS[n]} {other}", score=grade)
        for n in range(4)
        for other, grade in [("", 2)]
    ] + [
        PairExample(id=f"{n}-", dataset="d", text_a=TOPICS[n], text_b=TOPICS[n + 1], score=0) for n in range(4)
    ]  # fmt: skip

    task = sts_task("d", pairs, max_rows=99, seed=0)

    assert score(task) == pytest.approx(1.0)
    assert example_count(task) == 8


def test_classes_with_too_few_texts_are_left_out_of_the_classification_task():
    texts = [
        LabeledExample(id=f"{topic}{n}", dataset="d", text=f"{topic} {n}", label=topic)
        for topic in TOPICS[:3] for n in range(10)
    ]  # fmt: skip
    rare = [LabeledExample(id="rare", dataset="d", text="dates", label="dates")]

    task = classification_task("d", texts + rare, max_rows=99, seed=0)

    assert set(task.dataset["train"]["label"]) == set(task.dataset["test"]["label"]) == {0, 1, 2}
    assert not set(task.dataset["train"]["text"]) & set(task.dataset["test"]["text"])
    assert score(task) == pytest.approx(1.0)


def test_reranking_orders_each_query_s_own_documents():
    def example(topic, wrong):
        return RetrievalExample(
            id=topic, dataset="d", query=f"how {topic}", positives=(f"{topic} so",), negatives=(negative(wrong),)
        )

    right = [example(topic, f"{TOPICS[n - 1]} not") for n, topic in enumerate(TOPICS)]
    tied = [example(topic, f"{topic} {TOPICS[n - 1]}") for n, topic in enumerate(TOPICS)]

    task = reranking_task("d", [*right, ASKED[0]], max_queries=99, seed=0)

    assert example_count(task) == 6, "the example without negatives is left out"
    assert score(task) == pytest.approx(1.0)
    wrong = [
        RetrievalExample(id="w", dataset="d", query="dates", positives=("sums",), negatives=(negative("dates"),))
    ]
    assert score(reranking_task("d", [*wrong, *tied], max_queries=99, seed=0)) < 1.0


def negative(words):
    return Negative(text=words, origin="given")


def test_pairs_of_two_scores_are_told_apart_by_average_precision():
    pairs = [PairExample(id=f"{n}", dataset="d", text_a=TOPICS[n], text_b=TOPICS[n], score=1) for n in range(4)]
    pairs += [
        PairExample(id=f"{n}-", dataset="d", text_a=TOPICS[n], text_b=TOPICS[n + 1], score=0) for n in range(4)
    ]

    assert score(pair_classification_task("d", pairs, max_rows=99, seed=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_a_sample_of_pairs_has_both_kinds_and_the_highest_score_is_that_of_all(seed):
    """Three of three thousand belong together: most samples of a hundred would hold none."""
    pairs = [
        PairExample(id=f"{n}", dataset="d", text_a=f"{TOPICS[n % 6]} {n}", text_b=TOPICS[n % 5], score=float(n < 3))
        for n in range(3000)
    ]
    labels = pair_classification_task("d", pairs, max_rows=100, seed=seed).dataset["test"]["labels"]
    scores = sts_task("d", pairs, max_rows=100, seed=seed).dataset["test"]["score"]

    assert len(labels) == len(scores) == 100
    assert 1 <= sum(labels) <= 3
    assert set(scores) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["How to sort a list", "数"], "eng-Latn"),
        (["如何用 Python 排序列表", "打开文件"], "cmn-Hans"),
        (["リストを並べ替える方法", "東京都の人口"], "jpn-Jpan"),
        (["목록을 정렬하는 방법"], "kor-Hang"),
        (["как отсортировать список"], "rus-Cyrl"),
        ([], "eng-Latn"),
    ],
)
def test_the_language_of_a_task_is_told_by_its_letters(texts, language):
    assert script_of(texts) == language


def test_bm25_finds_chinese_answers():
    """A clause in Chinese has no spaces: cut as English it is one word, which no other text has."""
    things = ["排序算法", "文件系统", "图形界面", "日期格式", "求和函数", "树形结构"]
    asked = [retrieval(f"请问{one}怎么使用", f"关于{one}的说明在这里可以找到") for one in things]

    task = task_of(asked)
    (result,) = mteb.evaluate(
        mteb.get_model(BM25_MODEL), task, cache=None, show_progress_bar=False, co2_tracker=False
    ).task_results

    assert task.metadata.eval_langs == ["cmn-Hans"]
    assert result.get_score() == pytest.approx(1.0)


def test_texts_of_one_label_lie_in_one_cluster():
    texts = [text(f"{topic}{n}", topic) for topic in TOPICS[:3] for n in range(10)]

    assert score(clustering_task("d", texts, max_rows=99, seed=0)) == pytest.approx(1.0)
    assert example_count(clustering_task("d", texts, max_rows=7, seed=0)) == 7


def pair(number, score):
    return PairExample(id=str(number), dataset="d", text_a="a", text_b="b", score=score)


def text(number, label):
    return LabeledExample(id=str(number), dataset="d", text=str(number), label=label)


@pytest.mark.parametrize(
    ("kind", "examples", "said"),
    [
        ("retrieval", [], "nothing was held out"),
        ("sts", [pair(n, 1.0) for n in range(5)], "all have the score 1"),
        ("classification", [text(n, "a") for n in range(9)] + [text(n, "b") for n in range(3)], "fewer than two"),
        ("clustering", [text(n, "a") for n in range(9)], "all have the same label"),
        ("reranking", ASKED, "negatives of its own"),
        ("sts", [pair(n, n % 2) for n in range(5)], ""),
        ("classification", [text(n, "ab"[n % 2]) for n in range(8)], ""),
        ("retrieval", ASKED, ""),
    ],
)
def test_held_out_examples_that_can_make_no_task_say_why(kind, examples, said):
    reason = why_no_task(examples, kind)

    assert said in reason
    assert bool(reason) is bool(said)


@pytest.mark.parametrize("symmetric", [False, True])
def test_texts_carry_the_prompts_that_training_gives_them(symmetric):
    encoder, prompt = WordEncoder(), Prompt("Find it", symmetric=symmetric)

    score(task_of(ASKED), {"d": prompt}, encoder)

    queries = {prompt.query(example.query) for example in ASKED}
    documents = {prompt.document(example.positives[0]) for example in ASKED}
    assert set(encoder.seen) == queries | documents


def test_a_task_without_prompt_gets_bare_texts():
    encoder = WordEncoder()
    model = MtebEncoder(encoder, {}, name="words")

    vectors = model.encode([{"text": ["sums"]}, {"text": ["trees"]}], task_metadata=SimpleNamespace(name="other"))

    assert encoder.seen == ["sums", "trees"]
    assert vectors.shape == (2, 6)
    assert model.similarity(vectors, vectors).tolist() == [[1, 0], [0, 1]]
    assert model.similarity_pairwise(vectors, vectors).tolist() == [1, 1]


def collection(*, extra=(), **limits):
    """Two queries; two documents answer the first, with different grades, and one stands against it."""
    documents = [Document(id=f"d{n}", text=f"about {topic}") for n, topic in enumerate(TOPICS)]
    documents.append(Document(id="d0", text="a second document of that id"))
    queries = [Query(id="q0", text="sorting files"), Query(id="q1", text="dates")]
    qrels = [("q0", "d0", 1), ("q0", "d1", 2), ("q0", "d3", 0), ("q1", "d3", 1), ("q9", "d2", 1), *extra]
    judged = [Qrel(query_id=query, document_id=document, grade=grade) for query, document, grade in qrels]
    limits = {"max_queries": 10, "max_documents": 100, "seed": 0} | limits
    return qrels_task("judged", (documents, queries, judged), **limits)


def test_graded_judgements_are_scored_over_their_own_corpus():
    data = collection().dataset["default"]["test"]

    assert data["relevant_docs"] == {"q0": {"d0": 1, "d1": 2, "d3": 0}, "q1": {"d3": 1}}
    assert sorted(data["corpus"]["text"]) == sorted(f"about {topic}" for topic in TOPICS)
    assert score(collection()) > 0.9
    assert set(collection(max_documents=1).dataset["default"]["test"]["corpus"]["id"]) == {"d0", "d1", "d3"}
    assert example_count(collection(max_queries=1)) == 1


@pytest.mark.slow
def test_the_texts_of_a_task_are_what_it_judges():
    pairs = [PairExample(id=f"{n}", dataset="d", text_a=f"a{n}", text_b=f"b{n}", score=n) for n in range(2)]

    assert set(texts_of(collection())) == {"sorting files", "dates", "about sorting", "about files", "about dates"}
    assert set(texts_of(sts_task("p", pairs, max_rows=9, seed=0))) == {"a0", "a1", "b0", "b1"}
    with pytest.raises(DataError, match="mteb knows no task and no benchmark 'nope'"):
        task_texts(["nope"])
    assert len(task_texts(["MTEB(eng, v2)"])) > 30
