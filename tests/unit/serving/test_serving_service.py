import asyncio
import base64
import hashlib
import re

import numpy as np
import pytest

from qzhou.data.prompts import Prompt
from qzhou.serving.engine import Encoded
from qzhou.serving.errors import RequestError
from qzhou.serving.schemas import (
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    SearchRequest,
    SimilarityRequest,
    with_side,
)
from qzhou.serving.service import EmbeddingService, RequestLimits, ServedModel, presented

WIDTH = 8


class HashEncoder:
    """A unit vector that depends on the text alone; a token is a word."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts):
        self.seen += texts
        seeds = [int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:4]) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, texts):
        return [len(text.split() if isinstance(text, str) else text) for text in texts]


def service_of(
    encoder: HashEncoder, *, matryoshka=(), max_inputs=4, too_long=(), index=None, **limits
) -> EmbeddingService:
    """``too_long`` are the rows that the model does not read to their end."""

    async def encode(texts, limit):
        if too_long and limit is not None:
            raise RequestError("too long", code="context_length_exceeded", row=too_long[0])
        return Encoded(
            encoder.encode(texts), encoder.count_tokens(texts), [row in too_long for row in range(len(texts))]
        )

    model = ServedModel(
        name="m", dimensions=WIDTH, fingerprint="f00d", max_tokens=16, vocabulary=100,
        prompts={"query": "Q: ", "code": "Find code: "}, matryoshka=matryoshka, created=12,
    )  # fmt: skip
    return EmbeddingService(encode, model, RequestLimits(max_inputs, 1000, **{"token_ids": True, **limits}), index)


def answer(encoder: HashEncoder, *, matryoshka=(), max_inputs=4, too_long=(), **fields) -> EmbeddingResponse:
    service = service_of(encoder, matryoshka=matryoshka, max_inputs=max_inputs, too_long=too_long)
    found = asyncio.run(service.embed(EmbeddingRequest(**{"model": "m", "input": "a text", **fields})))
    for one in found["data"]:
        if not isinstance(one["embedding"], str):
            one["embedding"] = one["embedding"].tolist()
    return EmbeddingResponse(**found)


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

    assert (usage.prompt_tokens, usage.total_tokens, usage.truncated_texts) == (7, 7, 0)
    cut = answer(HashEncoder(), input=["one", "two", "three"], too_long=(0, 2), truncate=True)
    assert cut.usage.truncated_texts == 2


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


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_prompt_for_documents_has_one_of_three_names(name):
    """As in training and evaluation: the endpoint knew the first one only."""
    request = EmbeddingRequest(model="m", input="a", input_type="document")

    assert presented(request, ["a"], {"query": "Q: ", name: "D: "}) == ["D: a"]


def test_a_side_that_has_several_prompts_is_refused_and_no_bare_text():
    """LangChain's users of a model with an instruction a dataset got vectors of bare texts."""
    request = EmbeddingRequest(model="m", input="a", input_type="query")

    with pytest.raises(RequestError, match="has no prompt for all queries, but 'facts', 'law'"):
        presented(request, ["a"], {"facts": "F: ", "law": "L: ", "document": ""})
    assert presented(request, ["a"], {}) == ["a"]
    assert presented(request, ["a"], {"facts": "F: ", "query": ""}) == ["a"]


def test_without_any_of_them_the_text_stays_bare():
    assert seen() == ["a text"]


def test_an_unknown_prompt_is_refused_with_the_known_ones():
    assert "it declares 'query', 'code'" in str(refusal(prompt_name="sts"))


@pytest.mark.parametrize("other", [{"instruction": "Find it"}, {"input_type": "query"}])
def test_a_prompt_chosen_in_two_ways_is_refused(other):
    assert refusal(prompt_name="code", **other).param == "prompt_name"


def test_the_listing_has_openai_s_fields_and_says_what_the_model_can():
    listing = service_of(HashEncoder(), matryoshka=(4,)).model.listing().model_dump()

    assert listing | {"id": "m", "object": "model", "created": 12, "owned_by": "qzhou"} == listing
    assert (listing["dimensions"], listing["max_tokens"], listing["prompts"]) == ([4, 8], 16, ["code", "query"])


def test_token_ids_reach_the_encoder_as_they_are():
    assert seen(input=[5, 6, 7]) == [(5, 6, 7)]
    assert seen(input=[[5, 6], [7]]) == [(5, 6), (7,)]


@pytest.mark.parametrize("ids", [[1, 100], [-1], [[1], [2**40]]])
def test_token_ids_of_another_tokenizer_are_refused_with_the_way_out(ids):
    error = refusal(input=ids)

    assert "end at 99" in str(error)
    assert "check_embedding_ctx_length=False" in str(error)


def test_token_ids_are_refused_unless_the_recipe_allows_them():
    """LangChain's default client sends OpenAI's ids, which are other words to every other tokenizer."""
    service = service_of(HashEncoder(), token_ids=False)

    for ids in ([5269, 311, 3460, 264, 1160], [[1, 2], [3]]):
        with pytest.raises(RequestError, match=r"check_embedding_ctx_length=False.*serving.token_ids = true"):
            asyncio.run(service.embed(EmbeddingRequest(model="m", input=ids)))


@pytest.mark.parametrize("side", ["query", "document"])
def test_the_name_of_the_model_may_choose_the_side(side):
    asked = with_side(EmbeddingRequest(model=f"m:{side}", input="a text"), side)

    assert asked.input_type == side
    assert with_side(asked, side) == asked
    with pytest.raises(RequestError, match="send one of them"):
        with_side(asked, "document" if side == "query" else "query")
    with pytest.raises(RequestError, match="send the name alone"):
        with_side(SearchRequest(model=f"m:{side}", query="a"), side)


def test_a_text_without_a_token_id_is_refused():
    assert refusal(input=[[1], []]).code == "empty_input"


@pytest.mark.parametrize("field", [{"instruction": "x"}, {"input_type": "query"}, {"prompt_name": "code"}])
def test_a_prompt_before_token_ids_is_refused(field):
    assert refusal(input=[1, 2], **field).param == next(iter(field))


def test_more_characters_than_allowed_are_refused_with_both_numbers():
    assert "1,001 characters" in str(refusal(input="x" * 1001))


class OneDocument:
    """An index of one document."""

    words = None

    def search(self, vector_D, count):
        return [("1", "a text", float(vector_D[0]))][:count]


TOO_LONG = {
    "one text": ("embed", EmbeddingRequest(model="m", input="a"), 0, "input"),
    "a text of several": ("embed", EmbeddingRequest(model="m", input=["a", "b"]), 1, "input[1]"),
    "the query of documents": ("rerank", RerankRequest(model="m", query="a", documents=["b"]), 0, "query"),
    "a document": ("rerank", RerankRequest(model="m", query="a", documents=["b", "c"]), 2, "documents[1]"),
    "a query": ("similarity", SimilarityRequest(model="m", queries=["a", "b"], documents=["c"]), 1, "queries[1]"),
    "a compared one": (
        "similarity",
        SimilarityRequest(model="m", queries=["a", "b"], documents=["c"]),
        2,
        "documents[0]",
    ),
    "what is searched": ("search", SearchRequest(model="m", query="a"), 0, "query"),
}


@pytest.mark.parametrize("case", TOO_LONG)
@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize("truncate", [None, False, True])
def test_a_text_above_the_limit_is_named_and_refused_unless_it_may_be_cut(case, by_default, truncate):
    method, request, row, place = TOO_LONG[case]
    index = OneDocument() if method == "search" else None
    service = service_of(HashEncoder(), too_long=(row,), truncate=by_default, index=index)
    asked = getattr(service, method)(request.model_copy(update={"truncate": truncate}))

    if truncate or (truncate is None and by_default):
        assert asyncio.run(asked)["usage"]["truncated_texts"] == 1
    else:
        with pytest.raises(RequestError, match=re.escape(f"'{place}' has more than the 16 tokens")) as caught:
            asyncio.run(asked)
        assert (caught.value.param, caught.value.code) == (place, "context_length_exceeded")
        assert caught.value.status == 400


def test_eight_bits_and_one_bit_keep_what_they_can():
    whole = HashEncoder().encode(["a text"])

    eight = np.array(answer(HashEncoder(), output_dtype="int8").data[0].embedding)
    bits = answer(HashEncoder(), output_dtype="ubinary").data[0].embedding

    assert np.abs(eight).max() == 127
    assert float(eight @ whole[0] / np.linalg.norm(eight)) > 0.9999
    assert bits == np.packbits(whole > 0, axis=1)[0].tolist()


@pytest.mark.parametrize("dtype", ["int8", "ubinary"])
def test_fewer_bits_in_base64_are_refused_because_openai_s_clients_would_read_floats(dtype):
    error = refusal(output_dtype=dtype, encoding_format="base64")

    assert error.param == "output_dtype"
    assert "'encoding_format': 'float'" in str(error)


def test_an_instruction_that_would_fill_the_model_is_refused():
    error = refusal(instruction="b " * 100)

    assert "'instruction' has 200 characters" in str(error)
    assert "16 tokens" in str(error)


def test_reranking_sorts_by_cosine_and_keeps_the_places_of_the_request():
    encoder = HashEncoder()
    documents = ["one", "two", "three"]
    request = RerankRequest(model="m", query="a text", documents=documents, top_n=2, return_documents=True)

    found = asyncio.run(service_of(encoder).rerank(request))

    scores = encoder.encode(documents) @ encoder.encode(["Q: a text"])[0]
    assert [one["index"] for one in found["results"]] == np.argsort(-scores)[:2].tolist()
    assert found["results"][0]["relevance_score"] == pytest.approx(scores.max(), abs=1e-6)
    assert found["results"][0]["document"] == {"text": documents[scores.argmax()]}


def test_similarity_is_a_row_for_each_query():
    encoder = HashEncoder()
    request = SimilarityRequest(model="m", queries=["a", "b"], documents=["c", "d", "e"])

    scores = np.array(asyncio.run(service_of(encoder).similarity(request))["scores"])

    expected = encoder.encode(["Q: a", "Q: b"]) @ encoder.encode(["c", "d", "e"]).T
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_without_an_index_nothing_can_be_searched():
    with pytest.raises(RequestError) as caught:
        asyncio.run(service_of(HashEncoder()).search(SearchRequest(model="m", query="x")))

    assert (caught.value.status, caught.value.code) == (404, "no_index")
