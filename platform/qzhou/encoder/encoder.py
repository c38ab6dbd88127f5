"""The encoder that mining, evaluation and serving share.

Shape letters in this file: N texts, D embedding width.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qzhou.data.prompts import EMPTY_TEXT
from qzhou.encoder.arithmetic import library_for, name_of, this_processor, warn_of_other_arithmetic
from qzhou.encoder.attention import IN_FLOAT32, Packed, Padded, can_pack
from qzhou.encoder.backbone import Backbone, Dtype, EmbeddingModel, choose_device, choose_dtype, load_backbone
from qzhou.encoder.batching import length_batches
from qzhou.encoder.cpu.onednn import multiply_with_onednn
from qzhou.encoder.vectors import Vectors
from qzhou.errors import ModelError

TOKENIZE_AT_ONCE = 10_000  # texts; bounds the memory that token ids take
PROBES = ("one line", "a longer text that says several things, one after the other")
PROBE_TOKENS = 512
HEAD_CHARS_PER_TOKEN = 32  # of a text that is longer, the model reads a part by far
SAME_COSINE = 0.999  # of padded and packed vectors, in 16 bits too
# cpu: twice as fast as 16,384 on texts of mixed length (LOG.md)
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}


class Encoder:
    """Texts to float32 unit vectors. Texts already carry their prompt (see :mod:`qzhou.data.prompts`)."""

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Any,
        *,
        max_tokens: int,
        prompts: Mapping[str, str] | None = None,
        packed: bool = False,
        arithmetic: str = "",
    ) -> None:
        """Take a model into use.

        Args:
            model: On the device on which it encodes.
            tokenizer: Its own.
            max_tokens: Texts are truncated here.
            prompts: Name -> prefix, as the model's folder declares them; None where it is no embedding model's.
            packed: Encode without padding (:mod:`qzhou.encoder.attention`), unless the model's vectors change by it.
            arithmetic: Name of the type and library that multiply; default: torch, in the type of the weights.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.prompts = prompts
        self.device = next(model.parameters()).device
        self.arithmetic = arithmetic or f"torch-{_type_name(next(model.parameters()).dtype)}"
        self.probe = None  # the weights are here: the fingerprint covers them
        self.batch_tokens = BATCH_TOKENS[self.device.type]
        self.tokenized_at_once = TOKENIZE_AT_ONCE
        self.truncated = 0  # texts so far that were longer than max_tokens
        self.packed = packed and packs_exactly(model, tokenizer)

    @property
    def dimensions(self) -> int:
        """D, the width of a vector."""
        return self.model.dimensions

    def encode(
        self, texts: Sequence[str], *, batch_tokens: int | None = None, max_tokens: int | None = None
    ) -> Vectors:
        """Unit vectors [N, D] in the order of the texts; longer texts are truncated.

        Args:
            texts: Any number; none gives an array of shape [0, D].
            batch_tokens: Tokens in one forward pass, padding included; texts of like length go together. Default: what
                suits the device, or what was left of it when memory ran out.
            max_tokens: Truncate here; default: where the encoder does.

        Raises:
            ModelError: A single text does not fit into memory.
        """
        vectors_ND = np.empty((len(texts), self.dimensions), dtype=np.float32)
        start = 0
        for ids in self._tokens_ahead(texts, max_tokens or self.max_tokens):
            lengths = [len(one) for one in ids]
            for rows in length_batches(lengths, batch_tokens or self.batch_tokens, packed=self.packed):
                vectors_ND[start + np.asarray(rows)] = self.vectors([ids[row] for row in rows])
            start += len(ids)
        return vectors_ND

    def _tokens_ahead(self, texts: Sequence[str], max_tokens: int) -> Iterator[list[list[int]]]:
        """Some texts' token ids at a time; the next are made while these become vectors."""
        starts = range(0, len(texts), self.tokenized_at_once)
        parts = [texts[start : start + self.tokenized_at_once] for start in starts]
        if len(parts) < 2:
            yield from (self._token_ids(part, max_tokens) for part in parts)
            return
        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(self._token_ids, parts[0], max_tokens)
            for part in (*parts[1:], None):
                ids = following.result()
                if part is not None:
                    following = thread.submit(self._token_ids, part, max_tokens)
                yield ids

    def vectors(self, ids: list[list[int]]) -> Vectors:
        """Unit vectors [N, D] of N texts' tokens in one pass, halved where memory runs out.

        Args:
            ids: Special tokens included, as :meth:`tokenize` gives them; at least one text.

        Raises:
            ModelError: A single text does not fit into memory.
        """
        try:
            with torch.inference_mode():
                vector = self.model(self._packed(ids) if self.packed else self._padded(ids))
            return np.asarray(vector.cpu().numpy())
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(ids) == 1:
                raise ModelError(
                    f"one text of {len(ids[0]):,} tokens does not fit into the memory of {self.device}. Lower "
                    "model.max_document_tokens, or take a smaller backbone."
                ) from None
        torch.cuda.empty_cache()  # outside the handler, which holds the tensors of the failed pass
        tokens = sum(map(len, ids)) if self.packed else len(ids) * max(map(len, ids))
        self.batch_tokens = max(1, min(self.batch_tokens, tokens // 2))
        half = len(ids) // 2
        return np.concatenate([self.vectors(ids[:half]), self.vectors(ids[half:])])

    def _padded(self, ids: list[list[int]]) -> Padded:
        return Padded.of(ids, self.device, pad_token=self.tokenizer.pad_token_id)

    def _packed(self, ids: list[list[int]]) -> Packed:
        return Packed.of(ids, self.device)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text, special tokens included, and whether it was truncated. One thread at a time.

        Of a text that is many times too long only the beginning is read, up to a blank.
        """
        reads_beginning = getattr(self.tokenizer, "truncation_side", "right") == "right"
        most = HEAD_CHARS_PER_TOKEN * self.max_tokens
        heads = [_head(text, most) if reads_beginning else text for text in texts]
        ids, truncated = _tokenized(self.tokenizer, heads, self.max_tokens)
        for place, (text, head) in enumerate(zip(texts, heads, strict=True)):
            if len(head) < len(text) and not truncated[place]:
                (ids[place],), (truncated[place],) = _tokenized(self.tokenizer, [text], self.max_tokens)
        return ids, truncated

    def with_special_tokens(self, ids: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[bool]]:
        """Texts that come as token ids, with the tokenizer's special tokens where they lack them, truncated."""
        before, after = self._special_tokens
        room = min(self.max_tokens, self.tokenizer.model_max_length) - len(before) - len(after)
        found, truncated = [], []
        for one in map(list, ids):
            end = len(one) - len(after)
            whole = end >= len(before) and one[: len(before)] == before and one[end:] == after
            content = one[len(before) : end] if whole else one
            found.append([*before, *content[:room], *after])
            truncated.append(len(content) > room)
        return found, truncated

    @cached_property
    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        plain = list(self.tokenizer(PROBES[0], add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer(PROBES[0])["input_ids"])
        start = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
        return whole[:start], whole[start + len(plain) :]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what a vector depends on besides text, arithmetic and code: weights, tokenizer, settings."""
        seen = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            seen.update(name.encode())
            seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        described = self.model.backbone.config.to_dict()
        config = {name: value for name, value in described.items() if not name.startswith("_")}
        length = min(self.max_tokens, self.tokenizer.model_max_length)
        settings = [config, self.model.pooling, str(self.model.dense), length, self.tokenizer.padding_side]
        seen.update(json.dumps(settings, sort_keys=True, default=str).encode())
        # the last call's truncation and padding are written into the tokenizer; they are not part of what it is
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        seen.update(json.dumps(tokenizer, sort_keys=True).encode())
        return seen.hexdigest()[:16]

    def _token_ids(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        ids, truncated = _tokenized(self.tokenizer, texts, max_tokens)
        self.truncated += sum(truncated)
        return ids


def load_encoder(
    spec: str,
    *,
    max_tokens: int,
    dtype: Dtype = "auto",
    library: str = "auto",
    device: str | None = None,
    compiled: bool = False,
) -> Encoder:
    """An encoder by folder, hub id, package (:func:`qzhou.encoder.backbone.load_backbone`).

    Args:
        spec: Names the model.
        max_tokens: Texts are truncated here, prompt and special tokens included.
        dtype: Type to compute in.
        library: What multiplies float32 on a CPU, as ``model.arithmetic`` names it.
        device: ``cpu`` or ``cuda``; default: the GPU if there is one.
        compiled: Let ``torch.compile`` rewrite the model; pays on a GPU after many batches.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
    """
    found = load_backbone(spec, dtype=choose_dtype(dtype, choose_device(device)))
    return encoder_of(found, max_tokens=max_tokens, library=library, device=device, compiled=compiled)


def encoder_of(
    found: Backbone, *, max_tokens: int, library: str = "auto", device: str | None = None, compiled: bool = False
) -> Encoder:
    """The encoder of a loaded backbone; for the arguments see :func:`load_encoder`."""
    place, dtype = choose_device(device), next(found.model.parameters()).dtype
    if place.type == "cpu":
        taken = "compiled" if compiled else library_for(library, this_processor())
        if dtype != torch.float32:
            found.model.backbone.set_attn_implementation(IN_FLOAT32)
        arithmetic = _take_arithmetic(found.model, taken, _type_name(dtype))
    else:
        arithmetic = f"{'compiled' if compiled else place.type}-{_type_name(dtype)}"
    if compiled:
        found.model.backbone.compile(dynamic=True)
    return Encoder(
        found.model.to(place),
        found.tokenizer,
        max_tokens=max_tokens,
        prompts=found.prompts,
        packed=can_pack(place, dtype),
        arithmetic=arithmetic,
    )


def _take_arithmetic(model: EmbeddingModel, library: str, dtype: str) -> str:
    """Name of the arithmetic that a model on this CPU takes: the wanted one if it can."""
    if library == "onednn" and dtype != "float32":
        library = "torch"
    elif library == "onednn" and not multiply_with_onednn(model):
        library = "torch"
        warn_of_other_arithmetic("onednn-float32", "torch-float32")
    name = name_of(library, dtype, this_processor())
    if name == "emulated-bfloat16":
        warn_of_other_arithmetic("bfloat16", name)
    return name


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def packs_exactly(model: EmbeddingModel, tokenizer: Any) -> bool:
    """Whether a model gives packed texts the vectors of padded ones.

    Not where positions begin at another number than 0 (RoBERTa), or where attention has a
    sliding window: transformers' masks count its ends in, FlashAttention does not.
    """
    device = next(model.parameters()).device
    training = [one for one in model.modules() if one.training]
    ids = token_ids(tokenizer, PROBES, max_tokens=PROBE_TOKENS)
    model.eval()
    try:
        with torch.inference_mode():
            padded_ND = model(Padded.of(ids, device, pad_token=tokenizer.pad_token_id))
            cosine_N = (padded_ND * model(Packed.of(ids, device))).sum(1)
    except (TypeError, RuntimeError, ValueError):  # an architecture that takes no such attention
        return False
    finally:
        for one in training:
            one.training = True
    return float(cosine_N.min()) >= SAME_COSINE


def token_ids(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Each text's token ids, special ones too, up to ``max_tokens``; at least one a text.

    An empty text, and one without a token, is encoded as
    :data:`qzhou.data.prompts.EMPTY_TEXT`, because nothing has no mean. A model whose
    positions end before ``max_tokens`` truncates there.
    """
    return _tokenized(tokenizer, texts, max_tokens)[0]


def _head(text: str, chars: int) -> str:
    """At most so many characters of a text, up to a blank; the whole text where none is near."""
    if len(text) <= chars:
        return text
    end = max(text.rfind(blank, chars // 2, chars) for blank in " \n\t")
    return text if end < 0 else text[:end]


def _tokenized(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> tuple[list[list[int]], list[bool]]:
    """:func:`token_ids`, and which of the texts were truncated."""
    if not texts:
        return [], []
    max_tokens = min(max_tokens, tokenizer.model_max_length)
    encoded = tokenizer([text or EMPTY_TEXT for text in texts], truncation=True, max_length=max_tokens)
    found: list[list[int]] = encoded["input_ids"]
    truncated = [bool(one.overflowing) for one in encoded.encodings or ()] or [False] * len(found)
    if all(found):
        return found, truncated
    empty: list[int] = tokenizer(EMPTY_TEXT, truncation=True, max_length=max_tokens)["input_ids"]
    return [ids or empty for ids in found], truncated
