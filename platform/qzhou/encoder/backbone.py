"""Loading a backbone: a folder, a hub id, or a model that ships inside a Python package."""

import functools
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from qzhou.config.model import ModelSection
from qzhou.encoder.arithmetic import dtype_for, this_processor, warn_of_other_arithmetic
from qzhou.encoder.attention import PACKED, Packed, Padded, using_attention
from qzhou.encoder.model_files import BOTH_WAYS, Attention, DenseLayer, Pooling, declared_attention, read_metadata
from qzhou.encoder.pooling import pool, pool_packed
from qzhou.errors import ModelError, first_line
from qzhou.run.models import MODEL_NAME_HELP, is_gguf, model_file, pretrained, resolve, why_unreadable

# what reading a model's files may raise; the last of GGUF
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, ImportError, RuntimeError, EOFError,
    SafetensorError, UnpicklingError, StrictDataclassError, struct.error,
)  # fmt: skip

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class EmbeddingModel(nn.Module):
    """A backbone with pooling, perhaps dense layers, and normalisation: token ids to unit vectors."""

    def __init__(self, backbone: Any, pooling: Pooling, dense: Sequence[nn.Module] = ()) -> None:
        """Put together what is loaded.

        Args:
            backbone: Gives hidden states.
            pooling: How they become one vector.
            dense: Applied to it in order, before normalisation; each is a linear layer with its activation.
        """
        super().__init__()
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.dense = nn.Sequential(*dense)

    @property
    def dimensions(self) -> int:
        """D, the width of a vector."""
        if len(self.dense):
            return int(self.dense[-1][0].out_features)  # type: ignore[index]
        return int(self.backbone.config.hidden_size)

    def forward(self, texts: Padded | Packed) -> Tensor:
        """Token ids of N texts to float32 unit vectors [N, D]."""
        if isinstance(texts, Padded):
            mask = texts.attention_mask if texts.attention_bias is None else texts.attention_bias
            hidden = self.backbone(input_ids=texts.input_ids, attention_mask=mask).last_hidden_state
            return self._finished(pool(hidden, texts.attention_mask, self.pooling))
        with using_attention(self.backbone, PACKED):
            hidden = self.backbone(
                input_ids=texts.input_ids,
                position_ids=texts.position_ids,
                ends=texts.ends,
                longest=texts.longest,
                is_causal=is_causal(self.backbone),
            ).last_hidden_state
        return self._finished(pool_packed(hidden[0], texts.ends, self.pooling))

    def _finished(self, vector_ND: Tensor) -> Tensor:
        if len(self.dense):
            weight = next(self.dense.parameters(), vector_ND)  # in eight bits there are none, and it takes float32
            vector_ND = self.dense(vector_ND.to(weight.dtype)).float()
        return torch.nn.functional.normalize(vector_ND, dim=-1)


@dataclass(frozen=True, slots=True)
class Backbone:
    """What :func:`load_backbone` found.

    Attributes:
        tokenizer: Its own.
        prompts: Name -> prefix, as its files declare them; None of a language model that declares no embedding.
        max_tokens: Where sentence-transformers truncates its texts; ``sys.maxsize`` if its files do not say.
    """

    model: EmbeddingModel
    tokenizer: Any
    prompts: dict[str, str] | None
    max_tokens: int = sys.maxsize


def load_backbone(
    spec: str,
    *,
    pooling: Pooling | None = None,
    attention: Attention | None = None,
    bare_attention: Attention | None = None,
    dtype: torch.dtype,
) -> Backbone:
    """Load a model and its tokenizer for embedding.

    Args:
        spec: A local folder, a GGUF file, a hub id, or ``package:<import name>/<folder>``.
        pooling: ``None`` takes what a sentence-transformers folder declares, else ``mean``.
        attention: ``bidirectional``: ``config.is_causal = False``, which transformers 5.2+
            honours for decoders; ``None`` keeps what the folder declares.
        bare_attention: Likewise, of a language model that declares no embedding.
        dtype: Type of the weights.

    Raises:
        ModelError: There is no such model, it cannot be loaded, or it computes something that this encoder does not.
    """
    metadata = read_metadata(spec, pooling=pooling, attention=attention)
    attention = attention or (None if metadata.is_embedding_model else bare_attention) or metadata.attention
    place = resolve(spec)
    files = _files_of(place)
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(**files)
        if attention is None:
            attention = _declared_attention(config)
        if attention is not None:
            config = _attending(config, attention)
        config.use_cache = False  # an encoder never continues a text
        model, loaded = AutoModel.from_pretrained(
            **files, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        if is_gguf(place):
            model = _unpacked(model, dtype)
        tokenizer = AutoTokenizer.from_pretrained(**files)
    except UNREADABLE as error:
        raise ModelError(
            f"the model '{spec}' cannot be loaded: {why_unreadable(error, place)}\n       {MODEL_NAME_HELP}"
        ) from None
    _refuse_random_weights(spec, loaded)
    with torch.no_grad():
        # a pooler, which no vector depends on: random weights would give each load another fingerprint
        for name in loaded["missing_keys"]:
            model.get_parameter(name).zero_()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(model))
    dense = [_dense(spec, one).to(dtype) for one in metadata.dense]
    return Backbone(
        EmbeddingModel(model, metadata.pooling or "mean", dense),
        tokenizer,
        metadata.prompts or ({} if metadata.is_embedding_model else None),
        metadata.max_tokens or sys.maxsize,
    )


def load_recipe_model(model: ModelSection, *, dtype: torch.dtype, spec: str = "") -> Backbone:
    """The model that a recipe trains, as training starts from it.

    What ``[model]`` leaves open is as the model's files declare it. A language model that
    declares no embedding becomes bidirectional, with mean pooling.

    Args:
        model: Of the recipe.
        dtype: Type of the weights.
        spec: In place of ``model.backbone``: the same model after a stage of training.

    Raises:
        ModelError: As for :func:`load_backbone`.
    """
    return load_backbone(
        spec or model.backbone,
        pooling=model.pooling,
        attention=model.attention,
        bare_attention="bidirectional",
        dtype=dtype,
    )


def load_config(spec: str) -> Any:
    """The config of a model's backbone, weights unread.

    Raises:
        ModelError: There is no such model.
    """
    try:
        return AutoConfig.from_pretrained(**_files_of(resolve(spec)))
    except UNREADABLE as error:
        raise ModelError(
            f"the model '{spec}' cannot be read: {first_line(error)}\n       {MODEL_NAME_HELP}"
        ) from None


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
        return AutoTokenizer.from_pretrained(**_files_of(resolve(spec)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer of '{spec}' cannot be loaded: {first_line(error)}\n       {MODEL_NAME_HELP}"
        ) from None


@functools.lru_cache(maxsize=2)
def token_counter(spec: str) -> Callable[[str], int]:
    """A function that counts a text's tokens, without those that stand at its ends.

    Raises:
        ModelError: There is no such model.
    """
    tokenizer = load_tokenizer(spec)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    return count


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
    config: Any = backbone.config
    declared = declared_attention(config.to_dict())
    if declared is not None and ("is_causal" in config.to_dict() or not _knows_both_ways(config)):
        return declared == "causal"
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


def _files_of(place: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained``."""
    if is_gguf(place):
        file = Path(place)
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return pretrained(place)


def _unpacked(model: Any, dtype: torch.dtype) -> Any:
    """The model of a GGUF file as any other: transformers would not save one that it has read from such a file."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    plain = AutoModel.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def _attending(config: Any, attention: Attention) -> Any:
    """The config of a model that attends in one or both directions, in either spelling (:func:`declared_attention`)."""
    both_ways: bool | str | None = attention == "bidirectional"
    if str(config.model_type).startswith("gemma4"):
        both_ways = "all" if both_ways else None
    if _knows_both_ways(config):
        # the constructor also sets the width of its sliding window
        config = type(config).from_dict(config.to_dict() | {BOTH_WAYS: both_ways})
    setattr(config, BOTH_WAYS, both_ways)
    config.is_causal = attention == "causal"
    return config


def _declared_attention(config: Any) -> Attention | None:
    """What a config declares; None where it says nothing, and of Gemma, which is never without the second spelling."""
    declared = declared_attention(config.to_dict())
    is_told = declared == "bidirectional" or not _knows_both_ways(config)
    return declared if is_told and ("is_causal" not in config.to_dict() or not _knows_both_ways(config)) else None


def _knows_both_ways(config: Any) -> bool:
    """Whether transformers reads ``use_bidirectional_attention`` of this architecture: Gemma's."""
    return hasattr(type(config), BOTH_WAYS)


def _dense(spec: str, layer: DenseLayer) -> nn.Module:
    """A dense layer with its weights."""
    place = resolve(spec)
    file = model_file(place, f"{layer.folder}/model.safetensors", download=True)
    older = None if file else model_file(place, f"{layer.folder}/pytorch_model.bin", download=True)
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias)
    activation = getattr(nn, layer.activation, None)
    try:
        if activation is None:
            raise ValueError(f"torch.nn has no {layer.activation}")
        if file is None and older is None:
            raise ValueError("its weights are missing")
        state = load_file(file) if file else torch.load(str(older), map_location="cpu", weights_only=True)
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    except UNREADABLE as error:
        raise ModelError(
            f"the model '{spec}': the layer {layer.folder} cannot be loaded: {why_unreadable(error, place)}. "
            f"{MODEL_NAME_HELP}"
        ) from None
    return nn.Sequential(linear, activation())


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
