"""``report.html`` of a run: one page without network, from the files of the run folder alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from qzhou.evaluation.candidates import OWN as MODELS
from qzhou.evaluation.comparison import Row
from qzhou.pictures import svg
from qzhou.records import Drop
from qzhou.runs import MANIFEST, Run
from qzhou.storage import Folder, read_records

STAGES = ("transform", "synthesize", "mine", "train/stage1", "train/stage2", "model")
COLOURS = {"bm25": "#9aa5b1", "backbone": "#5b7db1", "stage1": "#e8a33d", "stage2": "#2f9e6e"}
TASK_COLOURS = {"retrieval": "#2f9e6e", "pair": "#5b7db1", "classification": "#e8a33d"}


def write_report(run: Run) -> None:
    """Write ``report.html`` into the run folder, from what the stages left there."""
    found = _json(run.folder / "evaluate", "comparison.json")
    rows = [Row(**row) for row in found.get("rows", [])]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        name=run.recipe.run.name,
        backbone=run.recipe.model.backbone,
        models=MODELS,
        tasks=_by_task(rows),
        scores_picture=_scores_picture(rows),
        loss_picture=_loss_picture(run),
        stages=_stages(run),
        mining=_json(run.folder / "mine", "report.json"),
        mining_picture=_text(run.folder / "mine", "scores.svg"),
        data=_json(run.folder / "transform", "report.json"),
        lengths_picture=_text(run.folder / "transform", "lengths.svg"),
        synthesis=_json(run.folder / "synthesize", "report.json"),
        synthesis_picture=_text(run.folder / "synthesize", "scores.svg"),
        drops=_drops(run),
    )
    run.folder.write_bytes("report.html", page.encode())


def _by_task(rows: Sequence[Row]) -> list[dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    for row in rows:
        task = tasks.setdefault(row.task, asdict(row) | {"scores": {}})
        task["scores"][row.model] = row.score
    return list(tasks.values())


def _scores_picture(rows: Sequence[Row]) -> str:
    """Bars by task and model, each with its number."""
    tasks = _by_task(rows)
    figure = Figure(figsize=(8.5, 0.6 + 1.35 * len(tasks)))
    axes = figure.subplots()
    ticks, labels, place = [], [], 0.0
    for task in tasks:
        models = [model for model in MODELS if model in task["scores"]]
        for model in models:
            score = task["scores"][model]
            axes.barh(place, score, height=0.85, color=COLOURS[model], label=model)
            axes.text(score + 0.008, place, f"{model} {score:.3f}", va="center", fontsize=9)
            place += 1
        ticks.append(place - (len(models) + 1) / 2)
        labels.append(f"{task['task']}\n{task['metric']}")
        place += 0.8
    axes.set_yticks(ticks, labels)
    axes.set_xlim(0, 1.12)
    axes.invert_yaxis()
    axes.set_xlabel("score on held-out data")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, "scores")


def _loss_picture(run: Run) -> str:
    """Loss by step, one panel for each task of each stage: their scales have nothing in common."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for stage in ("stage1", "stage2"):
        folder = run.folder / "train" / stage
        content = folder.read_bytes("metrics.jsonl").decode() if folder.exists("metrics.jsonl") else ""
        for one in map(json.loads, content.splitlines()):
            lines.setdefault(f"{stage}: {one['task']}", []).append((one["step"], one["loss"]))
    figure = Figure(figsize=(8.5, 2.5))
    for number, (title, line) in enumerate(sorted(lines.items()), 1):
        axes = figure.add_subplot(1, len(lines), number)
        axes.plot(*zip(*line, strict=True), marker=".", color=TASK_COLOURS[title.split(": ")[1]])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1.1 * max(loss for _, loss in line) or 1.0)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 1:
            axes.set_ylabel("loss (nats)")
    return svg(figure, "loss")


def _stages(run: Run) -> list[dict[str, Any]]:
    found = []
    for stage in STAGES:
        if (run.folder / stage).exists(MANIFEST):
            manifest = run.manifest(stage)
            outputs = ", ".join(f"{count:,} {name}" for name, count in manifest.outputs.items())
            found.append({"name": stage, "seconds": manifest.wall_s, "outputs": outputs, "at": manifest.finished_at})
    return found


def _json(folder: Folder, name: str) -> dict[str, Any]:
    """What a stage says of itself; empty for a run of an older version."""
    return dict(folder.read_json(name)) if folder.exists(name) else {}


def _text(folder: Folder, name: str) -> str:
    return folder.read_bytes(name).decode() if folder.exists(name) else ""


def _drops(run: Run) -> Mapping[str, int]:
    """Reason -> rows that transform and synthesis refused, the commonest first."""
    counts: Counter[str] = Counter()
    for name, dataset in _json(run.folder / "transform", "report.json").get("datasets", {}).items():
        counts.update({f"transform: {name}: {reason}": rows for reason, rows in dataset["dropped"].items()})
    for drop in read_records(run.folder / "synthesize" / "dropped", Drop):
        counts[f"synthesize: {drop.dataset}: {drop.reason}"] += 1
    return dict(counts.most_common(40))
