"""A model behind a URL: any OpenAI-compatible ``/v1/embeddings``, used like a local one."""

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import openai

from qzhou.config.api_keys import Keys, is_loopback
from qzhou.data.prompts import EMPTY_TEXT
from qzhou.encoder.vectors import Vectors
from qzhou.errors import ModelError, first_line, with_body

TEXTS_PER_REQUEST = 64
REQUESTS_AT_ONCE = 8
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between tries of a request
LONGEST_WAIT_S = 120.0  # that an endpoint may ask for
RETRIED = {408, 409, 429}  # and every 5xx
# statuses of a refused text, and words in which endpoints say that it is too long; 413 says it without
REFUSALS = (400, 422)
TOO_LONG = re.compile(
    r"context|more than (the )?\d+ tokens|"
    r"too long|too large|maximum|max(_|imum )?(length|tokens)|exceed|less than \d+ tokens|tokens\W.* less than",
    re.IGNORECASE,
)
SHORTEST_CUT = 16  # characters of a text that is not cut further
PROBE = "The quick brown fox jumps over the lazy dog."


class _TooLongError(Exception):
    """An endpoint refuses texts because of their length."""


class _AwayError(Exception):
    """An endpoint cannot answer now; it may ask for a wait of so many seconds, 0 for none."""

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


def _is_too_long(error: Exception, message: str) -> bool:
    """Whether an endpoint refuses texts for their length, in whichever words: llama.cpp's server answers 500."""
    if not isinstance(error, openai.APIStatusError):
        return False
    is_refusal = error.status_code in REFUSALS or (error.status_code == 500 and "too large" in message)
    is_named = error.code == "context_length_exceeded"  # OpenAI's
    return error.status_code == 413 or (is_refusal and (is_named or TOO_LONG.search(message) is not None))


class RemoteEncoder:
    """Texts to float32 unit vectors by HTTP. Texts already carry their prompt.

    Args:
        spec: ``https://host/v1#model``.
        keys: Of the endpoint.
        api_key_env: Which of them.

    Raises:
        ModelError: The URL names no model.
    """

    arithmetic = "remote"  # endpoints do not tell

    def __init__(self, spec: str, keys: Keys, api_key_env: str) -> None:
        self._url, _, self._model = spec.partition("#")
        if not self._model:
            raise ModelError(f"the model '{spec}' names no model; write it as {spec}#model-name")
        self.prompts: Mapping[str, str] | None = None  # an endpoint declares none
        self.truncated = 0  # texts that were too long for it, and were cut here, or there where it tells
        self._may_truncate = True  # until it has refused to when it was asked
        self._lock = threading.Lock()
        self._keys = keys
        self._client = openai.OpenAI(
            base_url=self._url,
            api_key=keys.value(api_key_env),
            max_retries=0,  # it would ask five times about a text that is too long, where that is said by status 500
            http_client=openai.DefaultHttpxClient(trust_env=not is_loopback(self._url)),
        )

    @property
    def dimensions(self) -> int:
        """D, the width of a vector; one text is sent to learn it."""
        return int(self.encode([PROBE]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of address and model; :func:`qzhou.encoder.vectors.key_of` tells weights apart by the probe."""
        return hashlib.sha256(json.dumps([self._url, self._model]).encode()).hexdigest()[:16]

    @cached_property
    def probe(self) -> Vectors:
        """The vector of one sentence [D]: other weights give another."""
        return np.asarray(self.encode([PROBE])[0])

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Vectors:
        """Unit vectors [N, D] in the order of the texts.

        Args:
            texts: Any number.
            max_tokens: Not sent: the endpoint truncates where it does. Where it refuses a text as too long it is asked
                to ``truncate``; if it does not know that, the text is sent a quarter shorter each time.

        Raises:
            ModelError: The endpoint cannot be reached, refuses, or answers with something else than finite vectors.
        """
        del max_tokens
        sent = [text or EMPTY_TEXT for text in texts]
        if not sent:
            return np.empty((0, 0), dtype=np.float32)
        parts = [sent[start : start + TEXTS_PER_REQUEST] for start in range(0, len(sent), TEXTS_PER_REQUEST)]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            vectors = np.concatenate(list(pool.map(self._encoded, parts)))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12))

    def _encoded(self, texts: Sequence[str], *, is_cut: bool = False) -> Vectors:
        """The vectors of some texts; of those that the endpoint refuses as too long, of as much as it takes."""
        try:
            return self._answered(texts)
        except _TooLongError as error:
            if len(texts) == 1 and len(texts[0]) < SHORTEST_CUT:
                raise ModelError(str(error)) from None
        if self._may_truncate and not is_cut:
            try:
                return self._answered(texts, truncate=True)
            except (_TooLongError, ModelError):
                self._may_truncate = False
        if len(texts) > 1:
            half = len(texts) // 2
            return np.concatenate([self._encoded(texts[:half]), self._encoded(texts[half:])])
        if not is_cut:
            with self._lock:
                self.truncated += 1
        return self._encoded([texts[0][: len(texts[0]) * 3 // 4]], is_cut=True)

    def _answered(self, texts: Sequence[str], *, truncate: bool = False) -> Vectors:
        for wait_s in WAITS_S:
            try:
                return self._asked(texts, truncate=truncate)
            except _AwayError as error:
                time.sleep(error.retry_after_s or wait_s * random.uniform(0.75, 1.0))
        try:
            return self._asked(texts, truncate=truncate)
        except _AwayError as error:
            raise ModelError(str(error)) from None

    def _asked(self, texts: Sequence[str], *, truncate: bool) -> Vectors:
        more = {"truncate": True} if truncate else None  # of this project's endpoint
        try:
            found = self._client.embeddings.create(model=self._model, input=list(texts), extra_body=more)
            ordered = sorted(found.data, key=lambda one: one.index)
            vectors = np.array([one.embedding for one in ordered], dtype=np.float32)
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            message = self._keys.redacted(with_body(first_line(error), error))
            problem = f"the model '{self._model}' at {self._url} gives no embeddings: {message}"
            if _is_too_long(error, message):
                raise _TooLongError(problem) from None
            if _may_pass(error):
                raise _AwayError(problem, _retry_after_s(error)) from None
            raise ModelError(problem) from None
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ModelError(
                f"the model '{self._model}' at {self._url} gave {len(vectors)} vectors for {len(texts)} texts"
            )
        if not np.isfinite(vectors).all():
            wrong = texts[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ModelError(
                f"the model '{self._model}' at {self._url} gave a vector that is not finite (NaN or infinite) for "
                f"the text '{wrong:.80}'"
            )
        with self._lock:
            self.truncated += getattr(found.usage, "truncated_texts", None) or 0
        return vectors


def _may_pass(error: Exception) -> bool:
    """Whether the endpoint may answer the same request later: it was away, busy, or failed by itself."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in RETRIED or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _retry_after_s(error: Exception) -> float:
    """The seconds that the endpoint asks us to wait, as far as we wait at all; 0 if it asks for none."""
    asked = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    try:
        return max(0.0, min(float(asked), LONGEST_WAIT_S))
    except ValueError:  # none, or a date
        return 0.0
