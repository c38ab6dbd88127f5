"""The teacher of mining and synthesis: the encoder whose scores choose texts, on this machine or behind an URL."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from qzhou.config.api_keys import Keys
from qzhou.config.model import ModelSection
from qzhou.encoder.backbone import choose_device, choose_dtype, load_backbone, load_recipe_model
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.vectors import Vectors

SIDES = ("query", "document")


class TextEncoder(Protocol):
    """What mining, evaluation and synthesis need of an encoder."""

    truncated: int

    @property
    def prompts(self) -> Mapping[str, str] | None:
        """Name -> prefix, as the model declares them; None of a language model, and of an endpoint."""

    @property
    def fingerprint(self) -> str:
        """Digest of what a vector depends on besides the text, the arithmetic and our code."""

    @property
    def arithmetic(self) -> str:
        """Name of the type and the library that multiply: "onednn-float32"."""

    @property
    def probe(self) -> Vectors | None:
        """The vector [D] of one sentence, for a model whose weights cannot be seen."""

    @property
    def dimensions(self) -> int:
        """D, the width of a vector."""

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None) -> Vectors:
        """Unit vectors [N, D] in the order of the texts."""


def load_text_encoder(spec: str, model: ModelSection, *, api_key_env: str) -> TextEncoder:
    """A teacher of its own, or the backbone that a recipe trains.

    Args:
        spec: Named as a backbone, or a URL ``https://host/v1#model``; empty: the backbone.
        model: Of the recipe.
        api_key_env: Variable of the environment with the key of an URL.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        SetupError: The key cannot be sent.
    """
    own = dict(zip(SIDES, model.prefixes_of[spec], strict=True)) if spec in model.prefixes_of else None
    if spec.startswith(("http://", "https://")):
        from qzhou.encoder.remote import RemoteEncoder  # the client of endpoints takes a second to load

        remote = RemoteEncoder(spec, Keys.of([api_key_env]), api_key_env)
        remote.prompts = own
        return remote
    dtype = choose_dtype(model.encodes_in, choose_device())
    most = model.max_document_tokens
    if spec:
        found = load_backbone(spec, attention=model.attention_of.get(spec), dtype=dtype)
        found = replace(found, prompts=own or found.prompts)
        most = min(most, found.max_tokens)
    else:
        found = load_recipe_model(model, dtype=dtype)
    return encoder_of(found, max_tokens=most, library=model.arithmetic, compiled=model.compiled)
