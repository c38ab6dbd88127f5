"""Writing a model as a sentence-transformers folder, which others load without our code."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qzhou.encoder.backbone import POOLING_BY_NAME, POOLING_BY_OLD_KEY, EmbeddingModel, load_backbone
from qzhou.errors import TrainingError

PARITY_COSINE = 0.9999
PARITY_TEXTS = ("Null", "one line", "a longer text that says several things, one after the other. " * 40)


def save_sentence_transformer(
    model: EmbeddingModel, tokenizer: Any, folder: Path, *, max_tokens: int, prompts: Mapping[str, str]
) -> None:
    """Write weights, tokenizer, pooling, normalisation, prompts, similarity to ``folder``.

    ``config.is_causal`` is saved with the backbone, so that a bidirectional decoder stays
    one.

    Args:
        model: In the type in which its weights are saved.
        tokenizer: Its own.
        folder: Made if it is not there.
        max_tokens: Where sentence-transformers truncates texts.
        prompts: Name -> prefix that precedes a text, as sentence-transformers applies it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    with tempfile.TemporaryDirectory() as temporary:
        model.backbone.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        dtype = next(model.parameters()).dtype
        names = {pooling: name for name, pooling in POOLING_BY_NAME.items()}
        transformer = Transformer(temporary, max_seq_length=max_tokens, model_kwargs={"dtype": dtype})
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), names[model.pooling]), Normalize()]
        exported = SentenceTransformer(
            modules=modules, prompts=dict(prompts), similarity_fn_name="cosine", device="cpu"
        )
        folder.mkdir(parents=True, exist_ok=True)
        exported.save_pretrained(str(folder), create_model_card=False)
    _add_older_pooling_keys(folder / "1_Pooling" / "config.json", model)


def parity(folder: Path, model: EmbeddingModel, tokenizer: Any, texts: list[str], *, max_tokens: int) -> float:
    """Lowest cosine between SentenceTransformer(folder) and our encoder over some texts, both in float32."""
    from sentence_transformers import SentenceTransformer

    from qzhou.encoder.encoder import Encoder

    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}).encode(texts)
    ours = Encoder(model.float(), tokenizer, max_tokens=max_tokens).encode(texts)
    return float((theirs * ours).sum(1).min())


def checked_parity(folder: Path, *, name: str, max_tokens: int) -> float:
    """The :func:`parity` of an exported folder with the same weights in our encoder.

    Args:
        folder: Of the exported model.
        name: Of the model, for the error.
        max_tokens: Where texts are truncated.

    Raises:
        TrainingError: SentenceTransformer gives other vectors.
    """
    found = load_backbone(str(folder), dtype=torch.float32)
    lowest = parity(folder, found.model, found.tokenizer, list(PARITY_TEXTS), max_tokens=max_tokens)
    if lowest < PARITY_COSINE:
        raise TrainingError(
            f"{name}: SentenceTransformer gives other vectors than the encoder (lowest cosine {lowest:.6f}, "
            f"{PARITY_COSINE} needed)"
        )
    return lowest


def _add_older_pooling_keys(file: Path, model: EmbeddingModel) -> None:
    """Servers that parse sentence-transformers folders still seek a boolean per mode."""
    config = json.loads(file.read_text("utf-8"))
    config["word_embedding_dimension"] = config["embedding_dimension"]
    config |= {key: pooling == model.pooling for key, pooling in POOLING_BY_OLD_KEY.items()}
    file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
