"""OpenAI's embeddings wire format, and three fields of ours: ``input_type``, ``instruction``, ``prompt_name``.

OpenAI's clients send ours through ``extra_body``. An unknown field is refused, as OpenAI does it:
a misspelt ``instruction`` that is ignored would give vectors of a silently different kind.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qzhou.serving.errors import RequestError

INPUT_SHAPE = "'input' must be a string or a list of strings"
TOKENS_REFUSED = (
    "'input' holds token ids, and those of another model's tokenizer mean nothing to this one; send the texts "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


class EmbeddingRequest(BaseModel):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: str | list[str] = Field(description="One text or several; an empty text is encoded as 'Null'.")
    model: str = Field(description="A name that GET /v1/models lists.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    dimensions: int | None = Field(None, description="Fewer than all only where the model is trained for it.")
    user: str | None = Field(None, description="Accepted and ignored.")
    input_type: Literal["query", "document"] | None = Field(None, description="Side of the search the texts are on.")
    instruction: str | None = Field(None, description="The task in one sentence; put before queries.")
    prompt_name: str | None = Field(None, description="One of the prompts that the model folder declares.")

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    @field_validator("input", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Answer each wrong shape with one sentence instead of one error per member of the union."""
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            return value
        tokens = isinstance(value, list) and all(type(one) is int or isinstance(one, list) for one in value)
        raise ValueError(TOKENS_REFUSED if tokens else INPUT_SHAPE)


class Embedding(BaseModel):
    """One vector; ``index`` is the place of its text in the request."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were encoded: prompts and special tokens included, truncated ones not."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The answer to an :class:`EmbeddingRequest`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """One served model; ``created`` is in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qzhou"


class ModelList(BaseModel):
    """The answer to ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


def parse_request(body: bytes) -> EmbeddingRequest:
    """The request in a JSON body.

    Raises:
        RequestError: Not JSON, an unknown or missing field, or a wrong value; names the first one.
    """
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None


def _explained(problem: Any) -> RequestError:
    """OpenAI's error for one pydantic error."""
    if not problem["loc"]:
        detail = str(problem.get("ctx", {}).get("error", problem["msg"]))
        return RequestError(f"The body is not a JSON object: {detail}.", code="invalid_json")
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, list(EmbeddingRequest.model_fields), n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(EmbeddingRequest.model_fields)}."
        return RequestError(f"Unknown parameter: '{field}'.{hint}", param=field, code="unknown_parameter")
    if problem["type"] == "missing":
        return RequestError(f"Missing required parameter: '{field}'.", param=field, code="missing_required_parameter")
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r:.60})"
    return RequestError(f"Invalid value for '{field}': {message}{shown}.", param=field, code="invalid_value")
