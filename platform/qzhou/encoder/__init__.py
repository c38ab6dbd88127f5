"""Text to unit vectors: one encoder for mining, evaluation, serving and the model under training."""

from qzhou.encoder.backbone import EmbeddingModel, choose_device, load_backbone
from qzhou.encoder.encoder import Encoder, load_encoder
from qzhou.encoder.teacher import TextEncoder, load_teacher, stored_as

__all__ = [
    "EmbeddingModel",
    "Encoder",
    "TextEncoder",
    "choose_device",
    "load_backbone",
    "load_encoder",
    "load_teacher",
    "stored_as",
]
