"""Writing a model as a sentence-transformers folder, which others load without our code.

The files are written in the spelling of sentence-transformers 2 to 5 and transformers 4,
which their later versions read too. Other readers know no other. With the type names of
sentence-transformers 6, vLLM before its pull request 54533 takes the architecture's usual
pooling. With ``rope_parameters`` alone, transformers 4 rotates by another angle without a
word (cosine 0.77).
"""

import gc
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qzhou.encoder.backbone import EmbeddingModel, load_backbone
from qzhou.encoder.model_files import POOLING_BY_OLD_KEY
from qzhou.errors import TrainingError
from qzhou.telemetry.memory import release_freed_memory

PARITY_COSINE = 0.9999
FILE_SIZE = "4GB"  # S3 copies at most 5 GB in one request, and a model of 7B is 14 GB
PARITY_TEXTS = ("Null", "one line", "a longer text that says several things, one after the other. " * 40)


def save_sentence_transformer(
    model: EmbeddingModel,
    tokenizer: Any,
    folder: Path,
    *,
    max_tokens: int,
    prompts: Mapping[str, str],
    file_size: str = FILE_SIZE,
) -> None:
    """Write weights, tokenizer, pooling, dense layers, normalisation, prompts, similarity to ``folder``.

    ``config.is_causal`` is saved with the backbone, so that a bidirectional decoder stays
    one.

    Args:
        model: In the type in which its weights are saved.
        tokenizer: Its own.
        folder: Made if it is not there.
        max_tokens: Where sentence-transformers truncates texts.
        prompts: Name -> prefix that precedes a text, as sentence-transformers applies it.
        file_size: Of a file of weights, at the most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder, max_shard_size=file_size)
    most, tokenizer.model_max_length = tokenizer.model_max_length, min(max_tokens, tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    tokenizer.model_max_length = most
    _add_older_keys(folder)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    kinds = ["Transformer", "Pooling", *("Dense" for _ in model.dense), "Normalize"]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    width = int(model.backbone.config.hidden_size)
    pooling = {key: pooling == model.pooling for key, pooling in POOLING_BY_OLD_KEY.items()}
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, **pooling, "pooling_mode_mean_sqrt_len_tokens": False,
         "include_prompt": True},
    )  # fmt: skip
    for number, layer in enumerate(model.dense, start=2):
        _write_dense(folder / f"{number}_Dense", layer)
    (folder / f"{len(kinds) - 1}_Normalize").mkdir(exist_ok=True)
    _write_prompts(folder, prompts)


def _write_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    sides = {"query": "", "document": ""}
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            # an older sentence-transformers warns
            "__version__": {
                "sentence_transformers": version("sentence-transformers"),
                "transformers": version("transformers"),
                "pytorch": version("torch"),
            },
            "prompts": sides | dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _add_older_keys(folder: Path) -> None:
    """Write what transformers 4 reads in place of names that version 5 has changed."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    # the class of transformers is saved, whatever code its weights came with
    config.pop("auto_map", None)
    config["torch_dtype"] = config.get("dtype")
    if rope := config.get("rope_parameters"):
        # for each kind of layer, or for all
        whole, window = rope.get("full_attention", rope), rope.get("sliding_attention")
        config["rope_theta"] = whole["rope_theta"]
        if window is not None:
            config["rope_local_base_freq"] = window["rope_theta"]
        if whole.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in whole.items() if key != "rope_theta"}
    _write_json(folder / "config.json", config)
    settings = folder / "tokenizer_config.json"
    tokenizer = json.loads(settings.read_text("utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        _write_json(settings, tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_dense(folder: Path, layer: Any) -> None:
    linear, activation = layer
    named = f"{type(activation).__module__}.{type(activation).__qualname__}"
    _write_json(
        folder / "config.json",
        {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": named,
        },
    )
    state = {f"linear.{key}": value.contiguous() for key, value in linear.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def parity(folder: Path, texts: list[str], *, max_tokens: int, device: str = "cpu") -> float:
    """Lowest cosine between SentenceTransformer(folder) and our encoder over some texts, both in float32.

    One model is loaded after the other: at most one is in memory.
    """
    from sentence_transformers import SentenceTransformer

    from qzhou.encoder.encoder import Encoder

    theirs = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": torch.float32}).encode(texts)
    gc.collect()  # a SentenceTransformer is a circle of references
    release_freed_memory()
    found = load_backbone(str(folder), dtype=torch.float32)
    ours = Encoder(found.model.to(device), found.tokenizer, max_tokens=max_tokens).encode(texts)
    return float((theirs * ours).sum(1).min())


def checked_parity(folder: Path, *, name: str, max_tokens: int, device: str = "cpu") -> float:
    """The :func:`parity` of an exported folder with the same weights in our encoder.

    Args:
        folder: Of the exported model.
        name: Of the model, for the error.
        max_tokens: Where texts are truncated.
        device: On which both compute.

    Raises:
        TrainingError: SentenceTransformer gives other vectors.
    """
    lowest = parity(folder, list(PARITY_TEXTS), max_tokens=max_tokens, device=device)
    if lowest < PARITY_COSINE:
        raise TrainingError(
            f"{name}: SentenceTransformer gives other vectors than the encoder (lowest cosine {lowest:.6f}, "
            f"{PARITY_COSINE} needed)"
        )
    return lowest
