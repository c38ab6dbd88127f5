"""From a request to its response, for one model.

Shape letters in this file: N texts, D embedding width, K dimensions asked for (K <= D), Q
queries, P documents.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qzhou.data.prompts import DOCUMENT_NAMES, Prompt, declared_prompt
from qzhou.serving.cache import Text
from qzhou.serving.engine import Encoded
from qzhou.serving.errors import RequestError
from qzhou.serving.outputs import Vectors, as_base64, quantized, shortened
from qzhou.serving.schemas import EmbeddingRequest, Model, RerankRequest, SearchRequest, Side, SimilarityRequest

if TYPE_CHECKING:
    from qzhou.serving.index import SearchIndex  # FAISS takes a while

# texts, and the limit in tokens above which one is refused, None to have it cut
Encode = Callable[[Sequence[Text], int | None], Awaitable[Encoded]]
CHARS_A_TOKEN = 4  # of plain English, about; of most other texts fewer
Answer = dict[str, Any]  # a response of ``schemas.py``, its vectors still arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a client may know of the model, and what requests are checked against.

    Attributes:
        max_tokens: Longer texts are refused, or truncated where that is asked for.
        vocabulary: Token ids are below this.
        matryoshka: Smaller widths the model was trained for (arXiv:2205.13147).
        prompts: Name -> prefix, from the model folder.
        precision: What it computes in.
        cosine_to_float32: The lowest of some probes; None where it was not measured.
        created: When it began to be served, in seconds since 1970.
    """

    name: str
    dimensions: int
    fingerprint: str
    max_tokens: int
    vocabulary: int
    prompts: Mapping[str, str]
    matryoshka: tuple[int, ...] = ()
    precision: str = "float32"
    cosine_to_float32: float | None = None
    created: int = 0

    @property
    def offered_dimensions(self) -> list[int]:
        """Widths that a client may ask for."""
        return sorted({*self.matryoshka, self.dimensions})

    def listing(self, indexed: int = 0) -> Model:
        """The entry of ``GET /v1/models``; ``indexed`` counts the searchable documents."""
        return Model(
            id=self.name,
            created=self.created,
            dimensions=self.offered_dimensions,
            max_tokens=self.max_tokens,
            fingerprint=self.fingerprint,
            prompts=sorted(self.prompts),
            precision=self.precision,
            cosine_to_float32=self.cosine_to_float32,
            indexed=indexed,
        )


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may hold; above, it is refused with 400. (What it may hold of tokens the engine knows.)

    Attributes:
        token_ids: Whether token ids may stand in place of texts.
        truncate: Whether texts above the model's limit are cut where the request does not say.
    """

    inputs: int
    chars: int
    token_ids: bool = False
    truncate: bool = False


class EmbeddingService:
    """Answers requests for one model.

    Args:
        encode: Texts that carry their prompt -> unit vectors; how and where is the caller's business.
        index: Of the run's documents, if there is one.
    """

    def __init__(
        self, encode: Encode, model: ServedModel, limits: RequestLimits, index: "SearchIndex | None" = None
    ) -> None:
        self.model = model
        self.index = index
        self._encode = encode
        self._limits = limits

    def listing(self) -> Model:
        """What clients may know."""
        return self.model.listing(0 if self.index is None else len(self.index))

    async def embed(self, request: EmbeddingRequest) -> Answer:
        """The vectors of the request's texts, in their order.

        Raises:
            RequestError: The request asks for something that this model does not offer.
        """
        inputs = request.inputs
        dimensions = self._dimensions(request.dimensions)
        if request.encoding_format == "base64" and request.output_dtype != "float":
            raise RequestError(
                f"'output_dtype' is '{request.output_dtype}', and base64 is of floats here: OpenAI's clients ask for "
                "it by themselves and read floats whatever it holds. Send 'encoding_format': 'float' to get a list of "
                "whole numbers.",
                param="output_dtype",
                code="invalid_value",
            )
        is_one = len(inputs) == 1 and inputs != request.input  # a text, or the token ids of one
        encoded = await self._encoded(
            self._presented(request, inputs), "input", lambda row: "input" if is_one else f"input[{row}]", request
        )
        vectors_NK = quantized(shortened(encoded.vectors, dimensions), request.output_dtype)
        written: Any = as_base64(vectors_NK) if request.encoding_format == "base64" else vectors_NK
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(written)]
        return {"object": "list", "data": data, "model": self.model.name, "usage": _usage(encoded)}

    async def rerank(self, request: RerankRequest) -> Answer:
        """The documents by their cosine to the query, nearest first; equals in the order of the request."""
        texts: list[Text] = self._side([request.query], "query", request.instruction)
        texts += self._side(request.documents, "document", request.instruction)
        self._check_count(len(request.documents), "documents")
        encoded = await self._encoded(
            texts, "documents", lambda row: f"documents[{row - 1}]" if row else "query", request
        )
        scores_P = encoded.vectors[1:] @ encoded.vectors[0]
        results = []
        for place in np.argsort(-scores_P, kind="stable")[: request.top_n]:
            result: Answer = {"index": int(place), "relevance_score": float(scores_P[place])}
            if request.return_documents:
                result["document"] = {"text": request.documents[place]}
            results.append(result)
        return {"object": "list", "model": self.model.name, "results": results, "usage": _usage(encoded)}

    async def similarity(self, request: SimilarityRequest) -> Answer:
        """The cosine of every query to every document [Q, P]."""
        queries, documents = list(request.queries), list(request.documents)
        for given, name in ((queries, "queries"), (documents, "documents")):
            self._check_count(len(given), name)
        texts = self._side(queries, "query", request.instruction)
        texts += self._side(documents, "document", request.instruction)
        names = [f"queries[{row}]" for row in range(len(queries))]
        names += [f"documents[{row}]" for row in range(len(documents))]
        encoded = await self._encoded(texts, "documents", names.__getitem__, request)
        scores_QP = encoded.vectors[: len(queries)] @ encoded.vectors[len(queries) :].T
        return {"object": "list", "model": self.model.name, "scores": list(scores_QP), "usage": _usage(encoded)}

    async def search(self, request: SearchRequest) -> Answer:
        """The documents of the index that are nearest to the query.

        Raises:
            RequestError: 404; the run that is served has no index, or none of words.
        """
        if self.index is None:
            raise RequestError(
                "There is no index to search; make one with `qzhou index`, then start the endpoint again or send it "
                "SIGHUP.",
                status=404,
                code="no_index",
            )
        if self.index.words is None and request.by != "vectors":
            raise RequestError(
                f"The index has no words to search by ('by' is '{request.by}'); it was made by an older version, or "
                "of too many documents. Send 'by': 'vectors', or make it again with `qzhou index`.",
                status=404,
                param="by",
                code="no_word_index",
            )
        texts = self._side([request.query], "query", request.instruction)
        encoded = await self._encoded(texts, "query", lambda _: "query", request)
        # in a thread: a million documents take seconds, in which nothing else would be answered
        found = await asyncio.to_thread(_searched, self.index, encoded.vectors[0], request)
        results = [{"id": id, "text": text, "score": score} for id, text, score in found]
        return {"object": "list", "model": self.model.name, "results": results, "usage": _usage(encoded)}

    async def _encoded(
        self,
        texts: Sequence[Text],
        param: str,
        name: Callable[[int], str],
        request: EmbeddingRequest | RerankRequest | SimilarityRequest | SearchRequest,
    ) -> Encoded:
        """Vectors of texts that carry their prompt; ``name`` says where in the request a row of them stands."""
        self._check_size(texts, param)
        is_cut = self._limits.truncate if request.truncate is None else request.truncate
        try:
            return await self._encode(texts, None if is_cut else self.model.max_tokens)
        except RequestError as error:
            if error.row is None:
                raise
            raise RequestError(
                f"'{name(error.row)}' has more than the {self.model.max_tokens} tokens that the model reads, its "
                "prompt included. Send a shorter text, or 'truncate': true to have its end cut (for every request: "
                "serving.truncate = true).",
                param=name(error.row),
                code="context_length_exceeded",
            ) from None

    def _presented(self, request: EmbeddingRequest, inputs: list[str] | list[list[int]]) -> list[Text]:
        self._check_count(len(inputs), "input")
        self._check_instruction(request.instruction)
        texts = [one for one in inputs if isinstance(one, str)]
        if texts:
            return list(presented(request, texts, self.model.prompts))
        chosen = next((one for one in ("instruction", "input_type", "prompt_name") if getattr(request, one)), None)
        if chosen:
            problem = f"'{chosen}' puts a prompt before texts, and 'input' holds token ids; send the texts."
            raise RequestError(problem, param=chosen, code="invalid_value")
        if not self._limits.token_ids:
            raise RequestError(
                "'input' holds token ids, and this endpoint takes texts: ids of another model's tokenizer are other "
                "words to this one. Send the texts (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)), or "
                "have the endpoint take ids (serving.token_ids = true).",
                param="input",
                code="invalid_value",
            )
        tokens = [tuple(one) for one in inputs if not isinstance(one, str)]
        for ids in tokens:
            self._check_ids(ids)
        return list(tokens)

    def _side(self, texts: Sequence[str], side: Side, instruction: str | None) -> list[Text]:
        """Texts as the model saw queries or documents in training."""
        self._check_instruction(instruction)
        return [*_with_prompt(texts, side, instruction, self.model.prompts)]

    def _check_count(self, count: int, param: str) -> None:
        if not count:
            raise RequestError(f"'{param}' is empty; send at least one text.", param=param, code="empty_input")
        if count > self._limits.inputs:
            problem = f"'{param}' holds {count} texts, and a request may hold {self._limits.inputs}; send several."
            raise RequestError(problem, param=param, code="too_many_inputs")

    def _check_size(self, texts: Sequence[Text], param: str) -> None:
        chars = sum(map(len, texts))
        limit = self._limits.chars
        if chars > limit:
            problem = f"'{param}' holds {chars:,} characters, and a request may hold {limit:,}; send several."
            raise RequestError(problem, param=param, code="too_many_characters")

    def _check_instruction(self, instruction: str | None) -> None:
        """One that fills the model by itself would leave every text the same vector."""
        room = CHARS_A_TOKEN * self.model.max_tokens
        if instruction is not None and len(instruction) > room:
            raise RequestError(
                f"'instruction' has {len(instruction):,} characters and would leave no room for the text: the model "
                f"reads {self.model.max_tokens} tokens. Say the task in a sentence.",
                param="instruction",
                code="context_length_exceeded",
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise RequestError("'input' holds a list without a token id.", param="input", code="empty_input")
        wrong = next((one for one in ids if not 0 <= one < self.model.vocabulary), None)
        if wrong is not None:
            raise RequestError(
                f"'input' holds the token id {wrong}, and the ids of '{self.model.name}' end at "
                f"{self.model.vocabulary - 1}. Those of another model's tokenizer mean nothing to it: send the texts "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)).",
                param="input",
                code="invalid_value",
            )

    def _dimensions(self, asked: int | None) -> int:
        offered = self.model.offered_dimensions
        if asked is not None and asked not in offered:
            raise RequestError(
                f"'dimensions' is {asked}, and the model '{self.model.name}' offers {', '.join(map(str, offered))}: "
                "a vector cut where the model was not trained to be cut loses its meaning.",
                param="dimensions",
                code="invalid_value",
            )
        return asked or self.model.dimensions


def presented(request: EmbeddingRequest, texts: Sequence[str], prompts: Mapping[str, str]) -> list[str]:
    """Texts of a request with their prompt, as the encoder saw such texts in training.

    Raises:
        RequestError: The prompt is unknown, or it is chosen in two ways at once.
    """
    other = next((one for one in ("instruction", "input_type") if getattr(request, one) is not None), None)
    if request.prompt_name is not None and other:
        problem = f"'prompt_name' and '{other}' both choose the prompt; send one of them."
        raise RequestError(problem, param="prompt_name", code="invalid_value")
    name = request.prompt_name
    if name is not None:
        if name not in prompts:
            known = ", ".join(f"'{one}'" for one in prompts) or "none"
            problem = f"The model declares no prompt '{name:.60}'; it declares {known}."
            raise RequestError(problem, param="prompt_name", code="invalid_value")
        return [prompts[name] + Prompt().query(text) for text in texts]
    several = _ambiguous_prompts(prompts)
    if request.input_type == "query" and request.instruction is None and several:
        problem = (
            f"The model has no prompt for all queries, but {', '.join(several)}: choose one with 'prompt_name', or "
            "send an 'instruction'."
        )
        raise RequestError(problem, param="input_type", code="invalid_value")
    return _with_prompt(texts, request.input_type, request.instruction, prompts)


def _ambiguous_prompts(prompts: Mapping[str, str]) -> list[str]:
    """The prompts of a model that declares some, and none for queries."""
    if "query" in prompts:
        return []
    return [f"'{name}'" for name, text in prompts.items() if text and name not in DOCUMENT_NAMES]


def _with_prompt(
    texts: Sequence[str], side: Side | None, instruction: str | None, prompts: Mapping[str, str]
) -> list[str]:
    """An instruction is put before queries and never before documents. Without one, a side takes the model's own prompt
    of that name where there is one, as sentence-transformers' ``encode_query`` does.
    """
    if instruction is not None:
        prompt = Prompt(instruction)
        present = prompt.document if side == "document" else prompt.query
        return [present(text) for text in texts]
    declared = declared_prompt(prompts) if side else None
    if declared is None:
        return [Prompt().query(text) for text in texts]
    present = declared.document if side == "document" else declared.query
    return [present(text) for text in texts]


def _searched(index: "SearchIndex", vector_D: Vectors, request: SearchRequest) -> list[tuple[str, str, float]]:
    if request.by == "words":
        return index.search_words(request.query, request.top_n)
    if request.by == "both":
        return index.search_both(vector_D, request.query, request.top_n)
    return index.search(vector_D, request.top_n)


def _usage(encoded: Encoded) -> dict[str, int]:
    tokens = sum(encoded.token_counts)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "truncated_texts": sum(encoded.truncated)}
