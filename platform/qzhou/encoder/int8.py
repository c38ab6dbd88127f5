"""Dense layers in eight bits, on CPUs."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from qzhou.encoder.encoder import Encoder


def to_int8(encoder: Encoder) -> Encoder:
    """The same encoder with the weights of its dense layers in 8 bits, one scale a layer.

    What goes into a layer is brought to 8 bits too, by the largest value in the batch (dynamic quantization): so a
    vector depends a little on its batch, and less than it differs from float32.

    Args:
        encoder: In float32 on a CPU; it is changed.
    """
    fingerprint = f"{encoder.fingerprint}-int8"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.ao's future
        quantize: Any = torch.ao.quantization.quantize_dynamic
        encoder.model = quantize(encoder.model, {torch.nn.Linear}, dtype=torch.qint8)
    encoder.__dict__["fingerprint"] = fingerprint
    return encoder
