"""Loading a backbone: a folder, a hub id, or a model that ships inside a Python package."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from qzhou.encoder.attention import PACKED, Packed
from qzhou.encoder.pooling import Pooling, pool, pool_packed
from qzhou.errors import ModelError, first_line

Attention = Literal["bidirectional", "causal"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WAYS = "Name a folder with config.json, a hub id like 'Qwen/Qwen2.5-7B-Instruct', or package:<import name>/<folder>."

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask [N, T] to float32 unit vectors [N, D]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def packed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of N texts to float32 unit vectors [N, D], without padding; inference only."""
        row = Packed.of(ids, next(self.parameters()).device)
        config = self.backbone.config
        before, config._attn_implementation = config._attn_implementation, PACKED
        try:
            hidden = self.backbone(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                ends=row.ends,
                longest=row.longest,
                is_causal=is_causal(self.backbone),
            ).last_hidden_state
        finally:
            config._attn_implementation = before
        return pool_packed(hidden[0], row.ends, self.pooling)


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
        attention: ``bidirectional`` sets ``config.is_causal = False``, which transformers (5.2 and later)
            honours for decoders; ``None`` keeps what the folder declares.
        dtype: Type of the weights.

    Raises:
        ModelError: There is no such model, or it cannot be loaded; says what was looked for.
    """
    place = resolve(spec)
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place)
        if attention is not None:
            config.is_causal = attention == "causal"
        config.use_cache = False  # an encoder never continues a text
        model = AutoModel.from_pretrained(place, config=config, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model '{spec}' cannot be loaded: {first_line(error)}\n       {WAYS}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    folder = Path(place)
    return Backbone(
        EmbeddingModel(model, pooling or _declared_pooling(folder) or "mean"),
        tokenizer,
        _declared(folder / "config_sentence_transformers.json").get("prompts") or {},
    )


def load_tokenizer(spec: str) -> Any:
    """The tokenizer of a model, without its weights.

    Raises:
        ModelError: There is no such model.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve(spec))
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of '{spec}' cannot be loaded: {first_line(error)}\n       {WAYS}") from None


def resolve(spec: str) -> str:
    """The folder or hub id behind a model's name.

    Raises:
        ModelError: The package is not installed or has no such folder, or a path does not exist.
    """
    if spec.startswith("package:"):
        package, _, inside = spec.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package) if package else None
        if found is None or not found.submodule_search_locations:
            raise ModelError(f"the model '{spec}' needs the Python package '{package}': pip install it first. {WAYS}")
        folder = Path(found.submodule_search_locations[0]) / inside
    else:
        folder = Path(spec).expanduser()
        if not folder.exists() and HUB_ID.fullmatch(spec):
            return spec
    if not (folder / "config.json").exists():
        what = "has no config.json" if folder.exists() else "does not exist"
        raise ModelError(f"the model '{spec}': the folder {folder} {what}. {WAYS}")
    return str(folder)


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The type to compute in; ``auto`` is bfloat16 where the hardware multiplies in it."""
    if dtype in {"float32", "float16"}:
        return torch.float32 if dtype == "float32" else torch.float16
    if dtype == "bfloat16" or _computes_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def is_causal(backbone: nn.Module) -> bool:
    """Whether a backbone's tokens see only what stands before them: a decoder that nobody made bidirectional."""
    declared = getattr(backbone.config, "is_causal", None)
    if declared is not None:
        return bool(declared)
    return any(getattr(module, "is_causal", False) for module in backbone.modules())


def choose_device(device: str | None = None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _computes_bfloat16(device: torch.device) -> bool:
    """Emulated bfloat16 is slower than float32; on AMX or AVX-512 BF16 it is about three times faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def _declared_pooling(folder: Path) -> Pooling | None:
    """The pooling of a sentence-transformers folder, in its old or its new spelling."""
    declared = _declared(folder / "1_Pooling" / "config.json")
    if isinstance(mode := declared.get("pooling_mode"), str):
        return POOLING_BY_NAME.get(mode)
    return next((pooling for key, pooling in POOLING_BY_OLD_KEY.items() if declared.get(key)), None)


def _declared(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}
