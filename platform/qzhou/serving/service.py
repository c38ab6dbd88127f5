"""From an embeddings request to its response.

Shape letters in this file: N texts, D embedding width, K dimensions asked for (K <= D).
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qzhou.prompts import Prompt
from qzhou.serving.errors import RequestError
from qzhou.serving.schemas import Embedding, EmbeddingRequest, EmbeddingResponse, Model, ModelList, Usage

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class TextEncoder(Protocol):
    """What serving needs of an encoder; :class:`qzhou.encoder.Encoder` is one."""

    max_tokens: int
    prompts: dict[str, str]

    @property
    def dimensions(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, texts: Sequence[str], *, batch_tokens: int | None = ...) -> Vectors: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Unit vectors [N, D] of N texts, and the tokens that each cost."""

    vectors: Vectors
    token_counts: list[int]


Encode = Callable[[Sequence[str]], Awaitable[Encoded]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a client may know of the model, and what requests are checked against.

    Attributes:
        matryoshka: Smaller widths the model was trained for (arXiv:2205.13147).
        prompts: Name -> prefix, from the model folder.
        created: When it began to be served, in seconds since 1970.
    """

    name: str
    dimensions: int
    fingerprint: str
    prompts: Mapping[str, str]
    matryoshka: tuple[int, ...] = ()
    created: int = 0

    @classmethod
    def of(cls, encoder: TextEncoder, name: str, *, matryoshka: Sequence[int] = (), created: int = 0) -> ServedModel:
        return cls(
            name=name,
            dimensions=encoder.dimensions,
            fingerprint=encoder.fingerprint,
            prompts=dict(encoder.prompts),
            matryoshka=tuple(matryoshka),
            created=created,
        )

    def listing(self) -> ModelList:
        return ModelList(data=[Model(id=self.name, created=self.created)])


class EmbeddingService:
    """Answers embeddings requests for one model.

    Args:
        encode: Texts that carry their prompt -> unit vectors; how and where is the caller's business.
        max_inputs: Texts that one request may hold.
    """

    def __init__(self, encode: Encode, model: ServedModel, *, max_inputs: int) -> None:
        self.model = model
        self._encode = encode
        self._max_inputs = max_inputs

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """The vectors of the request's texts, in their order.

        Raises:
            RequestError: The request asks for something that this model does not offer.
        """
        self._check_model(request.model)
        self._check_texts(request.texts)
        dimensions = self._dimensions(request.dimensions)
        encoded = await self._encode(presented(request, self.model.prompts))
        tokens = sum(encoded.token_counts)
        vectors_NK = shortened(encoded.vectors, dimensions)
        written = as_base64(vectors_NK) if request.encoding_format == "base64" else vectors_NK.tolist()
        return EmbeddingResponse(
            data=[Embedding(index=index, embedding=one) for index, one in enumerate(written)],
            model=self.model.name,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    def _check_model(self, name: str) -> None:
        if name != self.model.name:
            raise RequestError(
                f"The model '{name}' does not exist here; this endpoint serves '{self.model.name}'.",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _check_texts(self, texts: Sequence[str]) -> None:
        if not texts:
            raise RequestError("'input' is empty; send at least one text.", param="input", code="empty_input")
        if len(texts) > self._max_inputs:
            raise RequestError(
                f"'input' holds {len(texts)} texts, and a request may hold {self._max_inputs}; send several.",
                param="input",
                code="too_many_inputs",
            )

    def _dimensions(self, asked: int | None) -> int:
        offered = sorted({*self.model.matryoshka, self.model.dimensions})
        if asked is not None and asked not in offered:
            raise RequestError(
                f"'dimensions' is {asked}, and the model '{self.model.name}' offers {', '.join(map(str, offered))}: "
                "a vector cut where the model was not trained to be cut loses its meaning.",
                param="dimensions",
                code="invalid_value",
            )
        return asked or self.model.dimensions


def presented(request: EmbeddingRequest, prompts: Mapping[str, str]) -> list[str]:
    """The request's texts with their prompt, as the encoder saw such texts in training.

    An instruction is put before queries and never before documents. Without one, ``input_type`` takes the
    model's own prompt of that name where there is one, as sentence-transformers' ``encode_query`` does.

    Raises:
        RequestError: The prompt is unknown, or it is chosen in two ways at once.
    """
    other = next((one for one in ("instruction", "input_type") if getattr(request, one) is not None), None)
    if request.prompt_name is not None and other:
        raise RequestError(
            f"'prompt_name' and '{other}' both choose the prompt; send one of them.",
            param="prompt_name",
            code="invalid_value",
        )
    if request.instruction is not None:
        prompt = Prompt(request.instruction)
        present = prompt.document if request.input_type == "document" else prompt.query
        return [present(text) for text in request.texts]
    name = request.prompt_name
    if name is not None and name not in prompts:
        known = ", ".join(f"'{one}'" for one in prompts) or "none"
        raise RequestError(
            f"The model declares no prompt '{name}'; it declares {known}.", param="prompt_name", code="invalid_value"
        )
    prefix = prompts.get(name or request.input_type or "", "")
    return [prefix + Prompt().query(text) for text in request.texts]


def shortened(vectors_ND: Vectors, dimensions: int) -> Vectors:
    """The first coordinates [N, K], made unit vectors again."""
    if dimensions == vectors_ND.shape[1]:
        return vectors_ND
    cut_NK = vectors_ND[:, :dimensions]
    length_N1 = np.linalg.norm(cut_NK, axis=1, keepdims=True)
    unit_NK: Vectors = cut_NK / np.maximum(length_N1, np.finfo(np.float32).tiny)
    return unit_NK


def as_base64(vectors_NK: Vectors) -> list[str]:
    """Each vector as base64 of its little-endian float32 bytes: a third of the size of decimals, and exact."""
    return [base64.b64encode(vector.tobytes()).decode() for vector in vectors_NK.astype("<f4")]
