"""Requests per second to a slow endpoint: our worker beside Ray's HttpRequestProcessor, distilabel and a plain loop.

python bench/synthesize.py [--quick] [--distilabel PYTHON]

Everyone sends the same chats to the LLM server of the tests (its own process, on the same cores), which counts. The
speed is its completed requests over the time from the first arrival to the last completion, so nobody's start counts.
`ideal` is limit / latency, with the latency that the server says it had: its timers are up to a millisecond late.
distilabel does not share our dependencies: name the Python of an environment that has `distilabel[openai]`. CPU
milliseconds are those of our worker's process, per request, Ray's part included.

Prints a table and writes bench/results/synthesize.json and synthesize.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
HERE = Path(__file__)
ROOT = HERE.resolve().parents[1]
CASES = [(0.1, 4), (0.1, 16), (1.0, 16), (1.0, 64), (1.0, 256)]
SECONDS = 10  # of sending, at the ideal speed
PEERS = ("qzhou", "plain asyncio", "ray.data.llm", "distilabel")
COLOURS = {"qzhou": "#2f9e6e", "plain asyncio": "#9aa5b1", "ray.data.llm": "#5b7db1", "distilabel": "#e8a33d"}
SYSTEM, DOCUMENT = "You judge. " * 60, "word " * 60


@contextlib.contextmanager
def endpoint(latency_s: float, port: int = 9377) -> Iterator[str]:
    """The LLM server of the tests in a process of its own."""
    command = [sys.executable, "-m", "tests.llm_server", "--port", str(port)]
    command += ["--latency_s", str(latency_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def counts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/counts", timeout=10) as found:
        return dict(json.load(found))


def chat(number: int) -> list[dict[str, str]]:
    """One request: a relevance check, which the server's rules answer in no time."""
    user = json.dumps({"technique": "relevance_check", "query": f"question {number}", "document": DOCUMENT})
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def send_ours(url: str, limit: int, requests: int) -> dict[str, float]:
    """Our stage's own sender with its response cache; gives the CPU time of its worker."""
    from qzhou.cluster.session import session
    from qzhou.config.recipe import parse_recipe
    from qzhou.data.storage import Folder
    from qzhou.synthesis.pipeline import Sender
    from qzhou.synthesis.techniques import SynthesisRequest

    steps = {"steps": 1, "learning_rate": 1e-5}
    recipe = parse_recipe(
        {
            "run": {"name": "bench"},
            "model": {"backbone": "unused"},
            "datasets": [{"name": "d", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}],
            "training": {"stage1": steps, "stage2": steps},
            "synthesis": {"endpoint": url, "model": "m", "concurrency": limit, "paraphrase_rows": 1},
        },
        place="bench",
    )
    asked = [
        SynthesisRequest(technique="relevance_check", dataset="d", example_id=str(n), model="m",
                         prompt="relevance_check.en@v3", user=chat(n)[1]["content"])
        for n in range(requests)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as responses, session(), cpu_seconds("LLMWorker") as used:
        results = Sender(recipe, Folder.open(responses)).send(asked)
        assert all(result.answer for result in results.values())
    return {"cpu_ms": 1000 * used["seconds"] / requests}


@contextlib.contextmanager
def cpu_seconds(name: str) -> Iterator[dict[str, float]]:
    """CPU seconds that processes with a name take from the first look on, looked at often: they end with their work."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    found, done = {"seconds": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for process in psutil.process_iter(["name", "cmdline", "cpu_times"]):
                if name in " ".join(process.info["cmdline"] or []):
                    spent = process.info["cpu_times"].user + process.info["cpu_times"].system
                    first.setdefault(process.pid, spent)
                    last[process.pid] = spent

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found["seconds"] = sum(last[pid] - first[pid] for pid in last)


def send_plain(url: str, limit: int, requests: int) -> dict[str, float]:
    """What one writes first: the SDK's client, a semaphore, gather. No response cache, no retries."""
    import openai

    async def life() -> None:
        anybody, slots = "none", asyncio.Semaphore(limit)
        client = openai.AsyncOpenAI(base_url=url, api_key=anybody, max_retries=0)

        async def one(number: int) -> None:
            async with slots:
                messages: Any = chat(number)
                await client.chat.completions.create(model="m", messages=messages, temperature=0.7)

        await asyncio.gather(*(one(number) for number in range(requests)))
        await client.close()

    asyncio.run(life())
    return {}


def send_ray(url: str, limit: int, requests: int) -> dict[str, float]:
    """Ray's own processor with one actor and batches of ``limit`` rows."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.init(logging_level="ERROR", include_dashboard=False)
    config = HttpRequestProcessorConfig(url=f"{url}/chat/completions", batch_size=limit, concurrency=1)
    processor = build_processor(
        config,
        preprocess=lambda row: {"payload": {"model": "m", "messages": chat(row["id"]), "temperature": 0.7}},
        postprocess=lambda row: {"answer": row["http_response"]},
    )
    assert processor(ray.data.range(requests)).count() == requests
    ray.shutdown()
    return {}


SENDERS = {"qzhou": send_ours, "plain asyncio": send_plain, "ray.data.llm": send_ray}


def measured(peer: str, latency_s: float, limit: int, seconds: float, distilabel: str) -> dict[str, Any] | None:
    """One peer on one case; None where it is not there."""
    requests = int(limit / latency_s * seconds)
    if peer == "ray.data.llm":
        # one at a time: it takes for ever
        requests = min(requests, 4 * int(seconds / latency_s) // 3, 64)
    command = [sys.executable, str(HERE), "--send", peer]
    if peer == "distilabel":
        if not distilabel:
            return None
        command = [distilabel, str(HERE.with_name("distilabel_peer.py"))]
    with endpoint(latency_s) as url:
        started = time.monotonic()
        done = subprocess.run(
            [*command, url, str(limit), str(requests)], capture_output=True, text=True, timeout=900
        )
        wall_s, seen = time.monotonic() - started, counts(url)
    if done.returncode:
        raise SystemExit(f"{peer}: {done.stderr[-2000:]}")
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    rate = seen["completed"] / seen["seconds"]
    return {
        "peer": peer, "latency_s": latency_s, "limit": limit, "requests": requests,
        "rate": round(rate, 2), "of_ideal": round(rate * seen["latency_s"] / limit, 4), "peak": seen["peak"],
        "measured_latency_s": seen["latency_s"], "sent": seen["received"], "wall_s": round(wall_s, 2),
        "cpu_ms": round(told[-1]["cpu_ms"], 2) if told and "cpu_ms" in told[-1] else None,
    }  # fmt: skip


def picture(rows: list[dict[str, Any]]) -> None:
    from bench.report import svg

    cases = list(dict.fromkeys((row["latency_s"], row["limit"]) for row in rows))
    peers = [peer for peer in PEERS if any(row["peer"] == peer for row in rows)]
    figure = Figure(figsize=(8.5, 3.2))
    axes = figure.subplots()
    width = 0.8 / len(peers)
    for number, peer in enumerate(peers):
        for place, case in enumerate(cases):
            for row in rows:
                if row["peer"] == peer and (row["latency_s"], row["limit"]) == case:
                    x = place + (number - (len(peers) - 1) / 2) * width
                    axes.bar(
                        x, 100 * row["of_ideal"], width, color=COLOURS[peer], label=peer if place == 0 else None
                    )
                    axes.text(x, 100 * row["of_ideal"] + 1, f"{row['rate']:.0f}", ha="center", fontsize=7)
    axes.axhline(100, color="#9aa5b1", linewidth=0.8, linestyle=":")
    labels = [f"{limit} at {1000 * latency:.0f} ms\nideal {limit / latency:.0f}/s" for latency, limit in cases]
    axes.set_xticks(range(len(cases)), labels, fontsize=8)
    axes.set_ylabel("% of ideal; numbers: requests/s")
    axes.set_ylim(0, 118)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
    (RESULTS / "synthesize.svg").write_text(svg(figure, "synthesize"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases of three seconds; writes no results")
    parser.add_argument("--distilabel", default="", metavar="PYTHON")
    parser.add_argument("--send", nargs=4, metavar=("PEER", "URL", "LIMIT", "REQUESTS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.send:
        peer, url, limit, requests = asked.send
        print(json.dumps(SENDERS[peer](url, int(limit), int(requests))), flush=True)
        return
    cases, seconds = (CASES[:2], 3) if asked.quick else (CASES, SECONDS)
    rows = []
    table = Table("latency", "limit", "peer", "requests/s", "of ideal", "peak", "CPU ms/request")
    for latency_s, limit in cases:
        for peer in PEERS:
            row = measured(peer, latency_s, limit, seconds, asked.distilabel)
            if row is None:
                continue
            rows.append(row)
            shown = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.2f}"
            numbers = (f"{row['rate']:.1f}", f"{row['of_ideal']:.1%}", str(row["peak"]), shown)
            table.add_row(f"{1000 * latency_s:.0f} ms", str(limit), peer, *numbers)
            print(
                f"{peer}, {limit} at {latency_s:g} s: {row['rate']:.1f}/s, {row['of_ideal']:.1%} of ideal",
                flush=True,
            )
    Console(width=120).print(table)
    if not asked.quick:
        (RESULTS / "synthesize.json").write_text(json.dumps(rows, indent=1) + "\n")
        picture(rows)


if __name__ == "__main__":
    main()
