"""A teacher behind an URL, against a real HTTP server on the loopback address."""

import hashlib

import numpy as np
import pytest

from qzhou.config.model import ModelSection
from qzhou.data.storage import Folder
from qzhou.encoder import load_text_encoder
from qzhou.encoder.vectors import key_of
from qzhou.errors import ModelError
from tests.embedding_server import serving

BACKBONE = ModelSection(backbone="unused")
KEY = "sk-teacher-0123456789"


def vector_of(text, salt="", jitter=0.0):
    digits = hashlib.sha256(f"{salt}{text}".encode()).digest()
    return [byte - 128.0 + jitter * (-1) ** place for place, byte in enumerate(digits)]


def embeddings(salt="", jitter=0.0, width=32):
    def reply(body, _):
        data = [
            {"object": "embedding", "index": n, "embedding": vector_of(t, salt, jitter)[:width]}
            for n, t in enumerate(body["input"])
        ]
        return 200, {
            "object": "list",
            "data": data[::-1],
            "model": body["model"],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }

    return reply


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)


def load(spec):
    return load_text_encoder(spec, BACKBONE, api_key_env="TEACHER_KEY")


def test_vectors_are_of_unit_length_and_in_the_order_of_the_texts():
    texts = [f"text {number}" for number in range(150)]  # three requests

    with serving(embeddings()) as spec:
        found = load(spec).encode(texts)

    expected = np.array([vector_of(text) for text in texts], dtype=np.float32)
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_vectors_that_differ_in_their_last_digits_are_the_same_model_and_others_are_not(tmp_path):
    """Else all that an endpoint was paid for would be paid for again, or old vectors stand for a new model's."""
    folder = Folder.open(str(tmp_path))
    reply = [embeddings()]
    with serving(lambda body, key: reply[0](body, key)) as spec:
        first = key_of(load(spec), folder)
        reply[0] = embeddings(jitter=0.2)  # of 128: a cosine of 0.99999
        again = key_of(load(spec), folder)
        reply[0] = embeddings(salt="retrained")
        other = key_of(load(spec), folder)
        reply[0] = embeddings()
        back = key_of(load(spec), folder)
        reply[0] = embeddings(width=16)
        narrow = key_of(load(spec), folder)

    assert first == again == back
    assert len({first, other, narrow}) == 3


def test_two_models_at_one_address_are_stored_apart(tmp_path):
    folder = Folder.open(str(tmp_path))

    with serving(embeddings()) as spec:
        assert key_of(load(spec), folder) != key_of(load(f"{spec}-large"), folder)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": {"message": f"wrong key Bearer {KEY}"}}), r"gives no embeddings: .*wrong key .*\*\*\*"),
        ((200, {"object": "list", "data": []}), "gives no embeddings"),
        ((200, {"unexpected": True}), "gives no embeddings"),
        ((200, {"data": [{"index": 0, "embedding": [1.0]}], "object": "list"}), "1 vectors for 2 texts"),
    ],
)
def test_what_is_no_embedding_is_one_clear_error_without_the_key(answer, said):
    with serving(lambda *_: answer) as spec, pytest.raises(ModelError, match=said) as caught:
        load(spec).encode(["a", "b"])

    assert "sk-tea" not in str(caught.value)


def test_an_url_without_a_model_is_refused():
    with pytest.raises(ModelError, match=r"names no model; write it as http://x/v1#model-name"):
        load("http://x/v1")


CONTEXT = {"error": {"message": "This model's maximum context length is 100 tokens."}}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, CONTEXT),
        (413, {}),
        (422, CONTEXT),
        (400, {"error": "`inputs` must have less than 512 tokens. Given: 812", "error_type": "Validation"}),
        (400, {"detail": "input length 812 tokens must be less than 512"}),
        (500, {"error": {"message": "input (812 tokens) is too large to process"}}),
    ],
)
def test_a_text_that_is_too_long_for_an_endpoint_is_cut_and_counted_and_the_others_stay(status, said):
    """OpenAI, vLLM, TEI and llama.cpp in their words: one text of 1,024 would end mining."""

    def reply(body, authorization):
        if max(map(len, body["input"])) > 100:
            return status, said
        return embeddings()(body, authorization)

    texts = ["short", "x" * 1000, "another"]
    with serving(reply) as spec:
        encoder = load(spec)
        found = encoder.encode(texts)
        short = encoder.encode([texts[0], "x" * 75, texts[2]])

    assert encoder.truncated == 1
    assert np.allclose(found[[0, 2]], short[[0, 2]])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("knows", ["truncate", "nothing of it", "and refuses the field"])
def test_an_endpoint_that_can_truncate_is_asked_to_and_another_gets_shorter_texts(knows):
    """This project's endpoint refuses a long text and names ``truncate``; in parts it would have another vector."""
    asked = []
    long = "x" * 1000
    refusal = {"message": "'input[1]' has more than the 24 tokens", "code": "context_length_exceeded"}

    def reply(body, authorization):
        asked.append((len(body["input"]), body.get("truncate")))
        if body.get("truncate") and knows == "and refuses the field":
            return 400, {"error": {"message": "unknown field truncate"}}
        if max(map(len, body["input"])) > 100 and not (body.get("truncate") and knows == "truncate"):
            return 400, {"error": refusal}
        status, answer = embeddings()({**body, "input": [text[:100] for text in body["input"]]}, authorization)
        answer["usage"]["truncated_texts"] = sum(len(text) > 100 for text in body["input"])
        return status, answer

    with serving(reply) as spec:
        encoder = load(spec)
        found = encoder.encode(["short", long, "another"])

    cut = np.array(vector_of(long[:100]))
    assert encoder.truncated == 1
    assert np.isfinite(found).all()
    assert np.allclose(found[1], cut / np.linalg.norm(cut)) == (knows == "truncate")
    if knows == "truncate":
        assert asked == [(3, None), (3, True)]
    else:
        assert sum(bool(one) for _, one in asked) == 1, "it is asked once"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_refused_with_its_text(wrong):
    def reply(body, authorization):
        status, answer = embeddings()(body, authorization)
        for one in answer["data"]:
            one["embedding"][3] = wrong if body["input"][one["index"]] == "the second" else 0.5
        return status, answer

    with serving(reply) as spec, pytest.raises(ModelError, match=r"not finite .* for the text 'the second'"):
        load(spec).encode(["the first", "the second", "the third"])


def test_another_refusal_is_an_error_at_once():
    asked = []

    def reply(body, _):
        asked.append(len(body["input"]))
        return 400, {"error": {"message": "there is no such model"}}

    with serving(reply) as spec, pytest.raises(ModelError, match="no such model"):
        load(spec).encode(["a", "b"])
    assert asked == [2]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_endpoint_that_fails_for_a_while_is_asked_again(status):
    asked = []

    def reply(body, authorization):
        asked.append(len(body["input"]))
        return embeddings()(body, authorization) if len(asked) > 2 else (status, {"error": {"message": "busy"}})

    with serving(reply) as spec:
        assert load(spec).encode(["a", "b"]).shape == (2, 32)
    assert asked == [2, 2, 2]
