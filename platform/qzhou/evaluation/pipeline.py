"""The evaluation stage on Ray: one task a model, all at the same time."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import mteb
import ray

from qzhou.cluster import session
from qzhou.dataset import Dataset
from qzhou.encoder import load_encoder
from qzhou.evaluation.comparison import MODELS, ModelName, Row, table
from qzhou.evaluation.models import MtebEncoder, bm25
from qzhou.evaluation.report import write_report
from qzhou.evaluation.tasks import classification_task, judged_task, not_judgeable, pair_task, retrieval_task, sizes
from qzhou.progress import progress
from qzhou.recipe import Recipe
from qzhou.records import (
    EXAMPLE_TYPES,
    Document,
    LabeledExample,
    Manifest,
    PairExample,
    Qrel,
    Query,
    RetrievalExample,
)
from qzhou.runs import Run
from qzhou.storage import Folder, read_records

NOT_JUDGED = "not judged"
NOTHING_HELD_OUT = (
    "evaluate: there is nothing to judge, because no dataset holds out enough. Give one a held_out_fraction above 0."
)

Results = Mapping[str, dict[str, Any]]  # task -> its main score and mteb's own result, or why it was not judged


def evaluate(recipe: Recipe) -> Manifest:
    """Judge BM25, the untouched backbone and both stages on what was held out, and write the report.

    Raises:
        DataError: Training has not finished.
    """
    run = Run.open(recipe)
    manifest = run.stage(
        "evaluate",
        lambda folder: _work(run, folder),
        settings={
            "evaluation": recipe.evaluation.model_dump(),
            "model": recipe.model.model_dump(),
            "prompts": {dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets},
            "seed": recipe.run.seed,
        },
        inputs={
            "transform": run.manifest("transform").fingerprint,
            "stage2": run.manifest("train/stage2").fingerprint,
        },
        rooms=("evaluation", "encoder"),
    )
    rows = [Row(**row) for row in (run.folder / "evaluate").read_json("comparison.json")]
    print(f"\n{table(rows)}\n" if rows else NOTHING_HELD_OUT, flush=True)
    return manifest


def _work(run: Run, folder: Folder) -> dict[str, int]:
    results = folder / "results"
    models = MODELS if run.recipe.evaluation.bm25 else MODELS[1:]
    missing = [model for model in models if not results.exists(f"{model}.json")]
    with session(), progress("evaluate", total=len(missing), unit="models") as bar:
        judge = ray.remote(num_cpus=1, num_gpus=1 if run.recipe.cluster.gpu else 0)(_judge)
        running = {judge.remote(run.recipe, run.folder.uri, model): model for model in missing}
        while running:
            done, _ = ray.wait(list(running))
            model = running.pop(done[0])
            results.write_json(f"{model}.json", ray.get(done[0]))  # a restart judges only what is missing
            bar.advance(1, model)
            print(f"evaluate: {model} judged", flush=True)
    found = {model: results.read_json(f"{model}.json") for model in models}
    for task, result in found["backbone"].items():
        if NOT_JUDGED in result:
            print(f"evaluate: {task} is not judged: {result[NOT_JUDGED]}", flush=True)
    rows = [row for model in models for row in rows_of(model, found[model])]
    rows.sort(key=lambda row: (row.task, MODELS.index(row.model)))
    folder.write_json("comparison.json", [dataclasses.asdict(row) for row in rows])
    write_report(run, rows)
    return {"scores": len(rows)}


def rows_of(model: ModelName, results: Results) -> list[Row]:
    """The main score of each task that was judged."""
    return [
        Row(name, found["type"], found["metric"], model, round(float(found["score"]), 6), found["n"])
        for name, found in results.items()
        if NOT_JUDGED not in found
    ]


def local_tasks(recipe: Recipe, run_folder: Folder) -> tuple[list[Any], dict[str, str]]:
    """One mteb task per dataset that holds out examples; and dataset -> why it makes none."""
    tasks: list[Any] = []
    refused: dict[str, str] = {}
    for dataset in recipe.datasets:
        folder = run_folder / "transform" / "held_out" / dataset.task / dataset.name
        examples: list[Any] = list(read_records(folder, EXAMPLE_TYPES[dataset.task]))
        if reason := not_judgeable(examples):
            refused |= {dataset.name: reason} if dataset.held_out_fraction else {}
        else:
            tasks.append(_task_of(dataset, recipe, examples, run_folder / "transform"))
    return tasks, refused


def _task_of(dataset: Dataset, recipe: Recipe, examples: Sequence[Any], transformed: Folder) -> Any:
    settings, seed = recipe.evaluation, recipe.run.seed
    most = {"max_queries": settings.max_queries, "max_documents": settings.max_documents}
    if dataset.rule == "qrels":
        documents = read_records(transformed / "corpora" / dataset.name, Document)
        queries = list(read_records(transformed / "queries" / dataset.name, Query))
        qrels = read_records(transformed / "qrels" / dataset.name, Qrel)
        return judged_task(dataset.name, documents, queries, qrels, **most, seed=seed)
    if isinstance(examples[0], RetrievalExample):
        return retrieval_task(dataset.name, examples, **most, seed=seed)
    if isinstance(examples[0], PairExample):
        return pair_task(dataset.name, examples, max_rows=settings.max_rows, seed=seed)
    assert isinstance(examples[0], LabeledExample)
    return classification_task(dataset.name, examples, max_rows=settings.max_rows, seed=seed)


def _judge(recipe: Recipe, run_uri: str, model: ModelName) -> Results:
    """All tasks for one model, on a worker."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mteb").setLevel(logging.ERROR)
    run_folder = Folder.open(run_uri)
    tasks, refused = local_tasks(recipe, run_folder)
    if model == "bm25":
        with contextlib.redirect_stderr(io.StringIO()):  # its bars do not know that there is no terminal
            return _results(bm25(), [task for task in tasks if task.metadata.type == "Retrieval"])
    prompts = {dataset.name: dataset.prompt for dataset in recipe.datasets}
    own = recipe.model
    if model == "backbone":
        encoder = load_encoder(
            own.backbone,
            max_tokens=own.max_document_tokens,
            pooling=own.pooling,
            attention=own.attention,
            dtype=own.encodes_in,
            compiled=own.compiled,
        )
    else:
        with (run_folder / "train" / model / "model").local_copy() as place:
            encoder = load_encoder(
                str(place), max_tokens=own.max_document_tokens, dtype=own.encodes_in, compiled=own.compiled
            )
    judged = _results(MtebEncoder(encoder, prompts, name=f"{recipe.run.name}-{model}"), tasks)
    return judged | {name: {NOT_JUDGED: reason} for name, reason in refused.items()}


def _results(model: Any, tasks: Sequence[Any]) -> dict[str, dict[str, Any]]:
    results = {}
    for task in tasks:
        judged = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results[0]
        results[task.metadata.name] = {
            "type": task.metadata.type,
            "metric": task.metadata.main_score,
            "score": judged.get_score(),
            "n": sizes(task),
            "mteb": json.loads(judged.model_dump_json()),
        }
    return results
