import json
import pickle

import pytest

from qzhou.serving.errors import RequestError
from qzhou.serving.schemas import EmbeddingRequest, RerankRequest, SimilarityRequest, parse_request


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "input": "text", **fields}).encode()


def refusal(content: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(EmbeddingRequest, content)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_one_text_and_several_are_both_texts():
    assert parse_request(EmbeddingRequest, body(input="one")).inputs == ["one"]
    assert parse_request(EmbeddingRequest, body(input=["b", "a", ""])).inputs == ["b", "a", ""]


def test_the_fields_that_openai_knows_are_taken():
    request = parse_request(EmbeddingRequest, body(encoding_format="base64", dimensions=8, user="someone"))

    assert (request.encoding_format, request.dimensions) == ("base64", 8)


def test_decimals_are_the_default_encoding():
    assert parse_request(EmbeddingRequest, body()).encoding_format == "float"


def test_a_misspelt_field_is_refused_with_the_nearest_known_one():
    error = refusal(body(instructions="find code"))

    assert str(error) == "Unknown parameter: 'instructions'. Did you mean 'instruction'?"
    assert (error.param, error.code) == ("instructions", "unknown_parameter")


def test_an_unknown_field_without_a_likeness_is_refused_with_all_known_ones():
    assert "Known: model, user, instruction" in str(refusal(body(zzz=1)))


@pytest.mark.parametrize(("given", "read"), [([1, 2, 3], [[1, 2, 3]]), ([[1, 2], [3]], [[1, 2], [3]]), ([], [])])
def test_token_ids_are_those_of_one_text_or_of_several(given, read):
    assert parse_request(EmbeddingRequest, body(input=given)).inputs == read


@pytest.mark.parametrize(
    "wrong", [5, None, {"a": 1}, ["a", 1], ["a", None], [True], [1, "a"], [[1], "a"], [[[1]]], [1.5]]
)
def test_an_input_of_another_shape_is_refused_with_one_sentence(wrong):
    error = refusal(body(input=wrong))

    assert str(error).startswith(
        "Invalid value for 'input': 'input' must be a string, a list of strings, token ids"
    )
    assert error.param == "input"


def test_a_missing_field_is_named():
    error = refusal(b'{"input": "text"}')

    assert str(error) == "Missing required parameter: 'model'."
    assert error.param == "model"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimensions", "8"),
        ("dimensions", True),
        ("encoding_format", "int8"),
        ("input_type", "passage"),
        ("model", 3),
    ],
)
def test_a_wrong_value_is_shown(field, value):
    error = refusal(body(**{field: value}))

    assert error.param == field
    assert repr(value) in str(error)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"{} {}"])
def test_what_is_not_a_json_object_is_refused(content):
    assert refusal(content).code == "invalid_json" or refusal(content).param


def test_half_a_surrogate_pair_is_refused_before_the_tokenizer_meets_it():
    refusal(b'{"model": "m", "input": "\\ud800"}')


def test_null_is_the_default_where_openai_s_clients_send_it():
    found = parse_request(
        EmbeddingRequest, b'{"model": "m", "input": "x", "encoding_format": null, "output_dtype": null}'
    )

    assert (found.encoding_format, found.output_dtype) == ("float", "float")


def test_documents_to_rerank_may_be_objects_with_a_text():
    body = b'{"model": "m", "query": "q", "documents": ["a", {"text": "b"}]}'
    assert parse_request(RerankRequest, body).documents == ["a", "b"]
    with pytest.raises(RequestError, match="'documents'"):
        parse_request(RerankRequest, b'{"model": "m", "query": "q", "documents": [{"text": 1}]}')
    with pytest.raises(RequestError, match="'documents'"):
        parse_request(RerankRequest, b'{"model": "m", "query": "q", "documents": [{"title": "b"}]}')


def test_the_error_body_has_openai_s_shape():
    error = RequestError("no", status=404, param="model", code="model_not_found")

    assert error.body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    }


def test_a_request_error_crosses_processes_whole():
    error = RequestError("busy", status=429, param="input", code="overloaded")

    copy = pickle.loads(pickle.dumps(error))

    assert copy.status == 429
    assert copy.body() == error.body()


def test_a_rerank_request_wants_a_query_and_documents():
    with pytest.raises(RequestError, match="Missing required parameter: 'documents'"):
        parse_request(RerankRequest, b'{"model": "m", "query": "q"}')
    with pytest.raises(RequestError, match="'top_n'"):
        parse_request(RerankRequest, b'{"model": "m", "query": "q", "documents": [], "top_n": 0}')


def test_a_similarity_request_takes_one_text_or_several_on_either_side():
    found = parse_request(SimilarityRequest, b'{"model": "m", "queries": "q", "documents": ["a", "b"]}')

    assert (found.queries, found.documents) == (["q"], ["a", "b"])
