"""A finished run with a tiny model, and ``python serve/app.py`` on it as a user starts it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from qzhou.config.recipe import load_recipe
from qzhou.data.records import Document
from qzhou.data.storage import write_records
from qzhou.encoder import EmbeddingModel
from qzhou.encoder.export import save_sentence_transformer
from qzhou.run.run import Run
from qzhou.serving.index import EncodePart, Part, assemble, read_part

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"
MAX_TOKENS = 24
BATCH_TOKENS = 96  # small, so that requests are cut into groups and groups are joined into batches
START_S = 600
WORDS = [
    "how",
    "to",
    "sort",
    "list",
    "open",
    "file",
    "read",
    "lines",
    "map",
    "key",
    "value",
    "tree",
    "graph",
    "node",
]

RECIPE = """
[run]
name = "tiny"
storage = {storage}
[model]
backbone = "none"
max_query_tokens = 8
max_document_tokens = {max_tokens}
dtype = "float32"
[[datasets]]
name = "any"
reader = "jsonl"
rule = "title_body"
paths = ["none.jsonl"]
[training]
workers = 1
[training.stage1]
steps = 1
learning_rate = 1e-4
[training.stage2]
steps = 1
learning_rate = 1e-4
[serving]
port = {port}
max_batch_tokens = {batch_tokens}
max_inputs = 64
token_ids = true
max_body_mib = 1
max_request_chars = 30_000
measure_precision = false
{more}
"""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint, and what it was started from."""

    port: int
    model: Path
    recipe: Path
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """Those of its cluster, each with its command line; what has just ended is left out."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            try:
                words = one.cmdline()
            except psutil.Error:
                continue
            yield one, words

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)


def write_run(folder: Path, port: int, more: str = "") -> Path:
    """A finished run with a tiny BERT of random weights; gives back its recipe file.

    Args:
        more: Further lines of the recipe, in its table ``serving``.
    """
    write_model(folder / "runs" / "tiny" / "model", seed=0)
    recipe = folder / "tiny.toml"
    recipe.write_text(
        RECIPE.format(
            storage=json.dumps(str(folder / "runs")),
            port=port,
            max_tokens=MAX_TOKENS,
            batch_tokens=BATCH_TOKENS,
            more=more,
        ),
        "utf-8",
    )
    return recipe


def write_model(place: Path, seed: int, **settings: object) -> None:
    """A finished model of random weights; its manifest's fingerprint is the seed."""
    place.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz:", *WORDS]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = place.parent / "vocab.txt"
    words.write_text("\n".join(dict.fromkeys(vocabulary)), "utf-8")
    tokenizer = BertTokenizerFast(str(words))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.5, max_position_embeddings=64,
        matryoshka_dimensions=[8, 16],
        **{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, **settings},
    )  # fmt: skip
    model = EmbeddingModel(BertModel(config, add_pooling_layer=False), "mean").eval()
    save_sentence_transformer(model, tokenizer, place, max_tokens=MAX_TOKENS, prompts={"code": "key: "})
    write_manifest(place, str(seed))


def write_manifest(stage: Path, fingerprint: str, **inputs: str) -> None:
    manifest = {
        "stage": stage.name, "fingerprint": fingerprint, "inputs": inputs, "outputs": {}, "settings": {},
        "code_version": "c", "finished_at": "then", "wall_s": 1.0,
    }  # fmt: skip
    (stage / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def write_index(recipe: Path, texts: list[str]) -> None:
    """What ``jobs/index.py`` leaves in the run."""
    loaded = load_recipe(recipe)
    run = Run.at(loaded).folder
    write_records(run / "documents", [Document(id=f"d{n}", text=text) for n, text in enumerate(texts)], Document)
    parts = [Part(run / "documents", name, "") for name in (run / "documents").files(".parquet")]
    encode = EncodePart(loaded, (run / "model").uri, run / "encoded")
    files = [encode(table)["files"][0].as_py() for one in enumerate(parts) for table in read_part(None, one)]
    count = assemble(parts, files, run / "encoded", (run / "index").create())
    assert count == len(set(texts))
    write_manifest(Path(run.path) / "index", "i", model="0")


def environment(home: Path) -> dict[str, str]:
    ours = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    # Ray writes its token below HOME.
    return {**kept, "PYTHONPATH": str(ROOT / "platform"), "HOME": str(home), "QZHOU_API_KEYS": f"another,{KEY}"}


@contextlib.contextmanager
def serving(recipe: Path, port: int) -> Iterator[Endpoint]:
    """``python serve/app.py`` for the block, ended as by ``kill``."""
    folder = recipe.parent
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "serve" / "app.py"), str(recipe)],
        cwd=folder,  # not the checkout: what is served must not depend on where it is started
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr.txt").open("w"),
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        said = next((line for line in lines if line.startswith("ready: ")), None)
        assert said, (folder / "stderr.txt").read_text("utf-8")
        yield Endpoint(port, folder / "runs" / "tiny" / "model", recipe, process)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=START_S)
    assert process.returncode == 0, (folder / "stderr.txt").read_text("utf-8")
    assert "stopping" in rest
