"""The scores of single examples and what was found for queries, from the predictions that mteb saves of a model."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval

from qzhou.data.records import shortened
from qzhou.evaluation.judge.per_example_scores import Part, PerExampleScores, Statistic
from qzhou.evaluation.judge.task_scores import Answer

# Between mteb's own score, which it rounds, and the score over the examples.
TOLERANCE = 5e-4
MEASURES = {"ndcg_at": "ndcg_cut", "map_at": "map_cut", "recall_at": "recall", "precision_at": "P"}


def per_example_scores_of(task: Any, predictions: Path, score: float) -> PerExampleScores | None:
    """The examples behind a model's score; None where the task's type tells none, or they add up to another score.

    Args:
        task: A task of mteb with its data loaded.
        predictions: The folder in which mteb saved the model's predictions.
        score: The main score that mteb computed.
    """
    path = predictions / f"{task.metadata.name}_predictions.json"
    if task.metadata.type not in READERS or not path.exists():
        return None
    saved = json.loads(path.read_text("utf-8"))
    for statistic, reader in READERS[task.metadata.type]:
        found = _read(task, saved, statistic, reader)
        # a score that is not a number differs from every other, so the comparison must hold to be accepted
        if found is not None and abs(found.score - score) <= TOLERANCE:
            return found
    return None


def answers_of(task: Any, predictions: Path) -> tuple[Answer, ...]:
    """What a model found first for each query of a retrieval task with one subset; empty for other tasks.

    Args:
        task: A task of mteb with its data loaded.
        predictions: The folder in which mteb saved the model's predictions.
    """
    path = predictions / f"{task.metadata.name}_predictions.json"
    if task.metadata.type != "Retrieval" or not path.exists():
        return ()
    ((split, data),) = task.dataset["default"].items()
    found = json.loads(path.read_text("utf-8"))["default"][split]
    text_of = {one["id"]: one["text"] for one in data["corpus"]}
    answers = []
    for query in data["queries"]:
        grades, scores = data["relevant_docs"][query["id"]], found.get(query["id"], {})
        first, best = (max(one, key=lambda document: one[document]) if one else "" for one in (scores, grades))
        texts = query["text"], text_of.get(first, ""), text_of.get(best, "")
        answers.append(Answer(query["id"], *map(shortened, texts)))
    return tuple(answers)


def _read(
    task: Any, saved: Mapping[str, Any], statistic: Statistic, reader: Callable[..., Part | None]
) -> PerExampleScores | None:
    parts = []
    for subset, splits in saved.items():
        if subset == "mteb_model_meta":
            continue
        for split, predicted in splits.items():
            data = task.dataset.get(subset, task.dataset)[split]
            part = reader(f"{subset}/{split}", task, data, predicted)
            if part is None:
                return None
            parts.append(part)
    return PerExampleScores(statistic, tuple(parts), str(task.metadata.dataset["revision"])) if parts else None


def _of_retrieval(name: str, task: Any, data: Any, predicted: Mapping[str, Mapping[str, float]]) -> Part | None:
    """The main metric of each query, as trec_eval computes it."""
    metric, _, depth = task.metadata.main_score.rpartition("_")
    if metric not in MEASURES:
        return None
    measure = f"{MEASURES[metric]}.{depth}"
    qrels = {query: dict(relevant) for query, relevant in data["relevant_docs"].items()}
    scores = {query: dict(found) for query, found in predicted.items() if query in qrels}
    if task.ignore_identical_ids:
        for query, found in scores.items():
            found.pop(query, None)
    scored = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(scores)
    queries = sorted(scored)
    values = tuple(scored[query][measure.replace(".", "_")] for query in queries)
    return Part(name, values, ids=tuple(queries))


def _of_similarity(name: str, task: Any, data: Any, predicted: Mapping[str, Any], *, kind: str = "") -> Part | None:
    """The likeness of each pair, beside its gold score or label.

    ``kind`` names the measure; by default the one of the main score. Distances become
    likenesses by their sign.
    """
    column = getattr(task, "label_column_name", "score")
    gold = data[column] if column in data.column_names else data["score"]
    asked = kind or ("cosine_scores" if task.metadata.main_score.startswith("cosine") else "similarity_scores")
    values = predicted.get(asked) or (None if kind else predicted["cosine_scores"])
    if values is None:
        return None
    sign = -1.0 if asked.endswith("distances") else 1.0
    return Part(name, tuple(sign * float(one) for one in values), gold=tuple(map(float, gold)))


def _of_classification(name: str, task: Any, data: Any, predicted: Any) -> Part | None:
    """For each text, the share of mteb's experiments in which it got its label."""
    if task.metadata.main_score != "accuracy" or task.is_cross_validation:
        return None
    gold = np.asarray(data[task.label_column_name])
    right = np.mean([np.asarray(one) == gold for one in predicted], axis=0)
    return Part(name, tuple(map(float, right)))


# mteb's score of pair classification is the highest of these measures, by a hair in the last digits
PAIR_MEASURES = ("similarity_scores", "cosine_scores", "dot_scores", "euclidean_distances", "manhattan_distances")
# Type of task -> how its examples may make up its score; the first that does is taken.
READERS: dict[str, list[tuple[Statistic, Callable[..., Part | None]]]] = {
    "Retrieval": [("mean", _of_retrieval)],
    "Reranking": [("mean", _of_retrieval)],
    "STS": [("spearman", _of_similarity)],
    "PairClassification": [
        ("average_precision", partial(_of_similarity, kind=measure)) for measure in PAIR_MEASURES
    ],
    "Classification": [("mean", _of_classification)],
}
