"""Held-out examples as mteb tasks: mteb's own code scores models on the user's data."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import abstasks
from mteb.abstasks.task_metadata import TaskMetadata

from qzhou.config.dataset import TaskKind
from qzhou.data.languages import script_of
from qzhou.data.records import (
    Document,
    LabeledExample,
    PairExample,
    Qrel,
    Query,
    RetrievalExample,
    normalized_text,
    stable_id,
)

SPLIT = "test"
TEXTS_PER_CLASS = 4  # two to train mteb's classifier, two to test it
# mteb's name of a type of task -> its class and its main score
TASK_TYPES: Mapping[str, tuple[type, str]] = {
    "Retrieval": (abstasks.AbsTaskRetrieval, "ndcg_at_10"),
    "Reranking": (abstasks.AbsTaskRetrieval, "map_at_1000"),
    "Classification": (abstasks.AbsTaskClassification, "accuracy"),
    "Clustering": (abstasks.AbsTaskClustering, "v_measure"),
    "STS": (abstasks.AbsTaskSTS, "cosine_spearman"),
    "PairClassification": (abstasks.AbsTaskPairClassification, "max_ap"),
}


def retrieval_task(
    name: str,
    examples: Sequence[RetrievalExample],
    others: Iterable[str] = (),
    *,
    max_queries: int,
    max_documents: int,
    seed: int,
) -> Any:
    """Queries that must find their positives among the positives of all examples, and among ``others``.

    Queries with the same text are one query with all their positives. A hash draws the
    sample of queries. Relevant documents always stay, and others fill the corpus up to
    ``max_documents``.
    """
    relevant_of: dict[str, dict[str, str]] = {}
    query_text: dict[str, str] = {}
    for example in examples:
        query = normalized_text(example.query)
        query_text.setdefault(query, example.query)
        own = relevant_of.setdefault(query, {})
        own.update({normalized_text(positive): positive for positive in example.positives})
    queries = _sampled(list(relevant_of), max_queries, seed)
    corpus = {key: text for query in queries for key, text in relevant_of[query].items()}
    further = {key: text for own in relevant_of.values() for key, text in own.items()}
    further |= {normalized_text(text): text for text in others}
    filled = _sampled([key for key in further if key not in corpus], max(0, max_documents - len(corpus)), seed)
    corpus |= {key: further[key] for key in filled}
    qrels = {stable_id("q", query): {stable_id("d", key): 1 for key in relevant_of[query]} for query in queries}
    return _retrieval(
        name,
        {stable_id("d", key): text for key, text in corpus.items()},
        {stable_id("q", query): query_text[query] for query in queries},
        qrels,
    )


def qrels_task(
    name: str,
    collection: tuple[Iterable[Document], Sequence[Query], Iterable[Qrel]],
    *,
    max_queries: int,
    max_documents: int,
    seed: int,
) -> Any:
    """Queries with graded relevance over the corpus of their own collection of documents, queries and qrels.

    A hash draws the sample of queries. Every graded document of a sampled query stays, and
    others fill the corpus up to ``max_documents``. Of documents with the same id the first
    counts.
    """
    documents, queries, qrels = collection
    query_text = {query.id: query.text for query in queries}
    sample = _sampled(list(query_text), max_queries, seed)
    grades: dict[str, dict[str, int]] = {query: {} for query in sample}
    for one in qrels:
        if one.query_id in grades:
            grades[one.query_id][one.document_id] = one.grade
    graded = {document for own in grades.values() for document in own}
    corpus: dict[str, str] = {}
    for document in documents:
        corpus.setdefault(document.id, document.text)
    others = [one for one in corpus if one not in graded]
    kept = graded | set(_sampled(others, max(0, max_documents - len(graded)), seed))
    chosen = {one: text for one, text in corpus.items() if one in kept}
    return _retrieval(name, chosen, {one: query_text[one] for one in grades}, grades)


def reranking_task(name: str, examples: Sequence[RetrievalExample], *, max_queries: int, seed: int) -> Any:
    """Queries whose own positives must rank above their own negatives; examples without negatives are left out."""
    by_id = {example.id: example for example in examples if example.negatives}
    corpus: dict[str, str] = {}
    ranked: dict[str, list[str]] = {}
    grades: dict[str, dict[str, int]] = {}
    queries: dict[str, str] = {}
    for one in _sampled(list(by_id), max_queries, seed):
        example = by_id[one]
        positives = {stable_id("d", normalized_text(text)): text for text in example.positives}
        negatives = {stable_id("d", normalized_text(each.text)): each.text for each in example.negatives}
        corpus |= negatives | positives
        ranked[one] = sorted(negatives | positives)
        grades[one] = {document: int(document in positives) for document in ranked[one]}
        queries[one] = example.query
    return _retrieval(name, corpus, queries, grades, ranked)


def _retrieval(
    name: str,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Any],
    ranked: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """A retrieval task of texts and grades by id; reranking if queries have candidates."""
    texts = [*corpus.values(), *queries.values()]
    task = _task(name, "Reranking" if ranked else "Retrieval", texts, repr(sorted(qrels.items())))
    data = {
        "corpus": Dataset.from_list([{"id": one, "title": "", "text": text} for one, text in corpus.items()]),
        "queries": Dataset.from_list([{"id": one, "text": text} for one, text in queries.items()]),
        "relevant_docs": qrels,
        "top_ranked": ranked,
    }
    task.dataset = {"default": {SPLIT: data}}
    return task


def sts_task(name: str, examples: Sequence[PairExample], *, max_rows: int, seed: int) -> Any:
    """The Spearman correlation of cosines and ordinal scores."""
    rows = _sampled_pairs(examples, max_rows, seed)
    scores = [row.score for row in rows]
    task = _pair_task(name, "STS", rows, score=scores)
    task.min_score, task.max_score = min(scores), max(scores)
    return task


def pair_classification_task(name: str, examples: Sequence[PairExample], *, max_rows: int, seed: int) -> Any:
    """The average precision of cosines for the pairs with the highest score."""
    rows = _sampled_pairs(examples, max_rows, seed)
    best = max(example.score for example in examples)
    return _pair_task(name, "PairClassification", rows, labels=[int(row.score == best) for row in rows])


def _pair_task(name: str, task_type: str, rows: Sequence[PairExample], **gold: Sequence[float]) -> Any:
    task = _task(name, task_type, [f"{row.text_a}\x00{row.text_b}\x00{row.score}" for row in rows])
    columns = {"sentence1": [row.text_a for row in rows], "sentence2": [row.text_b for row in rows], **gold}
    task.dataset = DatasetDict({SPLIT: Dataset.from_dict(columns)})
    return task


def _sampled_pairs(examples: Sequence[PairExample], max_rows: int, seed: int) -> list[PairExample]:
    """A sample drawn by hash that has pairs with the highest score and pairs without it, where there are any."""
    by_id = {example.id: example for example in examples}
    order = [by_id[one] for one in _sampled(list(by_id), len(by_id), seed)]
    best = max(example.score for example in examples)
    rows = order[:max_rows]
    if len({row.score == best for row in rows}) < 2:
        missing = (one for one in order[max_rows:] if (one.score == best) != (rows[0].score == best))
        rows[-1] = next(missing, rows[-1])
    return rows


def clustering_task(name: str, examples: Sequence[LabeledExample], *, max_rows: int, seed: int) -> Any:
    """The V-measure of k-means clusters of the texts against their labels."""
    rows = _sampled_texts(examples, max_rows, seed)
    task = _task(name, "Clustering", list(map(_label_text, rows)))
    columns = {"sentences": [row.text for row in rows], "labels": [row.label for row in rows]}
    task.dataset = DatasetDict({SPLIT: Dataset.from_dict(columns)})
    task.max_fraction_of_documents_to_embed, task.max_document_to_embed = None, len(rows)
    return task


def classification_task(name: str, examples: Sequence[LabeledExample], *, max_rows: int, seed: int) -> Any:
    """The accuracy of a logistic regression on a few held-out texts per class, tested on the other held-out texts.

    Classes with fewer than ``TEXTS_PER_CLASS`` held-out texts are left out.
    """
    class_sizes = Counter(example.label for example in examples)
    usable = [one for one in examples if class_sizes[one.label] >= TEXTS_PER_CLASS]
    rows = _sampled_texts(usable, max_rows, seed)
    numbers = {label: number for number, label in enumerate(sorted({row.label for row in rows}))}
    seen: dict[str, int] = defaultdict(int)
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in rows:
        seen[row.label] += 1
        halves[seen[row.label] % 2].append({"text": row.text, "label": numbers[row.label]})
    task = _task(name, "Classification", list(map(_label_text, rows)))
    tested, trained = map(Dataset.from_list, halves)
    task.dataset = DatasetDict(train=trained, **{SPLIT: tested})
    return task


def _label_text(row: LabeledExample) -> str:
    return f"{row.text}\x00{row.label}"


def _sampled_texts(examples: Sequence[LabeledExample], max_rows: int, seed: int) -> list[LabeledExample]:
    by_id = {example.id: example for example in examples}
    return [by_id[one] for one in _sampled(list(by_id), max_rows, seed)]


def why_no_task(examples: Sequence[Any], kind: TaskKind) -> str:
    """Why a dataset's held-out examples cannot make a task of a kind; empty if they can."""
    if not examples:
        return "nothing was held out"
    if kind == "reranking" and not any(one.negatives for one in examples):
        return "none of its held-out examples has negatives of its own, which leaves nothing to rank"
    if kind == "clustering" and len({one.label for one in examples}) < 2:
        return "its held-out texts all have the same label"
    if isinstance(examples[0], PairExample) and len({one.score for one in examples}) < 2:
        same = f"its {len(examples)} held-out pairs all have the score {examples[0].score:g}"
        return f"{same}, which leaves nothing to rank"
    if kind == "classification":
        class_sizes = Counter(one.label for one in examples)
        if sum(size >= TEXTS_PER_CLASS for size in class_sizes.values()) < 2:
            largest = max(class_sizes.values())
            return f"fewer than two classes have {TEXTS_PER_CLASS} held-out texts (largest: {largest})"
    return ""


def example_count(task: Any) -> int:
    """How many queries, pairs or texts a loaded task's score averages, in all subsets."""
    splits = task.metadata.eval_splits
    has_splits = any(split in task.dataset for split in splits)
    subsets = [task.dataset] if has_splits else task.dataset.values()
    found = [subset[split] for subset in subsets for split in splits if split in subset]
    return sum(len(one["queries"] if isinstance(one, dict) else one) for one in found)


def _task(name: str, task_type: str, texts: Sequence[str], grades: str = "") -> Any:
    """An mteb task with data set by the caller; its revision digests texts and grades."""
    content = "\x00".join([*texts, grades]).encode("utf-8", "surrogatepass")
    revision = hashlib.sha256(content).hexdigest()[:16]
    kind, main_score = TASK_TYPES[task_type]
    metadata = TaskMetadata(
        name=name,
        description=f"Held-out examples of the dataset '{name}'.",
        type=task_type,
        modalities=["text"],
        category="t2t",
        eval_splits=[SPLIT],
        # BM25 cuts words by it: Chinese and Japanese have no spaces between them
        eval_langs=[script_of(texts)],
        main_score=main_score,
        dataset={"path": f"local/{name}", "revision": revision},
    )
    task = type(f"Local{task_type}", (kind,), {"metadata": metadata})()
    task.data_loaded = True
    return task


def _sampled(keys: Sequence[str], count: int, seed: int) -> list[str]:
    """The ``count`` keys with the smallest hash, in the order of the hash, whatever order they came in."""
    return sorted(keys, key=lambda key: stable_id("sample", seed, key))[:count]
