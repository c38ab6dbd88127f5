"""Memory that forward passes leave behind goes back to the system.

Batches of ever other shapes leave the C library's heap in pieces, and it keeps them; and oneDNN keeps what it has
compiled for each of the last thousand shapes. A replica under mixed load grew from 1.1 to 2.6 GB within fourteen
minutes (LOG.md).
"""

from __future__ import annotations

import ctypes
import os

# that oneDNN remembers; a batch of mixed texts seldom has the shape of an earlier one
SHAPES = "128"
# oneDNN's own, and that of torch's layer above
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def remember_fewer_shapes() -> None:
    """Before torch computes anything; what the environment says already stays."""
    for name in CAPACITIES:
        os.environ.setdefault(name, SHAPES)


def give_back() -> None:
    """Return the free pages of the heap; nothing where the C library has no such call (glibc has)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
