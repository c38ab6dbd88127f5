"""The endpoint as clients meet it: ``python serve/app.py`` on a local Ray, asked with OpenAI's client and others."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mteb
import numpy as np
import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from sentence_transformers import SentenceTransformer

from qzhou.cluster.ports import free_port
from qzhou.config.model import ModelSection
from qzhou.data.prompts import Prompt
from qzhou.data.records import PairExample, RetrievalExample
from qzhou.encoder import load_encoder, load_text_encoder
from qzhou.evaluation.judge.local_tasks import retrieval_task, sts_task
from qzhou.evaluation.judge.mteb_models import MtebEncoder
from tests.browser import chromium, loaded, show
from tests.ray.served import (
    KEY,
    MAX_TOKENS,
    ROOT,
    START_S,
    WORDS,
    Endpoint,
    environment,
    serving,
    write_index,
    write_model,
    write_run,
)

GENERATED = 100  # requests for each route that takes some, and mode
DOCUMENTS = ["sort the list", "open a file and read lines", "the key and value of a map", "a tree is a graph"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    port = free_port()
    write_model(folder / "other", seed=5)
    (folder / "keys.toml").write_text('[a-team]\nkey = "of the team"\n', "utf-8")
    models = f'models = {{ other = "{folder / "other"}" }}'
    more = f'{models}\ntruncate = true\napi_keys_file = "{folder / "keys.toml"}"'
    recipe = write_run(folder, port, more=more)
    write_index(recipe, DOCUMENTS)
    with serving(recipe, port) as running:
        yield running


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
    # the client asks for base64 and decodes it
    encoded = client.embeddings.create(model="tiny", input=texts)

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

    assert usage.prompt_tokens == usage.total_tokens == sum(map(len, encoder.tokenize(texts)[0]))


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


def test_the_models_are_listed_with_what_they_can(client):
    tiny, other = client.models.list()
    assert client.models.retrieve("tiny") == tiny
    with pytest.raises(openai.NotFoundError, match="The model 'none' does not exist here"):
        client.models.retrieve("none")

    assert (tiny.id, other.id) == ("tiny", "other")
    assert (tiny.dimensions, tiny.max_tokens, tiny.prompts) == (
        [8, 16, 32],
        MAX_TOKENS,
        ["code", "document", "query"],
    )
    assert (tiny.indexed, other.indexed) == (len(DOCUMENTS), 0)


def test_each_model_answers_under_its_name(endpoint, client):
    place = str(endpoint.recipe.parent / "other")
    other = load_encoder(place, max_tokens=MAX_TOKENS, dtype="float32", device="cpu")
    texts = sentences(9)

    answer = client.embeddings.with_raw_response.create(model="other", input=texts)

    assert (vectors(answer.parse()) * other.encode(texts)).sum(axis=1).min() >= 0.9999
    assert answer.headers["x-model-fingerprint"] == other.fingerprint
    with pytest.raises(openai.BadRequestError, match="'instruction'"):
        client.embeddings.create(model="other", input=[1, 2], extra_body={"instruction": "find"})


def test_token_ids_give_the_vectors_of_their_texts(endpoint, client):
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")
    texts = sentences(6)
    whole = encoder.tokenizer(texts)["input_ids"]
    plain = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]

    for ids in (whole, plain, plain[0]):
        served = vectors(client.embeddings.create(model="tiny", input=ids))
        assert (served * own(endpoint, texts)[: len(served)]).sum(axis=1).min() >= 0.9999
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="tiny", input=[5, 50_000])


def test_the_endpoint_the_encoder_and_sentence_transformers_agree(endpoint, client):
    texts = sentences(20)
    theirs = SentenceTransformer(str(endpoint.model), device="cpu").encode(texts, normalize_embeddings=True)

    served = vectors(client.embeddings.create(model="tiny", input=texts))

    assert (served * theirs).sum(axis=1).min() >= 0.9999
    assert (served * own(endpoint, texts)).sum(axis=1).min() >= 0.9999


def test_langchain_s_and_llamaindex_s_clients_work(endpoint):
    langchain = OpenAIEmbeddings(
        model="tiny", base_url=f"{endpoint.url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    llama = OpenAIEmbedding(model_name="tiny", api_base=f"{endpoint.url}/v1", api_key=KEY)
    texts = sentences(12)

    for served in (langchain.embed_documents(texts), llama.get_text_embedding_batch(texts)):
        assert (np.array(served) * own(endpoint, texts)).sum(axis=1).min() >= 0.9999
    for one in (langchain.embed_query("sort a list"), llama.get_query_embedding("sort a list")):
        assert float(np.array(one) @ own(endpoint, ["sort a list"])[0]) >= 0.9999


def asked(endpoint: Endpoint, route: str, **body: object) -> dict:
    request = urllib.request.Request(
        endpoint.url + route, json.dumps({"model": "tiny", **body}).encode(), {"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_reranking_similarity_and_search_go_by_the_model_s_cosines(endpoint):
    query = "sort a list"
    scores = own(endpoint, DOCUMENTS) @ own(endpoint, [query])[0]
    order = np.argsort(-scores).tolist()

    ranked = asked(endpoint, "/v1/rerank", query=query, documents=DOCUMENTS, top_n=3)["results"]
    similar = asked(endpoint, "/v1/similarity", queries=query, documents=DOCUMENTS)["scores"]
    found = asked(endpoint, "/v1/search", query=query, top_n=2)["results"]

    assert [one["index"] for one in ranked] == order[:3]
    np.testing.assert_allclose([one["relevance_score"] for one in ranked], scores[order[:3]], atol=1e-5)
    np.testing.assert_allclose(similar, scores[None], atol=1e-5)
    assert [one["text"] for one in found] == [DOCUMENTS[n] for n in order[:2]]
    # 16 bits
    np.testing.assert_allclose([one["score"] for one in found], scores[order[:2]], atol=2e-3)


def test_search_by_words_and_by_both(endpoint):
    query = DOCUMENTS[1]
    by_words, both = (
        asked(endpoint, "/v1/search", query=query, by=by, top_n=2)["results"] for by in ("words", "both")
    )
    assert by_words[0]["text"] == both[0]["text"] == query
    assert by_words[0]["score"] > 0
    assert both[0]["score"] == pytest.approx(2 / 61)  # the first of both rankings
    assert asked(endpoint, "/v1/search", query="wordthatnodocumenthas", by="words")["results"] == []


def test_eight_bits_and_one_bit(endpoint):
    whole = own(endpoint, ["sort a list"])[0]

    eight = asked(endpoint, "/v1/embeddings", input="sort a list", output_dtype="int8")["data"][0]["embedding"]
    bits = asked(endpoint, "/v1/embeddings", input="sort a list", output_dtype="ubinary")["data"][0]["embedding"]

    assert float(np.array(eight) @ whole) / np.linalg.norm(eight) > 0.999
    assert bits == np.packbits(whole > 0).tolist()


def test_limits_are_refused_with_both_numbers(client):
    with pytest.raises(openai.BadRequestError, match="65 texts, and a request may hold 64"):
        client.embeddings.create(model="tiny", input=["x"] * 65)
    with pytest.raises(openai.BadRequestError, match="30,001 characters"):
        client.embeddings.create(model="tiny", input="x" * 30_001)
    with pytest.raises(
        openai.BadRequestError, match=r"'input\[1\]' has more than the 24 tokens that the model reads"
    ):
        client.embeddings.create(model="tiny", input=["x", "tree " * 50], extra_body={"truncate": False})


def test_a_body_that_is_too_long_is_refused_with_413(endpoint):
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked(endpoint, "/v1/embeddings", input=["x" * 1000] * 1100)

    assert caught.value.code == 413
    assert json.load(caught.value)["error"]["code"] == "body_too_large"


def test_pages_of_other_origins_are_not_let_in(endpoint):
    with requests.options(
        f"{endpoint.url}/v1/embeddings",
        headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"},
        timeout=300,
    ) as answer:
        assert "access-control-allow-origin" not in answer.headers


def test_hundreds_of_generated_requests_are_answered_and_none_fails_inside(endpoint):
    """Half of them keep to the OpenAPI document, half break it."""
    schema = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")
    statuses: Counter[int] = Counter()
    with requests.Session() as http:
        for operation in (found.ok() for found in schema.get_all_operations()):
            for mode in GenerationMode:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=GENERATED, deadline=None, database=None, suppress_health_check=[*HealthCheck]
                )
                def ask(case):
                    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                        case.body["model"] = "tiny"
                    answer = case.call(session=http, headers={"Authorization": f"Bearer {KEY}"}, timeout=300)
                    statuses[answer.status_code] += 1
                    assert answer.status_code < 500, answer.text

                if operation.method.upper() == "POST":
                    ask()
    assert sum(statuses.values()) >= 600
    assert {200, 400} <= set(statuses)


def test_numbers_for_prometheus(endpoint, client):
    own_key = hashlib.sha256(hashlib.sha256(KEY.encode()).digest()).hexdigest()[:8]
    before = metric(endpoint, "qzhou_tokens_total", model="tiny", key=own_key)
    used = client.embeddings.create(model="tiny", input=["a text of its own"]).usage.total_tokens

    assert metric(endpoint, "qzhou_tokens_total", model="tiny", key=own_key) == before + used
    assert metric(endpoint, "qzhou_waiting_tokens", model="tiny") == 0
    assert metric(endpoint, "qzhou_requests_total", route="/v1/embeddings", status="200") > 0


def metric(endpoint: Endpoint, name: str, **labels: str) -> float:
    """The value of one replica's series; 0 where there is none yet."""
    with urllib.request.urlopen(f"{endpoint.url}/metrics", timeout=300) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return next(
        (one.value for one in samples if labels.items() <= one.labels.items() and one.labels["replica"]), 0.0
    )


def test_the_log_has_a_line_for_each_request_and_no_text_of_one(endpoint):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = urllib.request.Request(
        f"{endpoint.url}/v1/embeddings",
        json.dumps({"model": "tiny", "input": "a secret tree"}).encode(),
        {"Authorization": f"Bearer {KEY}", "traceparent": trace, "X-Request-Id": "mine-1"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert answer.headers["x-request-id"] == "mine-1"

    lines = logged(endpoint, "mine-1")

    assert lines[0]["trace_id"] == trace.split("-")[1]
    assert (lines[0]["status"], lines[0]["path"], lines[0]["model"]) == (200, "/v1/embeddings", "tiny")
    assert lines[0]["tokens"] > 0
    written = "".join(path.read_text("utf-8", "replace") for path in log_files(endpoint))
    assert "secret tree" not in written
    assert KEY not in written


def test_a_key_of_the_file_is_named_and_one_that_is_added_is_let_in_without_a_restart(endpoint):
    def ask(key: str) -> None:
        endpoint.client(key).embeddings.create(model="tiny", input="a tree", extra_headers={"X-Request-Id": key})

    ask("of the team")
    with pytest.raises(openai.AuthenticationError):
        ask("new")
    file = endpoint.recipe.parent / "keys.toml"
    file.write_text(file.read_text("utf-8") + '[new-team]\nkey = "new"\ntokens_per_minute = 1\n', "utf-8")
    deadline = time.monotonic() + 300
    while True:
        try:
            ask("new")
            break
        except openai.AuthenticationError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with pytest.raises(openai.RateLimitError, match="1 tokens per minute"):
        ask("new")

    assert metric(endpoint, "qzhou_tokens_total", model="tiny", key="a-team") > 0
    assert metric(endpoint, "qzhou_tokens_total", model="tiny", key="new-team") > 0
    assert {line["key"] for line in logged(endpoint, "new")} >= {"new-team"}


def log_files(endpoint: Endpoint) -> list[Path]:
    return sorted((session_folder(endpoint) / "logs" / "serve").glob("*EmbeddingServer*"))


def session_folder(endpoint: Endpoint) -> Path:
    """Where Ray keeps the logs of this endpoint's cluster."""
    words = (word for _, command in endpoint.processes() for word in command)
    return Path(next(word for word in words if word.startswith("--session_dir=")).partition("=")[2])


def logged(endpoint: Endpoint, request_id: str) -> list[dict]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = [json.loads(line) for path in log_files(endpoint) for line in path.read_text("utf-8").splitlines()]
        if found := [line for line in lines if line.get("request_id") == request_id and "path" in line]:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no line of {request_id}")


def test_the_page_works_in_a_browser(endpoint):
    with chromium() as page:
        show(page, f"{endpoint.url}/", width=1100, theme="light")
        wait = WebDriverWait(page, 20)
        page.find_element(By.ID, "key").send_keys(KEY)
        page.execute_script("document.getElementById('key').dispatchEvent(new Event('change'))")
        wait.until(lambda _: "32 dimensions" in page.find_element(By.ID, "about").text)
        box = page.find_element(By.ID, "documents")
        box.clear()
        box.send_keys("\n".join(DOCUMENTS))
        page.find_element(By.ID, "compare").click()
        similar = wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, "#similar li"))
        page.find_element(By.ID, "search").click()
        found = wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, "#found li"))

        scores = [float(one.find_element(By.CLASS_NAME, "score").text) for one in similar]
        assert len(similar) == len(found) == len(DOCUMENTS)
        assert scores == sorted(scores, reverse=True)
        severe = [line["message"] for line in page.get_log("browser") if line["level"] == "SEVERE"]
        assert not [said for said in severe if "401" not in said], "the page first asks without a key"
        assert all(address.startswith((endpoint.url, "data:")) for address in loaded(page))


def test_the_response_carries_the_model_s_fingerprint(endpoint, client):
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")

    raw = client.embeddings.with_raw_response.create(model="tiny", input="x")

    assert raw.headers["x-model-fingerprint"] == encoder.fingerprint


@pytest.mark.parametrize("route", ["/health", "/ready"])
def test_probes_need_no_key(endpoint, route):
    with urllib.request.urlopen(endpoint.url + route, timeout=300) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [("GET", "/v1/embedding", 404), ("GET", "/v1/embeddings", 405), ("POST", "/v1/embeddings", 401)],
)
def test_every_refusal_has_openai_s_shape(endpoint, method, route, status):
    request = urllib.request.Request(endpoint.url + route, method=method, data=b"{" if method == "POST" else None)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=300)

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
    served = load_text_encoder(f"{endpoint.url}/v1#tiny", section, api_key_env="JUDGED_KEY")
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
