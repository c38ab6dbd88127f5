import asyncio
import base64
import hashlib

import numpy as np
import pytest

from qzhou.prompts import Prompt
from qzhou.serving.errors import RequestError
from qzhou.serving.schemas import EmbeddingRequest, EmbeddingResponse
from qzhou.serving.service import EmbeddingService, Encoded, ServedModel

WIDTH = 8


class HashEncoder:
    """A unit vector that depends on the text alone; a token is a word."""

    dimensions, max_tokens, fingerprint = WIDTH, 16, "f00d"

    def __init__(self) -> None:
        self.prompts = {"query": "Q: ", "code": "Find code: "}
        self.seen: list[str] = []

    def encode(self, texts):
        self.seen += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]


def answer(encoder: HashEncoder, *, matryoshka=(), max_inputs=4, **fields) -> EmbeddingResponse:
    async def encode(texts):
        return Encoded(encoder.encode(texts), encoder.count_tokens(texts))

    model = ServedModel.of(encoder, "m", matryoshka=matryoshka)
    service = EmbeddingService(encode, model, max_inputs=max_inputs)
    return asyncio.run(service.embed(EmbeddingRequest(**{"model": "m", "input": "a text", **fields})))


def seen(**fields) -> list[str]:
    encoder = HashEncoder()
    answer(encoder, **fields)
    return encoder.seen


def refusal(**fields) -> RequestError:
    encoder = HashEncoder()
    with pytest.raises(RequestError) as caught:
        answer(encoder, **fields)
    assert encoder.seen == []
    return caught.value


def test_vectors_come_in_the_order_of_the_texts():
    texts = ["c", "a", "b"]

    data = answer(HashEncoder(), input=texts).data

    assert [one.index for one in data] == [0, 1, 2]
    np.testing.assert_array_equal(
        np.array([one.embedding for one in data], dtype=np.float32), HashEncoder().encode(texts)
    )


def test_base64_holds_the_same_float32_as_the_decimals():
    decimals = answer(HashEncoder()).data[0].embedding
    encoded = answer(HashEncoder(), encoding_format="base64").data[0].embedding

    assert np.frombuffer(base64.b64decode(encoded), dtype="<f4").tolist() == decimals


def test_usage_counts_the_tokens_of_all_texts_with_their_prompts():
    usage = answer(HashEncoder(), input=["one two", "three"], prompt_name="code").usage

    assert (usage.prompt_tokens, usage.total_tokens) == (7, 7)


def test_another_model_s_name_is_not_found():
    error = refusal(model="text-embedding-3-small")

    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")


def test_no_text_is_refused():
    assert refusal(input=[]).param == "input"


def test_more_texts_than_allowed_are_refused_with_both_numbers():
    assert "5 texts" in str(refusal(input=["x"] * 5, max_inputs=4))
    assert "may hold 4" in str(refusal(input=["x"] * 5, max_inputs=4))


def test_an_empty_text_is_encoded_as_the_literal_null():
    assert seen(input=["", "x"]) == ["Null", "x"]
    assert seen(input="", prompt_name="code") == ["Find code: Null"]


def test_all_dimensions_may_be_named():
    assert len(answer(HashEncoder(), dimensions=WIDTH).data[0].embedding) == WIDTH


@pytest.mark.parametrize("dimensions", [4, 9, 0, -8])
def test_dimensions_the_model_is_not_trained_for_are_refused(dimensions):
    error = refusal(dimensions=dimensions)

    assert error.param == "dimensions"
    assert "offers 8" in str(error)


def test_a_matryoshka_model_s_vector_is_cut_and_made_a_unit_vector_again():
    whole = np.array(answer(HashEncoder()).data[0].embedding)

    cut = np.array(answer(HashEncoder(), dimensions=3, matryoshka=(3, 5)).data[0].embedding)

    np.testing.assert_allclose(cut, whole[:3] / np.sqrt((whole[:3] ** 2).sum()), rtol=1e-6)


def test_an_instruction_is_put_before_a_query_as_in_training():
    prompt = Prompt("Find the answer")

    assert seen(instruction="Find the answer") == [prompt.query("a text")]
    assert seen(instruction="Find the answer", input_type="query") == [prompt.query("a text")]


def test_a_document_stays_bare_under_an_instruction():
    assert seen(instruction="Find the answer", input_type="document") == ["a text"]


def test_an_input_type_takes_the_model_s_own_prompt_of_that_name_if_there_is_one():
    assert seen(input_type="query") == ["Q: a text"]
    assert seen(input_type="document") == ["a text"]


def test_without_any_of_them_the_text_stays_bare():
    assert seen() == ["a text"]


def test_an_unknown_prompt_is_refused_with_the_known_ones():
    assert "it declares 'query', 'code'" in str(refusal(prompt_name="sts"))


@pytest.mark.parametrize("other", [{"instruction": "Find it"}, {"input_type": "query"}])
def test_a_prompt_chosen_in_two_ways_is_refused(other):
    assert refusal(prompt_name="code", **other).param == "prompt_name"


def test_the_listing_has_openai_s_shape():
    listing = ServedModel.of(HashEncoder(), "m", created=12).listing().model_dump()

    assert listing == {
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 12, "owned_by": "qzhou"}],
    }
