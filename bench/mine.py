"""Hard-negative mining: ours beside `mine_hard_negatives` of sentence-transformers and the way of FlagEmbedding.

python -m bench.mine [--small]

Three parts: from texts (our encoder and theirs read them, then everyone mines), from stored vectors (mining alone),
and ours over two and four times as many stored vectors, to see whether memory stays flat. What everyone is asked for
stands in bench/mining_problem.py. mine_hard_negatives takes no vectors, so it gets a stand-in for the model that hands
out those that are there: encoding and mining are timed apart. FlagEmbedding's part is its way and not its package,
which would encode with its own code; it is charged with the encoding of sentence-transformers.

Each turn is a process of its own. Nobody's reading of the inputs is timed, except ours, which streams them. MiB is the
peak of anonymous memory (RssAnon in /proc, Linux only, read every 20 ms from outside) beyond what the imports took:
pages of mapped files do not count, because the system drops them when it needs room. Without FAISS, the similarities
of 16,384 queries to all documents are in memory at once; the batch is halved until they fit into half of what is free.

Choices must be equal but for ties in float32 (what was exchanged is within 1e-5 of each other, or of the limit that
the positive sets), or no speed is quoted.

Prints tables and writes bench/results/mine.json. The vectors take 1.3 GB of temporary files at the default sizes.

Shape letters in this file: N queries, D embedding width.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from rich.console import Console

from bench.mining_problem import MINING, OURS, RANDOM, WHO, Problem, Rows, rows_of, vector_problems
from bench.report import parsed, table, write
from qzhou.data.storage import Folder
from qzhou.mining.negative_selection import max_negative_score
from qzhou.mining.shard import Shard

GROWTH = (1, 2, 4)  # times the documents
TIE = 1e-5
SMALL = {"queries": 16, "documents": 48, "vector_queries": 400, "vector_documents": 4000, "width": 64, "rounds": 1}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one of them took, and what it chose."""

    seconds: float
    mib: float
    chosen: Rows


class Watch:
    """Times what runs inside it, and tells the parent process, which watches the memory until then."""

    def __init__(self, sender: Connection) -> None:
        self._sender, self._before_mib = sender, anonymous_mib(os.getpid())

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._sender.send((time.perf_counter() - self._started, self._before_mib))


def anonymous_mib(pid: int) -> float:
    """Memory of a process that belongs to no file, in MiB; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def turn(who: str, problem: Problem, threads: int) -> Turn:
    """Let one of them mine."""
    process, receiver = started(_mine, threads, who, problem)
    assert process.pid is not None
    peak_mib = 0.0
    while not receiver.poll(0.02):
        peak_mib = max(peak_mib, anonymous_mib(process.pid))
    seconds, before_mib = received(process, receiver, who)
    return Turn(seconds, max(0.0, peak_mib - before_mib), received(process, receiver, who))


def started(work: Callable[..., None], threads: int, *given: object) -> tuple[BaseProcess, Connection]:
    """A fresh process that has everything imported, and where its answers come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.mining_ways", "pandas"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, threads, *given))
    process.start()
    sender.close()
    return process, receiver


def received(process: BaseProcess, receiver: Connection, who: str) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{who}: its process ended with {process.exitcode}; -9: no memory was left") from None


def _mine(sender: Connection, threads: int, who: str, problem: Problem) -> None:
    from bench.mining_ways import WAYS

    _set_threads(threads)
    sender.send(WAYS[who](problem, Watch(sender)))


def _encode(sender: Connection, threads: int, folder: Folder, queries: int, documents: int) -> None:
    from bench.mining_ways import text_problems

    _set_threads(threads)
    sender.send(text_problems(folder, queries, documents))


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def agreement(problem: Problem, ours: Rows, theirs: Rows) -> tuple[float, float]:
    """The shares of queries with the same negatives, and with others that a tie in float32 explains."""
    differ = [n for n, (one, other) in enumerate(zip(ours, theirs, strict=True)) if set(one) != set(other)]
    documents, tied = Shard(problem.folder, problem.documents), 0
    query_ND = Shard(problem.folder, problem.queries).vectors(np.array(differ, dtype=np.int64))
    positive_ND = documents.vectors(problem.positive_row_N[differ])
    limit_N = max_negative_score(np.einsum("nd,nd->n", query_ND, positive_ND), MINING)
    for number, query, limit in zip(differ, query_ND, limit_N, strict=True):
        exchanged = np.array(sorted(set(ours[number]) ^ set(theirs[number])))
        score = documents.vectors(exchanged) @ query
        tied += bool(np.ptp(score) <= TIE or (np.abs(score - limit) <= TIE).any())
    return 1 - len(differ) / len(ours), tied / len(ours)


def compared(
    case: str, problems: Mapping[str, Problem], encode_s: Mapping[str, float], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """A row for each: median seconds over rounds in which they take turns, memory and choices of the first."""
    side = {who: "ours" if who == OURS else "theirs" for who in WHO}
    turns: dict[str, list[Turn]] = {who: [] for who in WHO}
    for number in range(rounds):
        for who, taken in turns.items():
            taken.append(turn(who, problems[side[who]], threads))
            print(f"{case}, {who}: {taken[-1].seconds:.2f} s, turn {number + 1} of {rounds}", flush=True)
    mine_s = {who: statistics.median(one.seconds for one in taken) for who, taken in turns.items()}
    found: list[dict[str, Any]] = []
    for who, (first, *_) in turns.items():
        row = {"case": case, "who": who, "encode_s": None, "mine_s": round(mine_s[who], 2)}
        if encode_s:
            row["encode_s"] = round(encode_s[side[who]], 1)
        row |= {"ratio": round(mine_s[who] / mine_s[OURS], 2), "mib": round(first.mib)}
        row |= {"negatives": sum(map(len, first.chosen)), "same": None, "tied": None}
        if who not in (OURS, RANDOM):
            same, tied = agreement(problems["ours"], turns[OURS][0].chosen, first.chosen)
            if round(len(first.chosen) * (1 - same - tied)):
                raise SystemExit(f"{case}: {1 - same - tied:.3%} of {who}'s choices differ, so no speed is quoted")
            row |= {"same": round(same, 6), "tied": round(tied, 6)}
        found.append(row)
    return found


def grown(problems: Sequence[Problem], threads: int) -> list[dict[str, Any]]:
    """Our time and memory over more and more documents."""
    found: list[dict[str, Any]] = []
    for problem in problems:
        one, documents = turn(OURS, problem, threads), rows_of(problem.documents)
        print(f"{documents:,} documents, {OURS}: {one.seconds:.2f} s, {one.mib:.0f} MiB", flush=True)
        vectors_mib = problem.folder.size(problem.documents[0].name) * documents / problem.documents[0].rows / 2**20
        row = {"documents": documents, "vectors_mib": round(vectors_mib), "mine_s": round(one.seconds, 2)}
        found.append(row | {"mib": round(one.mib)})
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000, help="texts; default: %(default)s")
    parser.add_argument("--documents", type=int, default=30_000, help="texts; default: %(default)s")
    parser.add_argument("--vector-queries", type=int, default=50_000, help="default: %(default)s")
    parser.add_argument("--vector-documents", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=384, help="of the vectors; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each in the first two parts; %(default)s")
    asked = parsed(parser, SMALL)
    for queries, documents in ((asked.queries, asked.documents), (asked.vector_queries, asked.vector_documents)):
        if not 0 < queries <= documents:
            parser.error(
                f"{queries:,} queries need as many documents, each its own positive; there are {documents:,}"
            )
    return asked


def main() -> None:
    asked = arguments()
    os.environ["TQDM_DISABLE"] = "1"  # the peers' bars, in the processes of their turns
    with tempfile.TemporaryDirectory() as temporary:
        folder = Folder.open(temporary)
        encoding = started(_encode, asked.threads, folder / "texts", asked.queries, asked.documents)
        both, encode_s = received(*encoding, "encoding")
        case = f"{asked.queries:,} x {asked.documents:,} texts"
        rows = compared(case, both, encode_s, asked.rounds, asked.threads)
        sizes = [times * asked.vector_documents for times in GROWTH]
        stored = vector_problems(folder / "vectors", asked.vector_queries, sizes, asked.width)
        case = f"{asked.vector_queries:,} x {sizes[0]:,} vectors"
        rows += compared(case, {"ours": stored[0], "theirs": stored[0]}, {}, asked.rounds, asked.threads)
        growth = grown(stored, asked.threads)
    console = Console(width=130)
    console.print(table("Mining", rows))
    console.print(table(f"Ours, {asked.vector_queries:,} queries", growth))
    content = {"threads": asked.threads, "width": asked.width, "rows": rows, "growth": growth}
    write(asked.results, "mine.json", content)


if __name__ == "__main__":
    main()
