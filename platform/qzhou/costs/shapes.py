"""The size of a backbone, from its config.json alone: no weights, no torch, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qzhou.errors import ModelError
from qzhou.run.models import resolve

DECODERS = ("qwen2", "qwen3", "llama", "mistral")
ENCODERS = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the cost of a transformer depends on.

    Attributes:
        kind: ``model_type`` of its config.json.
        feed_forward: Inner width of the feed-forward part; decoders have a gate beside it.
        head_width: Of one attention head; heads * head_width need not be the model's width.
        positions: Learned positions; 0 where they are computed.
        biases: Whether a decoder's attention has some on all four products.
    """

    kind: str
    vocabulary: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    positions: int = 0
    token_types: int = 0
    biases: bool = False

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_width

    @property
    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with.

        The embedding is looked up, an embedding model has no head over the vocabulary, and norms and biases cost next
        to nothing. A pooler after the last layer is not asked.
        """
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The weight matrices of one layer."""
        keys = self.key_value_heads * self.head_width
        attention = [(self.attention_width, self.width), (keys, self.width), (keys, self.width)]
        attention += [(self.width, self.attention_width)]
        into = 1 if self.kind in ENCODERS else 2  # decoders have a gate
        return [
            *attention,
            *[(self.feed_forward, self.width)] * into,
            (self.width, self.feed_forward),
        ]

    @property
    def parameters(self) -> int:
        """All weights, those that are only looked up included: what memory depends on."""
        if self.kind in ENCODERS:
            lookups = (self.vocabulary + self.positions + self.token_types) * self.width
            # biases of four products and of the way out of the feed-forward part, and two norms with scale and shift
            small = (
                self.layers * (4 + 1 + 4) * self.width
                + self.layers * self.feed_forward
                + 2 * self.width
            )
            pooler = self.width * self.width + self.width
            return lookups + self.matrix_parameters + small + pooler
        keys_and_values = 2 * self.key_value_heads * self.head_width
        small = 2 * self.width
        if self.kind == "qwen2":
            small += self.attention_width + keys_and_values
        if self.kind == "qwen3":
            small += 2 * self.head_width  # norms of queries and keys
        if self.biases:
            small += self.attention_width + keys_and_values + self.width
        return (
            self.vocabulary * self.width + self.matrix_parameters + self.layers * small + self.width
        )

    def adapter_parameters(self, rank: int) -> int:
        """Weights of low-rank adapters beside every matrix."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.matrices)


@dataclass(frozen=True, slots=True)
class FoundShape:
    """A shape, and a clause that says where it is from."""

    shape: Shape
    source: str


def shape_of(spec: str) -> FoundShape:
    """The shape of a backbone, named as in a recipe.

    A folder's config.json is read, or the one in the hub's cache; nothing is downloaded. Without either, a table has
    the published shapes of well-known backbones.

    Raises:
        ModelError: There is no such folder, the shape is not known here, or it is of a kind that is not counted.
    """
    place = resolve(spec)
    file = Path(place) / "config.json" if Path(place).is_dir() else hub_file(place, "config.json")
    if file is not None:
        return FoundShape(
            shape_from_config(json.loads(file.read_text("utf-8")), spec), "shape of its config.json"
        )
    if place in PUBLISHED:
        return FoundShape(
            PUBLISHED[place], "published shape; its config.json is not on this machine"
        )
    plain = [name for name in PUBLISHED if not name.endswith(("-Instruct", "-Base"))]
    raise ModelError(
        f"the size of '{spec}' is not known: its config.json is not on this machine, and the table of published shapes "
        f"does not have it.\n       Fetch that small file (hf download {spec} config.json), or estimate with one of "
        f"these: --model.backbone {', '.join(plain)}"
    )


def shape_from_config(config: Mapping[str, Any], spec: str) -> Shape:
    """A shape from the content of config.json.

    Raises:
        ModelError: Another kind of model, or sizes are missing.
    """
    kind = str(config.get("model_type"))
    if kind not in DECODERS + ENCODERS:
        raise ModelError(
            f"'{spec}' is of the kind '{kind}', whose operations are not counted here; known: "
            f"{', '.join(DECODERS + ENCODERS)}.\n       Estimate with a backbone of like size: --model.backbone NAME"
        )
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        return Shape(
            kind=kind,
            vocabulary=int(config["vocab_size"]),
            layers=int(config["num_hidden_layers"]),
            width=width,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or (128 if kind == "qwen3" else width // heads)),
            positions=int(config["max_position_embeddings"]) if kind in ENCODERS else 0,
            token_types=int(config.get("type_vocab_size", 2)) if kind in ENCODERS else 0,
            biases=kind != "qwen2" and bool(config.get("attention_bias", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the config.json of '{spec}' does not tell its size: {error} is missing or no number"
        ) from None


def hub_file(hub_id: str, name: str) -> Path | None:
    """A file of a hub model, if it has been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def _decoder(
    kind: str, vocabulary: int, layers: int, width: int, feed_forward: int, heads: tuple[int, int]
) -> Shape:
    return Shape(
        kind=kind,
        vocabulary=vocabulary,
        layers=layers,
        width=width,
        feed_forward=feed_forward,
        heads=heads[0],
        key_value_heads=heads[1],
        head_width=128 if kind == "qwen3" else width // heads[0],
    )


def _encoder(kind: str, vocabulary: int, layers: int, width: int, positions: int = 512) -> Shape:
    """Encoders are four times as wide inside."""
    heads = {384: 12, 768: 12, 1024: 16}[width]
    return Shape(
        kind=kind,
        vocabulary=vocabulary,
        layers=layers,
        width=width,
        feed_forward=4 * width,
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        positions=positions,
        token_types=1 if kind == "xlm-roberta" else 2,
    )


QWEN25 = {
    "7B": _decoder("qwen2", 152_064, 28, 3584, 18_944, (28, 4)),
    "3B": _decoder("qwen2", 151_936, 36, 2048, 11_008, (16, 2)),
    "1.5B": _decoder("qwen2", 151_936, 28, 1536, 8_960, (12, 2)),
    "0.5B": _decoder("qwen2", 151_936, 24, 896, 4_864, (14, 2)),
}
QWEN3 = {
    "8B": (36, 4096, 12_288, (32, 8)),
    "4B": (36, 2560, 9_728, (32, 8)),
    "0.6B": (28, 1024, 3_072, (16, 8)),
}
QWEN3_EMBEDDING_VOCABULARY = {"8B": 151_665, "4B": 151_665, "0.6B": 151_669}
BERT, BERT_ZH, XLMR = ("bert", 30_522), ("bert", 21_128), ("xlm-roberta", 250_002)

# As their config.json on the hub states them.
PUBLISHED: dict[str, Shape] = {
    **{f"Qwen/Qwen2.5-{size}{form}": shape for size, shape in QWEN25.items() for form in ("", "-Instruct")},
    **{f"Qwen/Qwen3-{size}{form}": _decoder("qwen3", 151_936, *sizes)
       for size, sizes in QWEN3.items() for form in ("", "-Base")},
    **{f"Qwen/Qwen3-Embedding-{size}": _decoder("qwen3", QWEN3_EMBEDDING_VOCABULARY[size], *sizes)
       for size, sizes in QWEN3.items()},
    "sentence-transformers/all-MiniLM-L6-v2": _encoder(*BERT, 6, 384),
    "sentence-transformers/all-MiniLM-L12-v2": _encoder(*BERT, 12, 384),
    "BAAI/bge-small-en-v1.5": _encoder(*BERT, 12, 384),
    "BAAI/bge-base-en-v1.5": _encoder(*BERT, 12, 768),
    "BAAI/bge-large-en-v1.5": _encoder(*BERT, 24, 1024),
    "BAAI/bge-base-zh-v1.5": _encoder(*BERT_ZH, 12, 768),
    "BAAI/bge-large-zh-v1.5": _encoder(*BERT_ZH, 24, 1024),
    "BAAI/bge-m3": _encoder(*XLMR, 24, 1024, 8194),
    "intfloat/e5-small-v2": _encoder(*BERT, 12, 384),
    "intfloat/e5-base-v2": _encoder(*BERT, 12, 768),
    "intfloat/e5-large-v2": _encoder(*BERT, 24, 1024),
    "intfloat/multilingual-e5-base": _encoder(*XLMR, 12, 768, 514),
    "intfloat/multilingual-e5-large": _encoder(*XLMR, 24, 1024, 514),
}  # fmt: skip
