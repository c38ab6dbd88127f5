"""Held-out examples as mteb task objects: judged by mteb's own code, on one's own data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from qzhou.config.dataset import TaskKind
from qzhou.data.languages import script_of
from qzhou.data.records import (
    Document,
    Example,
    LabeledExample,
    PairExample,
    Qrel,
    Query,
    RetrievalExample,
    normalized_text,
    stable_id,
)

SPLIT = "test"
TEXTS_PER_CLASS = 4  # two to train the judge's classifier on, two to test it
MAIN_SCORES = {
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "STS": "cosine_spearman",
    "PairClassification": "max_ap",
}


def retrieval_task(
    name: str,
    examples: Sequence[RetrievalExample],
    *,
    max_queries: int,
    max_documents: int,
    seed: int,
) -> Any:
    """Queries to find their positives among the positives of all examples.

    Queries with the same text are one query with all their positives. The sample of queries is drawn by
    hash, and the corpus is filled with further documents up to ``max_documents``; relevant documents
    always stay.
    """
    answers: dict[str, dict[str, str]] = {}
    text_of: dict[str, str] = {}
    for example in examples:
        text_of.setdefault(normalized_text(example.query), example.query)
        own = answers.setdefault(normalized_text(example.query), {})
        own.update({normalized_text(positive): positive for positive in example.positives})
    asked = _sampled(list(answers), max_queries, seed)
    relevant = {key: text for query in asked for key, text in answers[query].items()}
    others = {
        key: text for own in answers.values() for key, text in own.items() if key not in relevant
    }
    filled = _sampled(list(others), max(0, max_documents - len(relevant)), seed)
    corpus = relevant | {key: others[key] for key in filled}
    return _retrieval(
        name,
        {stable_id("d", key): text for key, text in corpus.items()},
        {stable_id("q", query): text_of[query] for query in asked},
        {
            stable_id("q", query): {stable_id("d", key): 1 for key in answers[query]}
            for query in asked
        },
    )


def judged_task(
    name: str,
    documents: Iterable[Document],
    queries: Sequence[Query],
    qrels: Iterable[Qrel],
    *,
    max_queries: int,
    max_documents: int,
    seed: int,
) -> Any:
    """Queries with graded judgements over a corpus of their own: the collection as its makers judged it.

    The sample of queries is drawn by hash; every judged document of a sampled query stays, and the corpus is filled
    with others up to ``max_documents``. Of documents with the same id the first counts.
    """
    text_of = {query.id: query.text for query in queries}
    grades: dict[str, dict[str, int]] = {
        one: {} for one in _sampled(list(text_of), max_queries, seed)
    }
    for judgement in qrels:
        if judgement.query_id in grades:
            grades[judgement.query_id][judgement.document_id] = judgement.grade
    judged = {document for own in grades.values() for document in own}
    corpus: dict[str, str] = {}
    for document in documents:
        corpus.setdefault(document.id, document.text)
    others = [one for one in corpus if one not in judged]
    kept = judged | set(_sampled(others, max(0, max_documents - len(judged)), seed))
    chosen = {one: text for one, text in corpus.items() if one in kept}
    return _retrieval(name, chosen, {one: text_of[one] for one in grades}, grades)


def reranking_task(
    name: str, examples: Sequence[RetrievalExample], *, max_queries: int, seed: int
) -> Any:
    """Queries whose own positives are to be ranked above their own negatives.

    Examples without negatives say nothing here and are left out; the sample of the others is drawn by hash.
    """
    by_id = {example.id: example for example in examples if example.negatives}
    corpus: dict[str, str] = {}
    ranked: dict[str, list[str]] = {}
    grades: dict[str, dict[str, int]] = {}
    queries: dict[str, str] = {}
    for one in _sampled(list(by_id), max_queries, seed):
        example = by_id[one]
        answers = {stable_id("d", normalized_text(text)): text for text in example.positives}
        others = {
            stable_id("d", normalized_text(negative.text)): negative.text
            for negative in example.negatives
        }
        corpus |= others | answers
        ranked[one] = sorted(others | answers)
        grades[one] = {document: int(document in answers) for document in ranked[one]}
        queries[one] = example.query
    return _retrieval(name, corpus, queries, grades, ranked)


def _retrieval(
    name: str,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Any],
    ranked: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """A retrieval task of texts and grades by id; with candidates for each query, reranking."""
    kind = "Reranking" if ranked else "Retrieval"
    judgements = repr(sorted(qrels.items()))
    task = _task(AbsTaskRetrieval, name, kind, [*corpus.values(), *queries.values()], judgements)
    documents = [{"id": one, "title": "", "text": text} for one, text in corpus.items()]
    task.dataset = {
        "default": {
            SPLIT: {
                "corpus": datasets.Dataset.from_list(documents),
                "queries": datasets.Dataset.from_list(
                    [{"id": one, "text": text} for one, text in queries.items()]
                ),
                "relevant_docs": qrels,
                "top_ranked": ranked,
            }
        }
    }
    return task


def sts_task(name: str, examples: Sequence[PairExample], *, max_rows: int, seed: int) -> Any:
    """Spearman correlation of cosines and ordinal scores."""
    rows = _pairs(examples, max_rows, seed)
    task = _task(
        AbsTaskSTS, name, "STS", [f"{row.text_a}\x00{row.text_b}\x00{row.score}" for row in rows]
    )
    scores = [row.score for row in rows]
    task.min_score, task.max_score = min(scores), max(scores)
    columns = [
        {"sentence1": row.text_a, "sentence2": row.text_b, "score": row.score} for row in rows
    ]
    task.dataset = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(columns)})
    return task


def pair_classification_task(
    name: str, examples: Sequence[PairExample], *, max_rows: int, seed: int
) -> Any:
    """Average precision of cosines for pairs that belong together: those with the highest of the scores."""
    rows = _pairs(examples, max_rows, seed)
    task = _task(
        AbsTaskPairClassification,
        name,
        "PairClassification",
        [f"{row.text_a}\x00{row.text_b}\x00{row.score}" for row in rows],
    )
    best = max(example.score for example in examples)
    columns = [
        {"sentence1": row.text_a, "sentence2": row.text_b, "labels": int(row.score == best)}
        for row in rows
    ]
    task.dataset = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(columns)})
    return task


def _pairs(examples: Sequence[PairExample], max_rows: int, seed: int) -> list[PairExample]:
    """A sample by hash; where all of it has one score or none the highest, the last gives way to one that differs."""
    by_id = {example.id: example for example in examples}
    order = _sampled(list(by_id), len(by_id), seed)
    rows, best = (
        [by_id[one] for one in order[:max_rows]],
        max(example.score for example in examples),
    )
    if len({row.score == best for row in rows}) < 2:
        missing = (
            by_id[one]
            for one in order[max_rows:]
            if (by_id[one].score == best) != (rows[0].score == best)
        )
        rows[-1:] = [next(missing, rows[-1])]
    return rows


def clustering_task(
    name: str, examples: Sequence[LabeledExample], *, max_rows: int, seed: int
) -> Any:
    """V-measure of k-means clusters of the texts against their labels."""
    by_id = {example.id: example for example in examples}
    rows = [by_id[one] for one in _sampled(list(by_id), max_rows, seed)]
    task = _task(
        AbsTaskClustering, name, "Clustering", [f"{row.text}\x00{row.label}" for row in rows]
    )
    columns = [{"sentences": row.text, "labels": row.label} for row in rows]
    task.dataset = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(columns)})
    task.max_fraction_of_documents_to_embed, task.max_document_to_embed = None, len(rows)
    return task


def classification_task(
    name: str, examples: Sequence[LabeledExample], *, max_rows: int, seed: int
) -> Any:
    """Accuracy of a logistic regression on a few held-out texts per class, tested on the other held-out texts.

    Classes with fewer than ``TEXTS_PER_CLASS`` held-out texts are left out.
    """
    sizes_of = Counter(example.label for example in examples)
    by_id = {
        example.id: example for example in examples if sizes_of[example.label] >= TEXTS_PER_CLASS
    }
    kept = [by_id[one] for one in _sampled(list(by_id), max_rows, seed)]
    number_of = {label: number for number, label in enumerate(sorted({one.label for one in kept}))}
    seen: dict[str, int] = {}
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for one in kept:
        seen[one.label] = seen.get(one.label, 0) + 1
        halves[seen[one.label] % 2].append({"text": one.text, "label": number_of[one.label]})
    task = _task(
        AbsTaskClassification,
        name,
        "Classification",
        [f"{one.text}\x00{one.label}" for one in kept],
    )
    parts = {
        "train": datasets.Dataset.from_list(halves[1]),
        SPLIT: datasets.Dataset.from_list(halves[0]),
    }
    task.dataset = datasets.DatasetDict(parts)
    return task


def not_judgeable(examples: Sequence[Example], kind: TaskKind) -> str:
    """Why held-out examples of one dataset can make no task of a kind; empty where they can."""
    first = examples[0] if examples else None
    if first is None:
        return "nothing was held out"
    if kind == "reranking" and not any(
        one.negatives for one in examples if isinstance(one, RetrievalExample)
    ):
        return (
            "none of its held-out examples has negatives of its own, which leaves nothing to rank"
        )
    if (
        kind == "clustering"
        and len({one.label for one in examples if isinstance(one, LabeledExample)}) < 2
    ):
        return "its held-out texts all have the same label"
    if (
        isinstance(first, PairExample)
        and len({one.score for one in examples if isinstance(one, PairExample)}) < 2
    ):
        return f"its {len(examples)} held-out pairs all have the score {first.score:g}, which leaves nothing to rank"
    if kind == "classification":
        sizes_of = Counter(one.label for one in examples if isinstance(one, LabeledExample))
        if sum(size >= TEXTS_PER_CLASS for size in sizes_of.values()) < 2:
            return f"fewer than two classes have {TEXTS_PER_CLASS} held-out texts (largest: {max(sizes_of.values())})"
    return ""


def sizes(task: Any) -> int:
    """What the score is a mean over: queries, pairs or test texts, of all subsets."""
    splits = task.metadata.eval_splits
    subsets = (
        [task.dataset] if any(split in task.dataset for split in splits) else task.dataset.values()
    )
    found = [subset[split] for subset in subsets for split in splits if split in subset]
    return sum(len(one["queries"] if isinstance(one, dict) else one) for one in found)


def _task(kind: type, name: str, task_type: str, texts: Sequence[str], further: str = "") -> Any:
    """An mteb task whose data is here already; its revision is a digest of the texts and what else is judged by."""
    revision = hashlib.sha256(
        "\x00".join([*texts, further]).encode("utf-8", "surrogatepass")
    ).hexdigest()[:16]
    metadata = TaskMetadata(
        name=name,
        description=f"Held-out examples of the dataset '{name}'.",
        type=task_type,
        modalities=["text"],
        category="t2t",
        eval_splits=[SPLIT],
        # BM25 cuts words by it: Chinese and Japanese have no spaces between them
        eval_langs=[script_of(texts)],
        main_score=MAIN_SCORES[task_type],
        dataset={"path": f"local/{name}", "revision": revision},
    )
    task = type(f"Local{task_type}", (kind,), {"metadata": metadata})()
    task.data_loaded = True
    return task


def _sampled(keys: Sequence[str], count: int, seed: int) -> list[str]:
    """The ``count`` keys with the smallest hash, in that order: the same whatever order they came in."""
    return sorted(keys, key=lambda key: stable_id("sample", seed, key))[:count]
