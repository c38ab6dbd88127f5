"""Transformation speed and memory: our stage beside `datasets.map` with one process and two, and a plain loop.

python bench/transform.py [--quick]

All do the same work: read JSON lines, clean both texts, apply the rule question_answer, drop blank rows and repeats,
give every example its stable id, write Parquet. Ours writes drops, corpus and report besides. The outputs' ids must
be the same, or no speed is quoted. Each turn starts from nothing. Not counted and stated by themselves: the start of
a Ray cluster, of its workers, and the fixed cost of the stage (ten rows on a warm cluster).

Prints two tables and writes bench/results/transform.json and transform.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from qzhou.cluster.session import session
from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.records import RetrievalExample, normalized_text
from qzhou.data.storage import table_of
from qzhou.transform.deduplication.keys import text_digest
from qzhou.transform.pipeline import transform
from qzhou.transform.rules.candidates import Converter

RESULTS = Path(__file__).parent / "results"
SPEED_ROWS, QUICK_ROWS = (500_000, 2_000_000), (30_000,)
MEMORY_ROWS = (500_000, 2_000_000, 8_000_000)
ROUNDS = 3  # at the smallest size; at larger ones the fastest peer of two cores is run once
PLAIN_CHUNK = 10_000
WARM_UP_ROWS = 20_000  # enough for a task on every core
COMMON = ["the", "of", "and", "to", "in", "a", "is", "that", "R&amp;D"]
WORDS = [*(f"word{n}" for n in range(3000)), *100 * COMMON, *3 * ["naïve", "it’s"]]

Ids = set[str]


def write_rows(path: Path, rows: int) -> None:
    """Questions and answers of about 250 bytes; one in twenty is a repeat, one in a hundred is blank."""
    draw = random.Random(rows)
    with path.open("w", encoding="utf-8") as stream:
        recent: list[str] = []
        for number in range(rows):
            if recent and number % 20 == 7:
                line = draw.choice(recent)
            else:
                answer = "" if number % 100 == 3 else " ".join(draw.choices(WORDS, k=25))
                question = f"{' '.join(draw.choices(WORDS, k=8))} {number}?"
                line = json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
                recent = [*recent[-50:], line]
            stream.write(line + "\n")


def recipe_of(path: Path, storage: Path) -> Recipe:
    stage = {"steps": 1, "learning_rate": 1e-5, "retrieval_share": 1.0}
    content = {
        "run": {"name": "run", "storage": str(storage)},
        "model": {"backbone": "not used"},
        "datasets": [{"name": "d", "reader": "jsonl", "rule": "question_answer", "paths": [str(path)]}],
        "training": {"stage1": stage, "stage2": stage},
    }
    return parse_recipe(content, place="bench")


def ours(path: Path, place: Path) -> Ids:
    transform(recipe_of(path, place))
    found = sorted((place / "run/transform/examples/retrieval/d").glob("*.parquet"))
    return {one for file in found for one in pq.read_table(file, columns=["id"])["id"].to_pylist()}


def plain_loop(path: Path, place: Path) -> Ids:
    """One process, one pass, a set of what was seen."""
    convert, seen, ids, part = Converter(dataset_of(path), 20_000), set[bytes](), set[str](), 0
    with path.open("rb") as stream:
        while chunk := list(islice(stream, PLAIN_CHUNK)):
            kept = []
            for line in chunk:
                candidate, _ = convert([json.loads(line)])
                if candidate and (key := identity(candidate.example)) not in seen:
                    seen.add(key)
                    kept.append(candidate.example)
            table = table_of(kept, RetrievalExample)
            pq.write_table(table, place / f"part-{part:06d}.parquet")
            ids.update(table["id"].to_pylist())
            part += 1
    return ids


def with_datasets(processes: int) -> Callable[[Path, Path], Ids]:
    """`datasets.map` in batches, then a filter in one process, because repeats stand anywhere."""

    def run(path: Path, place: Path) -> Ids:
        datasets.disable_progress_bars()
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(place / "cache"))
        mapped = rows.map(
            convert_batch,
            batched=True,
            num_proc=processes if processes > 1 else None,
            remove_columns=rows.column_names,
            fn_kwargs={"path": str(path)},
        )
        seen = set[bytes]()

        def is_first(key: bytes) -> bool:
            return not (key in seen or seen.add(key))  # type: ignore[func-returns-value]

        kept = mapped.filter(is_first, input_columns="key")
        kept.remove_columns("key").to_parquet(place / "all.parquet")
        return set(kept["id"])

    return run


def convert_batch(batch: dict[str, list[Any]], path: str) -> dict[str, list[Any]]:
    convert = Converter(dataset_of(Path(path)), 20_000)
    made: dict[str, list[Any]] = {name: [] for name in ("id", "dataset", "query", "positives", "key")}
    for question, answer in zip(batch["question"], batch["answer"], strict=True):
        candidate, _ = convert([{"question": question, "answer": answer}])
        if candidate and isinstance(candidate.example, RetrievalExample):
            example = candidate.example
            for name in ("id", "dataset", "query", "positives"):
                made[name].append(getattr(example, name))
            made["key"].append(identity(example))
    return made


def dataset_of(path: Path) -> Dataset:
    return recipe_of(path, Path("unused")).datasets[0]


def identity(example: Any) -> bytes:
    return text_digest(normalized_text(example.query), *sorted(map(normalized_text, example.positives)))


class PeakMemory:
    """The largest proportional set size of this process and its children while the block ran, in MiB."""

    def __enter__(self) -> PeakMemory:
        self.mib, self._done = 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(0.5):
            self.mib = max(self.mib, sum(map(_pss_mib, [own, *own.children(recursive=True)])))


def _pss_mib(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_full_info().pss) / 2**20
    return 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def timed(work: Callable[[Path, Path], Ids], path: Path) -> tuple[float, Ids]:
    """Seconds of one turn in a folder of its own, and the ids that came out."""
    place = Path(tempfile.mkdtemp(dir=path.parent))
    started = time.perf_counter()
    with quiet():
        ids = work(path, place)
    elapsed_s = time.perf_counter() - started
    shutil.rmtree(place)
    return elapsed_s, ids


def speed_rows(path: Path, rows: int, rounds: int) -> list[dict[str, Any]]:
    peers = {"datasets.map, 2 processes": with_datasets(2)}
    if rows <= SPEED_ROWS[0]:
        peers |= {"datasets.map, 1 process": with_datasets(1), "plain loop": plain_loop}
    seconds: dict[str, list[float]] = {}
    ids: dict[str, Ids] = {}
    for _ in range(rounds):
        for name, work in {"ours": ours, **peers}.items():
            elapsed_s, ids[name] = timed(work, path)
            seconds.setdefault(name, []).append(elapsed_s)
    for name in peers:
        if ids[name] != ids["ours"]:
            raise SystemExit(f"{name}: {len(ids[name] ^ ids['ours'])} ids differ from ours, so no speed is quoted")
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        {
            "case": f"{rows:,} rows",
            "unit": "rows/s",
            "ours": round(rows / median["ours"]),
            "peer": name,
            "theirs": round(rows / median[name]),
            "ratio": round(median[name] / median["ours"], 2),
            "agree": f"{len(ids[name]):,} ids",
        }
        for name in peers
    ]


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for rows in MEMORY_ROWS:
        path = folder / f"{rows}.jsonl"
        if not path.exists():
            write_rows(path, rows)
        with PeakMemory() as peak:
            timed(run_only, path)
        first = made[0]["peak MiB"] if made else round(peak.mib)
        made.append({"rows": rows, "peak MiB": round(peak.mib), "of the smallest": round(peak.mib / first, 2)})
        path.unlink()
    return made


def run_only(path: Path, place: Path) -> Ids:
    """Our stage without reading its output back."""
    transform(recipe_of(path, place))
    return set()


def picture(speed: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2)
    shown = [one for one in speed if one["case"] == speed[0]["case"]]
    bars = {"ours": shown[0]["ours"], **{one["peer"]: one["theirs"] for one in shown}}
    left.barh(list(bars), list(bars.values()), color=["#2f9e6e", "#9aa5b1", "#9aa5b1", "#9aa5b1"])
    left.bar_label(left.containers[0], fmt="{:,.0f}", padding=3, fontsize=8)
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(bars.values()))
    left.set_title(f"rows a second, {shown[0]['case']}", fontsize=10)
    right.plot(
        [one["rows"] / 1e6 for one in memory], [one["peak MiB"] for one in memory], marker="o", color="#2f9e6e"
    )
    right.set_ylim(0, 1.2 * max(one["peak MiB"] for one in memory))
    right.set_title("peak memory of all processes (MiB)", fontsize=10)
    right.set_xlabel("million rows")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    grid = Table(title=title)
    for name in rows[0]:
        grid.add_column(name, justify="left" if name in {"case", "peer"} else "right")
    for one in rows:
        grid.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in one.values()))
    return grid


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="30,000 rows, one round, no memory; within 50 s")
    arguments.add_argument("--memory", action="store_true", help="memory alone, as JSON; for a process of its own")
    parsed = arguments.parse_args()
    quick = parsed.quick
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if parsed.memory:
            with session():
                memory = memory_rows(folder)
            print(json.dumps(memory))
            return
        speed: list[dict[str, Any]] = []
        started = time.perf_counter()
        with session():
            start_s = time.perf_counter() - started
            warm_up, small = folder / "warm-up.jsonl", folder / "small.jsonl"
            write_rows(warm_up, WARM_UP_ROWS)
            write_rows(small, 10)
            cold_s, warm_s = (timed(run_only, warm_up)[0] for _ in range(2))
            fixed_s = statistics.median(timed(run_only, small)[0] for _ in range(1 if quick else 3))
            for rows in QUICK_ROWS if quick else SPEED_ROWS:
                path = folder / f"{rows}.jsonl"
                write_rows(path, rows)
                speed += speed_rows(path, rows, ROUNDS if rows == SPEED_ROWS[0] else 1)
    if not quick:
        # what the peers leave behind in this process would hide how much the stage takes
        alone = subprocess.run(
            [sys.executable, __file__, "--memory"], stdout=subprocess.PIPE, text=True, check=True
        )
        memory = json.loads(alone.stdout.splitlines()[-1])
    console = Console(width=120)
    console.print(table("Transformation", speed))
    costs = {"cluster_start_s": start_s, "workers_start_s": cold_s - warm_s, "fixed_s": fixed_s}
    costs = {name: round(seconds, 1) for name, seconds in costs.items()}
    console.print(", ".join(f"{name} {seconds}" for name, seconds in costs.items()))
    if not quick:
        console.print(table("Memory", memory))
        RESULTS.mkdir(exist_ok=True)
        content = {"rows": speed, "memory": memory, **costs}
        (RESULTS / "transform.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        picture(speed, memory).savefig(RESULTS / "transform.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
