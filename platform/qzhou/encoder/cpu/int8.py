"""Dense layers in eight bits, on CPUs."""

import warnings
from typing import Any

import torch

from qzhou.encoder.encoder import Encoder


def to_int8(encoder: Encoder) -> Encoder:
    """The same encoder with the weights of its dense layers in 8 bits, one scale a layer.

    The input of a layer is brought to 8 bits too, scaled by the largest value in the batch
    (dynamic quantization). So a vector depends a little on its batch, by less than it
    differs from float32.

    Args:
        encoder: In float32 on a CPU, with torch's own layers; it is changed.
    """
    fingerprint = f"{encoder.fingerprint}-int8"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao will move to another package
        quantize: Any = torch.ao.quantization.quantize_dynamic
        encoder.model = quantize(encoder.model, {torch.nn.Linear}, dtype=torch.qint8)
    encoder.fingerprint = fingerprint
    return encoder
