"""What a run gains on data that nobody tuned it for, beside the trainer of sentence-transformers, with intervals.

QZHOU_DATA=... python -m bench.quality [--quick] [--datasets NAME ...] [--levers NAME ...] [--seeds 3]

For each dataset `qzhou init` writes a recipe, which is changed in nothing. Each seed trains it as it is ("ours") and
once with each lever. Then the trainer of sentence-transformers has the same backbone, mined rows, batch size and number
of steps, and the settings of its documentation: MultipleNegativesRankingLoss, CoSENTLoss or BatchAllTripletLoss, scale
20, learning rate 2e-5, a tenth of warm-up, linear decay. A row of theirs is a positive with one of its negatives, or
none where none was mined; ours draws both anew in each step. Everyone is judged by mteb on the held-out rows.

The difference is to the untouched backbone, with an interval over seeds and examples; of one seed it says nothing of
other seeds. Prints a table for each dataset when it is done, and writes bench/results/quality.json.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from datasets import DatasetDict
from rich.console import Console
from scipy.stats import t as student
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import BatchAllTripletLoss, CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from torch import nn

from bench.report import parsed, table, write
from bench.their_trainer import rows_of, train
from qzhou.config.recipe import Recipe, load_recipe
from qzhou.data.records import TASKS, Task
from qzhou.data.storage import Folder
from qzhou.evaluation.judge.model_specs import BACKBONE, STAGE2
from qzhou.evaluation.judge.per_example_scores import FEWEST_EXAMPLES, PerExampleScores
from qzhou.evaluation.judge.task_scores import TaskScore
from qzhou.run.files import RunFiles
from qzhou.run.run import Run

ROOT = Path(__file__).parents[1]
DATASETS = (
    "climate_fever", "trecqa_wang", "xquad_en_zh", "msmarco_mini",  # search; the last has 43 queries in all
    "banking77", "trec_questions",  # classification
    "sick2014", "stsb_multi_mt",  # pairs
)  # fmt: skip
QUICK = ("climate_fever", "trec_questions")
LEVERS: Mapping[str, Mapping[str, Any]] = {
    "listwise": {"training.distillation.kind": "listwise"},
    "best": {"training.select": "best", "training.patience": 3},
    "half the backbone": {"training.stage2.backbone_share": 0.5},
}
VALIDATIONS = 5  # of a stage, where the best weights are kept
UNTOUCHED, OURS, THEIRS = "untouched", "ours", "sentence-transformers"
LOSSES = {"retrieval": MultipleNegativesRankingLoss, "pair": CoSENTLoss, "classification": BatchAllTripletLoss}
RESAMPLES = 2_000
SMALL = {"seeds": 1, "datasets": ["trec_questions"], "levers": [], "steps": 2}


def qzhou(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "qzhou.cli", *map(str, words)], cwd=ROOT, check=True)


@dataclass(frozen=True, slots=True)
class Setup:
    """A dataset's recipe, and the words after it that all its runs have in common."""

    file: Path
    words: tuple[str, ...]

    @classmethod
    def of(cls, name: str, data: Path, storage: Path, steps: int | None) -> Setup:
        """The recipe that `qzhou init` writes; ``steps`` shortens its stages."""
        file = storage / f"{name}.toml"
        file.unlink(missing_ok=True)  # runs of another recipe are made again
        qzhou("init", data / name, "--name", name, "--output", file)
        words = ("--run.storage", str(storage / name), "--run.share_stages", "true")
        stages = load_recipe(file, words).training.stages if steps else ()
        return cls(file, words + tuple(word for one in stages for word in (f"--training.{one}.steps", str(steps))))

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.file, self.words)

    def trial(self, who: str, settings: Mapping[str, Any], seed: int) -> Setup:
        """One run of it."""
        own = {"run.name": f"{who.replace(' ', '-')}-{seed}", "training.seed": seed, **settings}
        return Setup(self.file, self.words + tuple(str(word) for key in own for word in (f"--{key}", own[key])))

    def run(self, models: Sequence[Path] = ()) -> Folder:
        """The folder of the finished run, judged beside further models."""
        judged = [str(word) for one in models for word in ("--evaluation.models", one)]
        qzhou("evaluate" if models else "run", self.file, *self.words, *judged)
        return Run.at(self.recipe).folder


def settings_of(lever: str, recipe: Recipe) -> dict[str, Any]:
    """The settings of a lever; empty where it cannot be pulled."""
    found = dict(LEVERS[lever])
    if lever == "listwise" and not any(one.task == "retrieval" for one in recipe.trained_datasets):
        return {}
    if lever == "best":
        fewest = min(getattr(recipe.training, stage).steps for stage in recipe.training.stages)
        found["training.validate_every_steps"] = max(1, fewest // VALIDATIONS)
    return found


def theirs(recipe: Recipe, threads: int, made: Path) -> None:
    """Their trainer on the same rows, for as many steps as both stages have."""
    rows: dict[str, Any] = {}
    losses: dict[str, Task] = {}
    for task in TASKS:
        own = rows_of(recipe, task)
        rows |= own
        losses |= dict.fromkeys(own, task)
    stages = [getattr(recipe.training, stage) for stage in recipe.training.stages]
    arguments: dict[str, Any] = {
        "max_steps": sum(stage.steps for stage in stages),
        "per_device_train_batch_size": stages[-1].batch_size,
        "learning_rate": 2e-5,
        "warmup_steps": sum(stage.steps for stage in stages) // 10,
    }
    if set(losses.values()) == {"classification"}:
        arguments["batch_sampler"] = BatchSamplers.GROUP_BY_LABEL  # their loss needs several texts of a class

    def loss(model: SentenceTransformer) -> dict[str, nn.Module]:
        return {name: LOSSES[task](model) for name, task in losses.items()}

    train(recipe, DatasetDict(rows), loss, threads, arguments, made)


def scores_of(run: Folder, model: str) -> dict[str, PerExampleScores]:
    """Task -> the examples behind a model's score."""
    files = RunFiles(run)
    tasks = {row["task"] for row in files.comparison["rows"] if row["model"] == model}
    found = {task: TaskScore.read(files, model, task) for task in sorted(tasks)}
    return {task: one.per_example for task, one in found.items() if one is not None and one.per_example}


def difference(
    own: Sequence[Mapping[str, PerExampleScores]], untouched: Mapping[str, PerExampleScores]
) -> tuple[float, float | None, float | None]:
    """The mean lead over the tasks, and its 95 % limits over seeds and examples; none below ten examples.

    The variance is that of the mean over seeds, plus that over resampled examples (bootstrap);
    Student's t has the degrees of freedom of Welch and Satterthwaite. One seed has no
    variance, and tells of examples alone.
    """
    generator = np.random.default_rng(0)
    leads, by_seed = [], []
    for task, base in untouched.items():
        sizes = [len(part.values) for part in base.parts]
        rows = [generator.integers(size, size=(RESAMPLES, size)) for size in sizes]
        leads.append(np.mean([one[task].resampled(rows) for one in own], axis=0) - base.resampled(rows))
        by_seed.append([one[task].score - base.score for one in own])
    seeds = np.mean(by_seed, axis=0)
    value, examples = float(seeds.mean()), min(one.count for one in untouched.values())
    if examples < FEWEST_EXAMPLES:
        return value, None, None
    parts = [(float(np.var(np.mean(leads, axis=0), ddof=1)), examples - 1)]
    if len(seeds) > 1:
        parts.append((float(np.var(seeds, ddof=1)) / len(seeds), len(seeds) - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else 1.0
    reach = float(student.ppf(0.975, freedom)) * variance**0.5
    return value, value - reach, value + reach


def measured(name: str, setup: Setup, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One line for each who."""
    found: dict[str, list[dict[str, PerExampleScores]]] = {}
    untouched: dict[str, PerExampleScores] = {}
    for seed in range(asked.seeds):
        default = setup.trial(OURS, {}, seed)
        found.setdefault(OURS, []).append(scores_of(default.run(), STAGE2))
        for lever in asked.levers:
            if settings := settings_of(lever, setup.recipe):
                found.setdefault(lever, []).append(scores_of(setup.trial(lever, settings, seed).run(), STAGE2))
        own = hashlib.sha256(setup.file.read_bytes()).hexdigest()[:8]  # another recipe has other rows and steps
        made = setup.file.parent / f"{name}-peers-{own}" / f"{THEIRS}-{seed}"
        if not made.exists():
            theirs(default.recipe, asked.threads, made)
        run = default.run([made])
        found.setdefault(THEIRS, []).append(scores_of(run, made.name))
        untouched = scores_of(run, BACKBONE)
    lines = [_line(name, UNTOUCHED, [untouched], untouched)]
    return lines + [_line(name, who, own, untouched) for who, own in found.items()]


def _line(
    name: str, who: str, own: Sequence[Mapping[str, PerExampleScores]], untouched: Mapping[str, PerExampleScores]
) -> dict[str, Any]:
    score = fmean(one[task].score for one in own for task in untouched)
    line = {"case": name, "who": who, "score": round(score, 4)}
    if who == UNTOUCHED:
        return {**line, "difference": None, "low": None, "high": None}
    value, *limits = difference(own, untouched)
    low, high = (None if limit is None else round(limit, 4) for limit in limits)
    return {**line, "difference": round(value, 4), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)}, one seed")
    parser.add_argument(
        "--datasets", nargs="+", default=DATASETS, help="folders below QZHOU_DATA; default: %(default)s"
    )
    parser.add_argument("--levers", nargs="*", default=[], choices=list(LEVERS), help="default: none")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of each stage; default: the recipe's")
    parser.add_argument(
        "--storage", type=Path, help="where the runs go, and are found again; default: a new folder"
    )
    asked = parsed(parser, SMALL)
    if asked.quick:
        asked.datasets, asked.seeds = QUICK, 1
    if not os.environ.get("QZHOU_DATA"):
        raise SystemExit("QZHOU_DATA names no folder with the datasets")
    data = Path(os.environ["QZHOU_DATA"]).absolute()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as new:
        storage = (asked.storage or Path(new)).absolute()
        storage.mkdir(parents=True, exist_ok=True)
        for name in asked.datasets:
            own = measured(name, Setup.of(name, data, storage, asked.steps), asked)
            Console().print(table(f"{name}, {asked.seeds} seed{'s' * (asked.seeds > 1)}", own))
            lines += own
    write(asked.results, "quality.json", {"seeds": asked.seeds, "rows": lines})


if __name__ == "__main__":
    main()
