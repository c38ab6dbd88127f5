"""The wire format: OpenAI's embeddings, Cohere's and Jina's rerank, cosines, own fields.

OpenAI's clients send fields that OpenAI does not know through ``extra_body``. An unknown
field is refused, as OpenAI does it: a misspelt ``instruction`` that is ignored would give
vectors of a silently different kind.
"""

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from qzhou.serving.errors import RequestError
from qzhou.serving.outputs import OutputDtype

INPUT_SHAPE = "'input' must be a string, a list of strings, token ids, or a list of lists of token ids"
SHOWN_CHARS = 60
TEXTS_SHAPE = "a string or a list of strings is wanted"
Side = Literal["query", "document"]
Texts = Annotated[str | list[str], Field(description="One text or several.")]


class _Request(BaseModel):
    """What all requests have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(description="A name that GET /v1/models lists.")
    user: str | None = Field(None, description="Accepted and ignored.")
    instruction: str | None = Field(None, description="The task in one sentence; put before queries.")
    truncate: bool | None = Field(
        None, description="Cut texts above the model's limit, or refuse them with 400; default: serving.truncate."
    )


class EmbeddingRequest(_Request):
    """The body of ``POST /v1/embeddings``."""

    input: str | list[str] | list[int] | list[list[int]] = Field(
        description="A text, texts, the token ids of a text, or those of several; an empty text is encoded as 'Null'. "
        "Token ids are those of the served model's tokenizer; its special tokens are added where they are missing."
    )
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of the little-endian bytes.")
    dimensions: int | None = Field(None, description="Fewer than all only where the model is trained for it.")
    input_type: Side | None = Field(None, description="Side of the search the texts are on.")
    prompt_name: str | None = Field(None, description="One of the prompts that the model folder declares.")
    output_dtype: OutputDtype = Field(
        "float", description="int8: scaled by its largest coordinate; ubinary: a bit each."
    )

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, or the token ids of each."""
        found: Any = self.input
        return [found] if isinstance(found, str) or (found and isinstance(found[0], int)) else found

    @field_validator("encoding_format", "output_dtype", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.model_fields[info.field_name or ""].default if value is None else value

    @field_validator("input", mode="before")
    @classmethod
    def _is_input(cls, value: Any) -> Any:
        """Answer wrong shapes with one sentence instead of an error per union member."""
        if isinstance(value, str) or (isinstance(value, list) and _all_of_a_kind(value)):
            return value
        raise ValueError(INPUT_SHAPE)


class RerankRequest(_Request):
    """The body of ``POST /v1/rerank``."""

    query: str
    documents: list[str] = Field(description="Of which the nearest to the query come first.")
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="So many results; default: all.")
    return_documents: bool = Field(False, description="Repeat the texts in the answer.")

    @field_validator("documents", mode="before")
    @classmethod
    def _texts_of_documents(cls, value: Any) -> Any:
        """Cohere and Jina take ``{"text": ...}`` for a document, too."""
        if not isinstance(value, list):
            return value
        return [one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one for one in value]


class SimilarityRequest(_Request):
    """The body of ``POST /v1/similarity``."""

    queries: Texts
    documents: Texts

    @field_validator("queries", "documents", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value
        raise ValueError(TEXTS_SHAPE)


class SearchRequest(_Request):
    """The body of ``POST /v1/search``, over the index of the run that is served."""

    query: str
    top_n: Annotated[int, Field(ge=1, le=1000)] = 10
    by: Literal["vectors", "words", "both"] = Field(
        "vectors", description="What is compared: vectors, words (BM25), or both rankings by reciprocal ranks."
    )


class Usage(BaseModel):
    """Tokens that were encoded: prompts and special tokens included, truncated ones not."""

    prompt_tokens: int
    total_tokens: int
    truncated_texts: int = Field(0, description="Texts whose end the model did not read.")


class Embedding(BaseModel):
    """One vector; ``index`` is the place of its text in the request."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    """The answer to an :class:`EmbeddingRequest`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class RerankResult(BaseModel):
    """A document: its place in the request (``index``) and its cosine to the query."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankResponse(BaseModel):
    """The answer to a :class:`RerankRequest`, nearest first."""

    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: Usage


class SimilarityResponse(BaseModel):
    """Cosines, a row for each query and a column for each document."""

    object: Literal["list"] = "list"
    model: str
    scores: list[list[float]]
    usage: Usage


class SearchResult(BaseModel):
    """A document of the index, and its cosine to the query; by words its BM25 score, by both its reciprocal ranks."""

    id: str
    text: str
    score: float


class SearchResponse(BaseModel):
    """The answer to a :class:`SearchRequest`, best first."""

    object: Literal["list"] = "list"
    model: str
    results: list[SearchResult]
    usage: Usage


class Model(BaseModel):
    """One served model; ``created`` is in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qzhou"
    dimensions: list[int] = Field(description="That may be asked for.")
    max_tokens: int = Field(description="Longer texts are truncated.")
    fingerprint: str = Field(description="Of weights, tokenizer and settings.")
    prompts: list[str] = Field(description="Names for prompt_name.")
    precision: str = Field(description="What it computes in.")
    cosine_to_float32: float | None = Field(description="The lowest of some texts, measured when it was loaded.")
    indexed: int = Field(0, description="Documents that POST /v1/search looks through.")


class ModelList(BaseModel):
    """The answer to ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(BaseModel):
    """What is wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The answer to a request that is refused."""

    error: Problem


Asked = TypeVar("Asked", bound=_Request)


def parse_request(kind: type[Asked], body: bytes) -> Asked:
    """The request in a JSON body.

    Raises:
        RequestError: No JSON, an unknown or missing field, or wrong value; names the first.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explained(kind, error.errors(include_url=False)[0]) from None


def _all_of_a_kind(values: list[Any]) -> bool:
    if all(isinstance(one, str) for one in values) or all(type(one) is int for one in values):
        return True
    return all(isinstance(one, list) and all(type(token) is int for token in one) for one in values)


def _explained(kind: type[BaseModel], problem: Any) -> RequestError:
    """OpenAI's error for one pydantic error."""
    if not problem["loc"]:
        detail = str(problem.get("ctx", {}).get("error", problem["msg"]))
        return RequestError(f"The body could not be read as a JSON object: {detail}.", code="invalid_json")
    field = str(problem["loc"][0])[:SHOWN_CHARS]  # clients may send megabytes there
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, list(kind.model_fields), n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(kind.model_fields)}."
        return RequestError(f"Unknown parameter: '{field}'.{hint}", param=field, code="unknown_parameter")
    if problem["type"] == "missing":
        missing = f"Missing required parameter: '{field}'."
        return RequestError(missing, param=field, code="missing_required_parameter")
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r:.60})"
    return RequestError(f"Invalid value for '{field}': {message}{shown}.", param=field, code="invalid_value")


def with_side(asked: Asked, side: str) -> Asked:
    """A request whose side of the search stands in the name of the model, for clients that know nothing but that.

    Raises:
        RequestError: The request has no sides to choose from, or chooses another one itself.
    """
    if not isinstance(asked, EmbeddingRequest):
        problem = (
            f"'model' ends in ':{side}', which chooses a prompt for /v1/embeddings; here, send the name alone."
        )
        raise RequestError(problem, param="model", code="invalid_value")
    if asked.input_type not in (None, side):
        problem = f"'model' ends in ':{side}', and 'input_type' is '{asked.input_type}'; send one of them."
        raise RequestError(problem, param="input_type", code="invalid_value")
    return asked.model_copy(update={"input_type": side})
