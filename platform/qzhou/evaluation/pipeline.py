"""The evaluation stage on Ray: one task a model, all at the same time."""

from __future__ import annotations

import dataclasses

import ray

from qzhou.cluster import session
from qzhou.evaluation.comparison import MODELS, NOT_JUDGED, ModelName, Results, Row, table
from qzhou.evaluation.report import write_report
from qzhou.progress import progress
from qzhou.recipe import Recipe
from qzhou.records import Manifest
from qzhou.runs import Run
from qzhou.storage import Folder

NOTHING_HELD_OUT = (
    "evaluate: there is nothing to judge, because no dataset holds out enough. Give one a held_out_fraction above 0."
)


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


def _judge(recipe: Recipe, run_uri: str, model: ModelName) -> Results:
    """All tasks for one model, on a worker; the driver does without mteb and torch, which take long to load."""
    from qzhou.evaluation.judging import judge

    return judge(recipe, run_uri, model)
