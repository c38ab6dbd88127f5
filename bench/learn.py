"""What training gains on SciFact, beside the trainer of sentence-transformers given the same rows.

QZHOU_DATA=... python -m bench.learn [--seeds 3] [--scales 20 50] [--storage FOLDER]

For each seed recipes/scifact.toml is run whole (transform, mining, both stages, evaluation). Then, from the same
backbone, the trainer of sentence-transformers sees the mined rows of stage 1 (query, positive, hard negative; one
dataset a batch, no duplicates in it) with MultipleNegativesRankingLoss, the same batch size, steps, peak learning rate,
warm-up, linear decay, weight decay and float32: once with its default scale of 20, which is the recipe's temperature of
0.05, and once with 50, the paper's 0.02. Everything is judged by mteb on the test claims, nDCG@10.

What differs is the loss (the query-query term), the sampling of rows and datasets, and dropout, which ours sets to 0.
Prints a table and writes bench/results/learn.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from sentence_transformers.losses import MultipleNegativesRankingLoss

from bench.report import parsed, table, write
from bench.their_trainer import rows_of, train
from qzhou.config.recipe import Recipe, load_recipe
from qzhou.run.run import Run

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "scifact.toml"
TASK = "scifact_test"
THEIR_SCALE = 20.0  # the default of sentence-transformers, and one over the recipe's temperature
PAPERS_SCALE = 50.0  # one over the paper's temperature
SMALL = {"seeds": 1, "steps": 5}


def job(name: str, words: Sequence[str]) -> None:
    subprocess.run([sys.executable, f"jobs/{name}.py", str(RECIPE), *words], cwd=ROOT, check=True)


def one_seed(
    seed: int, storage: Path, overrides: Sequence[str], scales: Sequence[float], threads: int
) -> dict[str, float]:
    """Who -> nDCG@10: the whole recipe, and theirs on the same rows; all judged in one stage of ours."""
    words = [
        "--run.storage",
        str(storage),
        "--run.name",
        f"scifact-{seed}",
        "--training.seed",
        str(seed),
        *overrides,
    ]
    words += ["--run.share_stages", "true"]
    job("pipeline", words)
    recipe = load_recipe(RECIPE, words)
    peers = []
    for scale in scales:
        folder = storage / f"scifact-{seed}-peers" / f"sentence-transformers-{scale:.0f}"
        if not folder.exists():
            theirs(recipe, scale, threads, folder)
        peers += ["--evaluation.models", str(folder)]
    job("evaluate", [*words, *peers])
    rows = (Run.at(recipe).folder / "evaluation").read_json("comparison.json")["rows"]
    return {row["model"]: row["score"] for row in rows if row["task"] == TASK}


def theirs(recipe: Recipe, scale: float, threads: int, made: Path) -> None:
    """Their trainer on the rows of stage 1; writes its model."""
    stage = recipe.training.stage1
    arguments = {
        "max_steps": stage.steps,
        "per_device_train_batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup_steps,
        "lr_scheduler_type": "linear",
        "weight_decay": recipe.training.weight_decay,
        "max_grad_norm": recipe.training.max_gradient_norm,
    }
    loss = partial(MultipleNegativesRankingLoss, scale=scale)
    train(recipe, rows_of(recipe, "retrieval"), loss, threads, arguments, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of stage 1; default: the recipe's")
    parser.add_argument(
        "--storage", type=Path, help="where the runs go, and are found again; default: a new folder"
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[THEIR_SCALE, PAPERS_SCALE],
        help="of their loss; default: %(default)s",
    )
    asked = parsed(parser, SMALL)
    if not os.environ.get("QZHOU_DATA"):
        raise SystemExit("QZHOU_DATA names no folder with the datasets of recipes/scifact.toml")
    overrides = ["--training.stage1.steps", str(asked.steps)] if asked.steps else []
    overrides += ["--training.stage2.steps", str(asked.steps)] if asked.steps else []
    with tempfile.TemporaryDirectory() as new:
        storage = (asked.storage or Path(new)).absolute()
        rows = [one_seed(seed, storage, overrides, asked.scales, asked.threads) for seed in range(asked.seeds)]
    compared = [{"who": who, **_over_seeds([row[who] for row in rows])} for who in rows[0]]
    Console().print(table(f"nDCG@10 on the test claims of SciFact, {asked.seeds} seeds", compared))
    write(asked.results, "learn.json", {"seeds": asked.seeds, "rows": compared})


def _over_seeds(scores: list[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.mean(scores), 4),
        "standard_deviation": round(statistics.stdev(scores), 4) if len(scores) > 1 else None,
        "scores": " ".join(f"{score:.4f}" for score in scores),
    }


if __name__ == "__main__":
    main()
