"""Text to unit vectors: one encoder for mining, evaluation, serving and training.

The names below load torch and transformers, which takes seconds, so each is imported when
it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qzhou.encoder.backbone import EmbeddingModel, choose_device, load_backbone
    from qzhou.encoder.encoder import Encoder, load_encoder
    from qzhou.encoder.text_encoder import TextEncoder, load_text_encoder

__all__ = [
    "EmbeddingModel",
    "Encoder",
    "TextEncoder",
    "choose_device",
    "load_backbone",
    "load_encoder",
    "load_text_encoder",
]
MODULES = ("backbone", "encoder", "text_encoder")


def __getattr__(name: str) -> Any:
    """The public name ``name`` of one of the modules."""
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{one}" for one in MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
