"""Text to unit vectors: one encoder for mining, evaluation, serving and the model under training."""

from qzhou.encoder.backbone import EmbeddingModel, load_backbone
from qzhou.encoder.encoder import Encoder, load_encoder

__all__ = ["EmbeddingModel", "Encoder", "load_backbone", "load_encoder"]
