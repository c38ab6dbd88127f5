"""The items of a score, from what mteb saved of a model's predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval

from qzhou.evaluation.items import Items, Part, Statistic

TOLERANCE = 5e-4  # between mteb's own score, which it rounds, and that of the items
MEASURES = {"ndcg_at": "ndcg_cut", "map_at": "map_cut", "recall_at": "recall", "precision_at": "P"}


def items_of(task: Any, predictions: Path, score: float) -> Items | None:
    """The items behind a model's score on a loaded task; None where its kind has none that we know.

    They are taken only where they add up to the score that mteb computed.

    Args:
        task: Of mteb, its data loaded.
        predictions: The folder in which mteb saved the model's predictions.
        score: The main score.
    """
    readers: dict[str, tuple[Statistic, Callable[..., Part | None]]] = {
        "Retrieval": ("mean", _of_retrieval),
        "Reranking": ("mean", _of_retrieval),
        "STS": ("spearman", _of_similarity),
        "PairClassification": ("average_precision", _of_similarity),
        "Classification": ("mean", _of_classification),
    }
    path = predictions / f"{task.metadata.name}_predictions.json"
    if task.metadata.type not in readers or not path.exists():
        return None
    statistic, reader = readers[task.metadata.type]
    saved = json.loads(path.read_text("utf-8"))
    parts = [
        reader(f"{subset}/{split}", task, _data(task, subset, split), predicted)
        for subset, splits in saved.items()
        if subset != "mteb_model_meta"
        for split, predicted in splits.items()
    ]
    revision = str(task.metadata.dataset["revision"])
    found = Items(statistic, tuple(part for part in parts if part is not None), revision)
    if not parts or len(found.parts) < len(parts) or not abs(found.score - score) <= TOLERANCE:
        return None
    return found


def _data(task: Any, subset: str, split: str) -> Any:
    return task.dataset.get(subset, task.dataset)[split]


def _of_retrieval(
    name: str, task: Any, data: Any, predicted: Mapping[str, Mapping[str, float]]
) -> Part | None:
    """The main metric of each query, as trec_eval computes it."""
    kind, _, depth = task.metadata.main_score.rpartition("_")
    if kind not in MEASURES:
        return None
    measure = f"{MEASURES[kind]}.{depth}" if kind != "map_at" else f"map_cut.{depth}"
    qrels = {query: dict(judged) for query, judged in data["relevant_docs"].items()}
    scores = {query: dict(found) for query, found in predicted.items() if query in qrels}
    if task.ignore_identical_ids:
        for query, found in scores.items():
            found.pop(query, None)
    judged = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(scores)
    queries = sorted(judged)
    return Part(
        name, tuple(judged[one][measure.replace(".", "_")] for one in queries), ids=tuple(queries)
    )


def _of_similarity(name: str, task: Any, data: Any, predicted: Mapping[str, Any]) -> Part:
    """The cosine of each pair, beside its gold score or label."""
    column = getattr(task, "label_column_name", "score")
    gold = data[column] if column in data.column_names else data["score"]
    kind = "cosine_scores" if task.metadata.main_score.startswith("cosine") else "similarity_scores"
    values = predicted.get(kind) or predicted["cosine_scores"]
    return Part(name, tuple(map(float, values)), gold=tuple(map(float, gold)))


def _of_classification(name: str, task: Any, data: Any, predicted: Any) -> Part | None:
    """In how many of mteb's experiments each text got its label."""
    if task.metadata.main_score != "accuracy" or task.is_cross_validation:
        return None
    gold = np.asarray(data[task.label_column_name])
    right = np.mean([np.asarray(one) == gold for one in predicted], axis=0)
    return Part(name, tuple(map(float, right)))
