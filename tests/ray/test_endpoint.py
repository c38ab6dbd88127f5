"""The endpoint as clients meet it: ``python serve/app.py`` on a local Ray, asked with OpenAI's own client."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mteb
import numpy as np
import openai
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from qzhou.encoder import EmbeddingModel, load_encoder, load_teacher
from qzhou.encoder.export import save_sentence_transformer
from qzhou.evaluation.models import MtebEncoder
from qzhou.evaluation.tasks import retrieval_task, sts_task
from qzhou.prompts import Prompt
from qzhou.records import PairExample, RetrievalExample
from qzhou.sections import ModelSection

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"
MAX_TOKENS = 24
BATCH_TOKENS = 96  # small, so that requests are cut into groups and groups are joined into batches
START_S = 120
WORDS = ["how", "to", "sort", "list", "open", "file", "read", "lines", "map", "key", "value", "tree", "graph", "node"]

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
batch_wait_ms = 20
"""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint, and what it was started from."""

    port: int
    model: Path
    recipe: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


def write_run(folder: Path, port: int) -> Path:
    """A finished run with a tiny BERT of random weights; gives back its recipe file."""
    run = folder / "runs" / "tiny"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz:", *WORDS]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder.joinpath("vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)), "utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.5, max_position_embeddings=64, matryoshka_dimensions=[8, 16],
    )  # fmt: skip
    model = EmbeddingModel(BertModel(config, add_pooling_layer=False), "mean").eval()
    save_sentence_transformer(model, tokenizer, run / "model", max_tokens=MAX_TOKENS, prompts={"code": "key: "})
    manifest = {
        "stage": "model", "fingerprint": "f", "inputs": {}, "outputs": {}, "settings": {},
        "code_version": "c", "finished_at": "then", "wall_s": 1.0,
    }  # fmt: skip
    (run / "model" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    recipe = folder / "tiny.toml"
    storage = json.dumps(str(folder / "runs"))
    recipe.write_text(
        RECIPE.format(storage=storage, port=port, max_tokens=MAX_TOKENS, batch_tokens=BATCH_TOKENS), "utf-8"
    )
    return recipe


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Ray writes its token below HOME.
    return {**kept, "PYTHONPATH": str(ROOT / "platform"), "HOME": str(home), "QZHOU_API_KEYS": f"another,{KEY}"}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    port = free_port()
    recipe = write_run(folder, port)
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
        yield Endpoint(port, folder / "runs" / "tiny" / "model", recipe)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=START_S)
    assert process.returncode == 0, (folder / "stderr.txt").read_text("utf-8")
    assert "stopping" in rest


@pytest.fixture(scope="module")
def client(endpoint) -> openai.OpenAI:
    return endpoint.client()


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(3)
    return [" ".join(random.choice(WORDS, size=random.integers(1, 30))) for _ in range(count)]


def vectors(response) -> np.ndarray:
    return np.array([one.embedding for one in response.data], dtype=np.float32)


def own(endpoint: Endpoint, texts: list[str]) -> np.ndarray:
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")
    return encoder.encode(texts)


def test_the_endpoint_returns_what_the_encoder_returns_in_the_order_asked(endpoint, client):
    texts = sentences(40)

    served = vectors(client.embeddings.create(model="tiny", input=texts))

    assert (served * own(endpoint, texts)).sum(axis=1).min() >= 0.9999
    others = served @ own(endpoint, texts).T - 2 * np.eye(len(texts))
    assert others.max() < 0.9999, "the random model must tell the texts apart for the order to be seen"


def test_decimals_and_base64_are_the_same_vectors(client):
    texts = sentences(5)

    decimals = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    encoded = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64 and decodes it

    np.testing.assert_allclose(vectors(decimals), vectors(encoded), atol=1e-6)


def test_requests_at_the_same_time_get_the_vectors_they_get_alone(endpoint):
    texts = sentences(48)

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key=KEY, max_retries=0) as asking:
            return await asyncio.gather(*(asking.embeddings.create(model="tiny", input=text) for text in texts))

    batched = np.concatenate([vectors(response) for response in asyncio.run(together())])

    assert (batched * own(endpoint, texts)).sum(axis=1).min() >= 0.9999


def test_a_text_above_the_token_budget_is_truncated_and_encoded(client):
    response = client.embeddings.create(model="tiny", input=["tree " * 500] * 9)

    assert response.usage.prompt_tokens == 9 * MAX_TOKENS


def test_usage_counts_real_tokens(endpoint, client):
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")
    texts = sentences(7)

    usage = client.embeddings.create(model="tiny", input=texts).usage

    assert usage.prompt_tokens == usage.total_tokens == sum(encoder.count_tokens(texts))


def test_an_instruction_goes_through_extra_body(endpoint, client):
    asked = client.embeddings.create(model="tiny", input="sort a list", extra_body={"instruction": "find the key"})
    named = client.embeddings.create(model="tiny", input="sort a list", extra_body={"prompt_name": "code"})

    expected = own(endpoint, [Prompt("find the key").query("sort a list"), "key: sort a list"])
    assert (np.concatenate([vectors(asked), vectors(named)]) * expected).sum(axis=1).min() >= 0.9999


def test_declared_dimensions_are_cut_and_renormalised(endpoint, client):
    cut = vectors(client.embeddings.create(model="tiny", input="sort a list", dimensions=8))[0]

    whole = own(endpoint, ["sort a list"])[0]
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)


def test_other_dimensions_are_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="offers 8, 16, 32") as caught:
        client.embeddings.create(model="tiny", input="x", dimensions=12)
    assert caught.value.param == "dimensions"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="x")
    assert caught.value.code == "model_not_found"


def test_a_wrong_key_is_refused_on_both_routes(endpoint):
    stranger = endpoint.client("wrong")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        stranger.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_an_unknown_argument_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="Did you mean 'instruction'"):
        client.embeddings.create(model="tiny", input="x", extra_body={"instrution": "find"})


def test_the_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_response_carries_the_model_s_fingerprint(endpoint, client):
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")

    raw = client.embeddings.with_raw_response.create(model="tiny", input="x")

    assert raw.headers["x-model-fingerprint"] == encoder.fingerprint


@pytest.mark.parametrize("route", ["/health", "/ready"])
def test_probes_need_no_key(endpoint, route):
    with urllib.request.urlopen(endpoint.url + route, timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [("GET", "/v1/embedding", 404), ("GET", "/v1/embeddings", 405), ("POST", "/v1/embeddings", 401)],
)
def test_every_refusal_has_openai_s_shape(endpoint, method, route, status):
    request = urllib.request.Request(endpoint.url + route, method=method, data=b"{" if method == "POST" else None)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)

    assert caught.value.code == status
    assert set(json.load(caught.value)["error"]) == {"message", "type", "param", "code"}


def test_a_taken_port_ends_with_status_2_and_one_line(endpoint, tmp_path):
    started = subprocess.run(
        [sys.executable, str(ROOT / "serve" / "app.py"), str(endpoint.recipe)],
        env=environment(tmp_path), capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip

    assert started.returncode == 2
    assert started.stderr.splitlines() == [
        f"error: port {endpoint.port} on 127.0.0.1 is taken by another process. Choose another one with --serving.port."
    ]


def test_mteb_gives_the_endpoint_the_scores_of_the_folder_behind_it(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGED_KEY", KEY)
    section = ModelSection(backbone="unused", max_document_tokens=MAX_TOKENS, dtype="float32")
    folder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32")
    served = load_teacher(f"{endpoint.url}/v1#tiny", section, api_key_env="JUDGED_KEY")
    asked = [f"how to {verb} {noun}" for verb in WORDS[2:8] for noun in WORDS[3:]]
    retrieval = [
        RetrievalExample(id=one, dataset="d", query=one, positives=(" ".join([*one.split()[2:], WORDS[n % 14]]),))
        for n, one in enumerate(asked)
    ]
    pairs = [
        PairExample(id=one, dataset="p", text_a=one, text_b=other, score=float(n % 3))
        for n, (one, other) in enumerate(zip(asked, asked[7:], strict=False))
    ]
    tasks = [
        retrieval_task("d", retrieval, max_queries=99, max_documents=999, seed=0),
        sts_task("p", pairs, max_rows=99, seed=0),
    ]

    def scores(encoder):
        model = MtebEncoder(encoder, {"d": Prompt("find it")}, name="judged")
        found = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False, co2_tracker=False)
        return [one.get_score() for one in found.task_results]

    assert scores(served) == pytest.approx(scores(folder), abs=1e-4)
