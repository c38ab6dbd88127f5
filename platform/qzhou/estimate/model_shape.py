"""The size of a transformer, from its config.json alone: no weights, torch or network."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qzhou.errors import ModelError
from qzhou.run.models import model_file, resolve

TABLE = Path(__file__).with_name("model_shapes.toml")
DECODERS = ("qwen2", "qwen3", "llama", "mistral")
ENCODERS = ("bert", "roberta", "xlm-roberta")
PUBLISHED_SOURCE = "published shape; its config.json is not on this machine"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide what a transformer costs.

    Attributes:
        kind: ``model_type`` of its config.json.
        feed_forward: Inner width of the feed-forward part; decoders have a gate beside it.
        head_width: Of one attention head; heads * head_width need not be the model's width.
        positions: Learned positions; 0 where positions are computed.
        biases: Whether all four products of a decoder's attention have a bias.
        source: Where the sizes are from.
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
    source: str = field(default=PUBLISHED_SOURCE, compare=False)

    @property
    def attention_width(self) -> int:
        """Width of all attention heads together."""
        return self.heads * self.head_width

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of the weight matrices of one layer."""
        keys = self.key_value_heads * self.head_width
        attention = [(self.attention_width, self.width), (keys, self.width), (keys, self.width)]
        inward = [(self.feed_forward, self.width)] * (1 if self.kind in ENCODERS else 2)  # decoders have a gate
        return [*attention, (self.width, self.attention_width), *inward, (self.width, self.feed_forward)]

    @property
    def matrix_parameters(self) -> int:
        """Weights that every token is multiplied with.

        The embedding is a look-up, an embedding model has no head over the vocabulary, and
        norms and biases cost next to nothing. A pooler after the last layer is not used.
        """
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def parameters(self) -> int:
        """All weights, those of look-ups included: memory depends on them."""
        if self.kind in ENCODERS:
            lookups = (self.vocabulary + self.positions + self.token_types) * self.width
            # biases of four attention products and two feed-forward products; two norms per layer, one before
            small = self.layers * (9 * self.width + self.feed_forward) + 2 * self.width
            pooler = self.width * self.width + self.width
            return lookups + self.matrix_parameters + small + pooler
        key_value_width = 2 * self.key_value_heads * self.head_width
        small = 2 * self.width
        if self.kind == "qwen2":
            small += self.attention_width + key_value_width
        if self.kind == "qwen3":
            small += 2 * self.head_width  # norms of queries and keys
        if self.biases:
            small += self.attention_width + key_value_width + self.width
        lookups = self.vocabulary * self.width
        return lookups + self.matrix_parameters + self.layers * small + self.width

    def activation_bytes(self, *, recomputed: bool) -> tuple[int, int]:
        """Bytes of activations in 16 bits: for each token that is held, and for each token of one pass besides.

        What transformers' layers keep for the backward pass, counted by torch's hooks of
        saved tensors (LOG.md): inputs of products and norms, the latter also in 32 bits.
        With gradient checkpointing the input of each layer is held, and all of one layer
        while its backward pass is computed.
        """
        heads = self.attention_width + self.key_value_heads * self.head_width
        gated, of_heads = (1, 0) if self.kind in ENCODERS else (2, 10 if self.kind == "qwen3" else 4)
        layer = 4 * gated * self.feed_forward + 16 * self.width + of_heads * heads
        return (2 * self.width * self.layers, layer) if recomputed else (layer * self.layers, 0)

    def adapter_parameters(self, rank: int) -> int:
        """Weights of low-rank adapters beside every matrix."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.matrices)


@cache
def published_shapes() -> dict[str, ModelShape]:
    """Model -> its shape, for well-known models."""
    rows = tomllib.loads(TABLE.read_text("utf-8"))
    return {name: ModelShape(*row) for name, row in rows.items()}


def shape_of(spec: str) -> ModelShape:
    """The shape of a model, named as in a recipe.

    It comes from the config.json of a folder or of the hub's cache; nothing is downloaded.
    Without one, it comes from a table of the published shapes of well-known models.

    Raises:
        ModelError: The size is not known here, or the kind of model is not.
    """
    place = resolve(spec)
    known = published_shapes()
    if file := model_file(place, "config.json"):
        return shape_from_config(json.loads(file.read_text("utf-8")), spec)
    repository = place.partition("@")[0]
    if repository in known:
        return known[repository]
    plain = [name for name in known if not name.endswith(("-Instruct", "-Base"))]
    raise ModelError(
        f"the size of '{spec}' is not known: its config.json is not on this machine, and the table of published shapes "
        f"does not have it.\n       Fetch that small file (hf download {repository} config.json), or estimate with one "
        f"of these: --model.backbone {', '.join(plain)}"
    )


def shape_from_config(config: Mapping[str, Any], spec: str) -> ModelShape:
    """A shape from the content of config.json.

    Raises:
        ModelError: The kind of model is not known, or sizes are missing.
    """
    kind = str(config.get("model_type"))
    if kind not in DECODERS + ENCODERS:
        raise ModelError(
            f"'{spec}' is of the kind '{kind}', whose operations are not counted here; known: "
            f"{', '.join(DECODERS + ENCODERS)}.\n       Estimate with a model of like size: --model.backbone NAME"
        )
    is_encoder = kind in ENCODERS
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        usual_head = 128 if kind == "qwen3" else width // heads
        return ModelShape(
            kind=kind,
            vocabulary=int(config["vocab_size"]),
            layers=int(config["num_hidden_layers"]),
            width=width,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or usual_head),
            positions=int(config["max_position_embeddings"]) if is_encoder else 0,
            token_types=int(config.get("type_vocab_size", 2)) if is_encoder else 0,
            biases=kind != "qwen2" and bool(config.get("attention_bias", False)),
            source="shape of its config.json",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the config.json of '{spec}' does not tell its size: {error} is missing or no number"
        ) from None
