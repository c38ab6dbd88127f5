"""What becomes of unit vectors on their way out: fewer dimensions, fewer bits, text.

Shape letters in this file: N texts, D embedding width, K dimensions asked for (K <= D).
"""

import base64
from typing import Any, Literal

import numpy as np

Vectors = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, np.dtype[Any]]
OutputDtype = Literal["float", "int8", "ubinary"]

INT8_REACH = 127.0


def shortened(vectors_ND: Vectors, dimensions: int) -> Vectors:
    """The first coordinates [N, K], made unit vectors again (Matryoshka embeddings, arXiv:2205.13147)."""
    if dimensions == vectors_ND.shape[1]:
        return vectors_ND
    cut_NK = vectors_ND[:, :dimensions]
    length_N1 = np.linalg.norm(cut_NK, axis=1, keepdims=True)
    unit_NK: Vectors = cut_NK / np.maximum(length_N1, np.finfo(np.float32).tiny)
    return unit_NK


def quantized(vectors_NK: Vectors, dtype: OutputDtype) -> Array:
    """Vectors in fewer bits.

    - ``float``: as they are.
    - ``int8`` [N, K]: each vector in multiples of its own largest coordinate / 127. A vector's length is lost with its
      scale, and cosines are kept; no other text has a part in it, so that a text has one
      answer.
    - ``ubinary`` [N, ceil(K / 8)]: one bit a coordinate, whether it is above 0, packed as ``numpy.packbits`` does.
    """
    if dtype == "int8":
        reach_N1 = np.maximum(np.abs(vectors_NK).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        scaled: Array = np.rint(vectors_NK * (INT8_REACH / reach_N1)).astype(np.int8)
        return scaled
    if dtype == "ubinary":
        bits: Array = np.packbits(vectors_NK > 0, axis=1)
        return bits
    return vectors_NK


def as_base64(array_NK: Array) -> list[str]:
    """Each row as base64 of its little-endian bytes: for floats a third of the size of decimals, and exact."""
    rows = array_NK.astype(array_NK.dtype.newbyteorder("<"), copy=False)
    return [base64.b64encode(row.tobytes()).decode() for row in rows]
