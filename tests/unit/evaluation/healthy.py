"""Healthy runs as their files tell it: a made one, of which parts can be replaced, and one that was run.

``quickstart.json`` is what a run of recipes/quickstart.toml left, without its texts. Its metrics and overlaps were
completed afterwards with figures that are newer than the run, of the same batches and rows.
"""

import json
from pathlib import Path

import numpy as np

from qzhou.evaluation.comparison import Difference, Row
from qzhou.evaluation.diagnosis import Facts
from qzhou.mining.report import Report
from qzhou.synthesis.report import EDGES

SCORES = {  # task -> type, metric, n, and the scores of backbone, stage 1 and stage 2
    "docs_search": ("Retrieval", "ndcg_at_10", 300, 0.5580, 0.6123, 0.6115),
    "docs_package": ("Classification", "accuracy", 498, 0.3767, 0.3884, 0.3901),
    "docs_siblings": ("STS", "cosine_spearman", 1000, 0.5027, 0.5080, 0.5122),
}
MODELS = ("backbone", "stage1", "stage2")
HALF = 0.02  # of an interval
DATASETS = [
    {"name": "docs_search", "reader": "jsonl", "rule": "title_body", "paths": ["x"]},
    {"name": "docs_package", "reader": "jsonl", "rule": "labeled", "paths": ["x"]},
    {"name": "docs_siblings", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"]},
]
TRAINING = {
    "loss": {"false_negative_margin": 0.0},
    "stage1": {"steps": 24, "learning_rate": 5e-5, "batch_size": 64},
    "stage2": {"steps": 60, "learning_rate": 2e-5, "batch_size": 64, "retrieval_share": 0.72},
}


def rows(**changed):
    """Rows of the comparison; a keyword replaces a task's three scores."""
    return [
        Row(task, kind, metric, model, score, n, low=score - HALF, high=score + HALF)
        for task, (kind, metric, n, *scores) in SCORES.items()
        for model, score in zip(MODELS, changed.get(task, scores), strict=True)
    ]


def differences(found):
    """Of paired bootstraps, half as wide as the intervals of the scores."""
    score = {(row.task, row.model): row.score for row in found}
    return [
        Difference(task, model, against, apart, apart - HALF / 2, apart + HALF / 2)
        for task in dict.fromkeys(task for task, _ in score)
        for model, against in (("stage2", "stage1"), ("stage2", "backbone"), ("stage1", "backbone"))
        for apart in [score[task, model] - score[task, against]]
    ]


def step(number, task, dataset, loss, **more):
    return {"step": number, "task": task, "dataset": dataset, "rows": 64, "loss": float(loss), **more}


def retrieval(number, loss, hardness=0.97, masked=0.05):
    return step(number, "retrieval", "docs_search", loss, negative_hardness=hardness, masked_share=masked)


def stage1(seed=0, hardness=0.97, start=2.1, end=1.05):
    noise = np.random.default_rng(seed).normal(1, 0.15, 24)
    losses = np.linspace(start, end, 24) * noise
    return [retrieval(n, loss, hardness + 0.005 * (n % 3), 0.08 - 0.002 * n) for n, loss in enumerate(losses)]


def stage2(seed=0, labels_masked=0.3, agreement=0.72):
    """Sixty steps, the tasks in turn: two of retrieval, one of pairs, one of classification."""
    noise = np.random.default_rng(seed).normal(1, 0.07, 60)
    found = []
    for n in range(60):
        if n % 4 == 2:
            loss = np.linspace(12.8, 10.4, 60)[n] * noise[n]
            agrees = agreement(n) if callable(agreement) else agreement + 0.02 * (n % 3)
            own = step(n, "pair", "docs_siblings", loss, order_agreement=agrees) | {"rows": 128}
        elif n % 4 == 3:
            loss, masked = np.linspace(7.4, 5.9, 60)[n] * noise[n], labels_masked + 0.01 * (n % 5)
            own = step(n, "classification", "docs_package", loss, masked_share=masked)
        else:
            own = retrieval(n, noise[n], masked=0.03)
        found.append(own)
    return found


def mined(positive=0.48, negative=0.30, hidden=(200, 30), spread=1.0, seed=0):
    """A dataset's part of mining/report.json, scores drawn around two means."""
    draw, report = np.random.default_rng(seed), Report()
    report.score("positive", draw.normal(positive, 0.18 * spread, 4000))
    report.score("mined", draw.normal(negative, 0.10 * spread, 6000))
    report.hide(np.ones((1, hidden[1]), dtype=bool), hidden[0])
    return report.content()


def written(rewrite=0.86, positive=0.50, filters=(None, None), records=232, spread=1.0, seed=0):
    """synthesis/report.json, scores drawn around two means."""
    draw = np.random.default_rng(seed)
    drawn = {"rewrite": (rewrite, 0.1), "positive": (positive, 0.18)}
    scores = {kind: draw.normal(middle, spread * width, records) for kind, (middle, width) in drawn.items()}
    histograms = {
        kind: np.histogram(values.clip(EDGES[0], EDGES[-1]), EDGES)[0].tolist() for kind, values in scores.items()
    }
    return {
        "techniques": {"paraphrase": {"made": records, "dropped": {"empty": 50}, "scores": histograms}},
        "score_edges": [round(float(edge), 3) for edge in EDGES],
        "filters": {"min_rewrite_cosine": filters[0], "min_positive_score": filters[1]},
    }


def transformed(overlaps=None, action="report", held_out=3577):
    """transform/report.json; what the quickstart's docstrings share with what is held out of them."""
    found = [overlap("docs_search", 401, 15, 4000)] if overlaps is None else overlaps
    counts = {one["name"]: {"written": {"held_out": held_out}} for one in DATASETS}
    return {"datasets": counts, "contamination": {"action": action, "overlaps": found}}


def overlap(task, examples, copied, compared, asked=0):
    counts = {"examples": examples, "copied": copied, "asked": asked, "compared": compared}
    return {"dataset": "docs_search", "task": task, **counts, "percent": 100 * examples / compared, "shown": []}


HEALTH = {
    model: {"mean_cosine": 0.12, "effective_rank": 253.6, "dimensions": 384, "texts": 2000} for model in MODELS
}


def quickstart(settings):
    """The facts of the run."""
    found = json.loads((Path(__file__).parent / "quickstart.json").read_text("utf-8"))
    found["rows"] = [Row(**row) for row in found["rows"]]
    found["differences"] = [Difference(**one) for one in found["differences"]]
    return Facts(settings=settings, **found)


def healthy(make_recipe, training=None, **changed):
    """The facts of a healthy run; keywords replace parts of them."""
    recipe = make_recipe(datasets=DATASETS, training={**TRAINING, **(training or {})})
    found = changed.pop("rows", rows())
    parts = {
        "settings": recipe.model_dump(mode="json"),
        "rows": found,
        "differences": differences(found),
        "health": HEALTH,
        "steps": {"stage1": stage1(), "stage2": stage2()},
        "mining": {"docs_search": mined()},
        "synthesis": written(),
        "transform": transformed(),
    }
    return Facts(**(parts | changed))
