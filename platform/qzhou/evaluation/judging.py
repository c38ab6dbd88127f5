"""Judging one model on every held-out task; runs on a worker, and is all of the stage that loads mteb."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import mteb

from qzhou.dataset import Dataset
from qzhou.encoder import Encoder, load_encoder
from qzhou.evaluation.comparison import NOT_JUDGED, ModelName, Results
from qzhou.evaluation.models import MtebEncoder, bm25
from qzhou.evaluation.tasks import classification_task, judged_task, not_judgeable, pair_task, retrieval_task, sizes
from qzhou.recipe import Recipe
from qzhou.records import EXAMPLE_TYPES, Document, LabeledExample, PairExample, Qrel, Query, RetrievalExample
from qzhou.storage import Folder, read_records


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


def judge(recipe: Recipe, run_uri: str, model: ModelName) -> Results:
    """All tasks for one model, on a worker."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mteb").setLevel(logging.ERROR)
    run_folder = Folder.open(run_uri)
    tasks, refused = local_tasks(recipe, run_folder)
    if model == "bm25":
        with contextlib.redirect_stderr(io.StringIO()):  # its bars do not know that there is no terminal
            return _results(bm25(), [task for task in tasks if task.metadata.type == "Retrieval"])
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
    judged = judge_with(encoder, recipe, tasks, name=f"{recipe.run.name}-{model}")
    return judged | {name: {NOT_JUDGED: reason} for name, reason in refused.items()}


def judge_with(encoder: Encoder, recipe: Recipe, tasks: Sequence[Any], *, name: str) -> dict[str, dict[str, Any]]:
    """Task -> main score and mteb's own result, of an encoder; its texts are presented as the recipe says."""
    prompts = {dataset.name: dataset.prompt for dataset in recipe.datasets}
    return _results(MtebEncoder(encoder, prompts, name=name), tasks)


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
