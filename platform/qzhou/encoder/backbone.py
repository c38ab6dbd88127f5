"""Loading a backbone: a folder, a hub id, or a model that ships inside a Python package."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from qzhou.encoder.arithmetic import dtype_for, this_processor, warn_of_other_arithmetic
from qzhou.encoder.attention import PACKED, Packed, Padded, using_attention
from qzhou.encoder.pooling import Pooling, pool, pool_packed
from qzhou.errors import ModelError, first_line
from qzhou.run.models import MODEL_NAME_HELP, resolve

Attention = Literal["bidirectional", "causal"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POOLING_BY_NAME: dict[str, Pooling] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
POOLING_BY_OLD_KEY: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


class EmbeddingModel(nn.Module):
    """A backbone with pooling and normalisation: token ids to unit vectors."""

    def __init__(self, backbone: Any, pooling: Pooling) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling: Pooling = pooling

    def forward(self, texts: Padded | Packed) -> Tensor:
        """Token ids of N texts to float32 unit vectors [N, D]."""
        if isinstance(texts, Padded):
            mask = texts.attention_mask if texts.attention_bias is None else texts.attention_bias
            hidden = self.backbone(input_ids=texts.input_ids, attention_mask=mask).last_hidden_state
            return pool(hidden, texts.attention_mask, self.pooling)
        with using_attention(self.backbone, PACKED):
            hidden = self.backbone(
                input_ids=texts.input_ids,
                position_ids=texts.position_ids,
                ends=texts.ends,
                longest=texts.longest,
                is_causal=is_causal(self.backbone),
            ).last_hidden_state
        return pool_packed(hidden[0], texts.ends, self.pooling)


@dataclass(frozen=True, slots=True)
class Backbone:
    """What :func:`load_backbone` found."""

    model: EmbeddingModel
    tokenizer: Any
    prompts: dict[str, str]


def load_backbone(
    spec: str, *, pooling: Pooling | None = None, attention: Attention | None = None, dtype: torch.dtype
) -> Backbone:
    """Load a model and its tokenizer for embedding.

    Args:
        spec: A local folder, a hub id, or ``package:<import name>/<folder>``.
        pooling: ``None`` takes what a sentence-transformers folder declares, else ``mean``.
        attention: ``bidirectional``: ``config.is_causal = False``, which transformers 5.2+
            honours for decoders; ``None`` keeps what the folder declares.
        dtype: Type of the weights.

    Raises:
        ModelError: There is no such model, or it cannot be loaded; says what was sought.
    """
    place = resolve(spec)
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place)
        if attention is not None:
            config.is_causal = attention == "causal"
        config.use_cache = False  # an encoder never continues a text
        model, loaded = AutoModel.from_pretrained(
            place, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"the model '{spec}' cannot be loaded: {first_line(error)}\n       {MODEL_NAME_HELP}"
        ) from None
    _refuse_random_weights(spec, loaded)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(model))
    _refuse_other_modules(spec, place)
    return Backbone(
        EmbeddingModel(model, pooling or _declared_pooling(spec, place) or "mean"),
        tokenizer,
        _declared(place, "config_sentence_transformers.json").get("prompts") or {},
    )


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model's files say besides its weights; None where they say nothing.

    Attributes:
        config: Of its backbone.
        is_normalised: Whether its vectors have unit length in sentence-transformers.
        prompts: Name -> prefix.
        max_tokens: Where sentence-transformers truncates, if not left to the tokenizer.
    """

    config: Any
    pooling: Pooling | None
    is_normalised: bool | None
    prompts: dict[str, str] | None
    max_tokens: int | None


def read_metadata(spec: str) -> ModelMetadata:
    """What a model's files say of it, weights unread.

    Raises:
        ModelError: There is no such model, or it computes something else than a backbone and a pooling.
    """
    place = resolve(spec)
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model '{spec}' cannot be read: {first_line(error)}\n       {MODEL_NAME_HELP}"
        ) from None
    _refuse_other_modules(spec, place)
    modules = _modules(place)
    longest = _declared(place, "sentence_bert_config.json").get("max_seq_length")
    return ModelMetadata(
        config=config,
        pooling=_declared_pooling(spec, place),
        is_normalised="Normalize" in modules if modules else None,
        prompts=_declared(place, "config_sentence_transformers.json").get("prompts"),
        max_tokens=None if longest is None else int(longest),
    )


def meta_model(config: Any) -> Any:
    """A config's backbone without memory for weights: names, shapes, and how it attends."""
    with torch.device("meta"):
        return AutoModel.from_config(config)


def load_tokenizer(spec: str) -> Any:
    """The tokenizer of a model, without its weights.

    Raises:
        ModelError: There is no such model.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve(spec))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer of '{spec}' cannot be loaded: {first_line(error)}\n       {MODEL_NAME_HELP}"
        ) from None


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type to compute in; ``auto`` is bfloat16 where the hardware multiplies in it.

    Where it is emulated, float32 is faster. With AMX or AVX-512 BF16 bfloat16 is about
    three times faster (LOG.md).
    """
    if device.type == "cpu":
        dtype = dtype_for(dtype, this_processor())
    elif dtype == "auto":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has_bfloat16 else "float32"
        if not has_bfloat16:
            warn_of_other_arithmetic("bfloat16", "cuda-float32")
    return TYPES[dtype]


def is_causal(backbone: nn.Module) -> bool:
    """Whether a backbone's tokens see only what stands before them: a decoder that nobody made bidirectional."""
    declared = getattr(backbone.config, "is_causal", None)
    if declared is not None:
        return bool(declared)
    return any(getattr(module, "is_causal", False) for module in backbone.modules())


def choose_device(device: str | None = None) -> torch.device:
    """The device of that name; by default the GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _positions(model: Any) -> int:
    """Tokens for which the model learned positions; computed positions have no end."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return sys.maxsize
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _declared_pooling(spec: str, place: str) -> Pooling | None:
    """The pooling that a sentence-transformers model declares, in its old or new spelling.

    Raises:
        ModelError: It is one that this encoder does not know.
    """
    declared = _declared(place, "1_Pooling/config.json")
    mode = declared.get("pooling_mode")
    old = [key for key, value in declared.items() if key.startswith("pooling_mode_") and value is True]
    asked = [mode] if isinstance(mode, str) else old
    known = POOLING_BY_NAME | POOLING_BY_OLD_KEY
    if not asked:
        return None
    if len(asked) > 1 or asked[0] not in known:
        raise ModelError(
            f"the model '{spec}' pools by {' and '.join(asked)}; this encoder pools by {', '.join(POOLING_BY_NAME)}. "
            "Set model.pooling, or take another model."
        )
    return known[asked[0]]


def _refuse_other_modules(spec: str, place: str) -> None:
    """A sentence-transformers model may have more than backbone, pooling, normalisation."""
    other = [one for one in _modules(place) if one not in {"Transformer", "Pooling", "Normalize"}]
    if other:
        raise ModelError(
            f"the model '{spec}' has a module {other[0]} after its backbone, which this encoder does not compute; its "
            "vectors would be others. Serve it and name its URL, https://host/v1#model, or take another model."
        )


def _refuse_random_weights(spec: str, loaded: Mapping[str, Any]) -> None:
    """Weights that a model's files lack, or have in another shape, are made up by transformers with a mere warning.

    A pooler is not asked for its opinion: many encoders are published without one.
    """
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    other = sorted(str(key) for key, *_ in loaded["mismatched_keys"])
    for keys, what in ((missing, "are not in its files"), (other, "have other shapes there than config.json says")):
        if keys:
            raise ModelError(
                f"the model '{spec}' cannot be loaded: {len(keys)} of its weights {what} ({', '.join(keys[:3])}"
                f"{', ...' if len(keys) > 3 else ''}). Its files are not whole, or not of one model. {MODEL_NAME_HELP}"
            )


def _declared(place: str, name: str) -> dict[str, Any]:
    """A JSON object beside the weights, in a folder or on the hub; empty without one."""
    file = _file(place, name)
    return dict(json.loads(file.read_text("utf-8"))) if file else {}


def _modules(place: str) -> list[str]:
    """The kinds of a sentence-transformers model's parts; empty where it declares none."""
    file = _file(place, "modules.json")
    return [str(one["type"]).rsplit(".", 1)[-1] for one in json.loads(file.read_text("utf-8"))] if file else []


def _file(place: str, name: str) -> Path | None:
    if Path(place).is_dir():
        file = Path(place) / name
        return file if file.exists() else None
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(place, name, **{f"_raise_exceptions_for_{what}": False for what in quiet})
    return Path(found) if found else None
