"""The encoder that judges texts for mining and synthesis: one on this machine, or one behind an URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from qzhou.config.api_keys import Keys
from qzhou.config.sections import ModelSection
from qzhou.data.storage import Folder
from qzhou.encoder.encoder import load_encoder
from qzhou.encoder.remote import RemoteEncoder, is_remote

# what an endpoint makes of one sentence differs in the last digits from call to call
SAME_COSINE = 0.9999
PROBE_FILE = "probe.npy"


class TextEncoder(Protocol):
    """What mining and synthesis ask of a teacher."""

    truncated: int

    @property
    def prompts(self) -> Mapping[str, str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def encode(
        self, texts: Sequence[str], *, max_tokens: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]: ...


def load_teacher(spec: str, model: ModelSection, *, api_key_env: str) -> TextEncoder:
    """The encoder that judges texts: one of its own, or the backbone that a recipe trains.

    Args:
        spec: Named like a backbone, or an URL, ``https://host/v1#model``; an empty string is the backbone.
        model: Of the recipe.
        api_key_env: Variable of the environment with the key of an URL.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        SetupError: The key cannot be sent.
    """
    if is_remote(spec):
        return RemoteEncoder(spec, Keys.of([api_key_env]), api_key_env)
    return load_encoder(
        spec or model.backbone,
        max_tokens=model.max_document_tokens,
        pooling=None if spec else model.pooling,
        attention=None if spec else model.attention,
        dtype=model.encodes_in,
        compiled=model.compiled,
    )


def stored_as(teacher: TextEncoder, folder: Folder) -> str:
    """The name below which a teacher's vectors are kept in a folder: another one for other weights.

    The fingerprint of a model on this machine covers its weights. One behind an URL has only a name, so what it makes
    of a sentence is kept beside its vectors and compared.
    """
    if not isinstance(teacher, RemoteEncoder):
        return teacher.fingerprint
    number = 0
    while True:
        name = f"{teacher.fingerprint}-{number}"
        place = folder / name
        if not place.exists(PROBE_FILE):
            place.write_array(PROBE_FILE, teacher.probe)
            return name
        known = place.read_array(PROBE_FILE)
        if known.shape == teacher.probe.shape and float(known @ teacher.probe) >= SAME_COSINE:
            return name
        number += 1
