"""Freed memory goes back to the system between chunks.

Chunks have texts of many lengths, so their tensors have many sizes, and glibc keeps what is freed for the next tensor
that fits. Without this a step of 1,024 rows holds twice the memory of one of 64 (LOG.md); it costs a twentieth of the
step. GPUs have an allocator of their own.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch


def give_back(device: torch.device) -> None:
    """Return what is free to the system, where tensors of the device lie in the process's own memory."""
    if device.type == "cpu":
        _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    """glibc's ``malloc_trim``; elsewhere nothing."""
    if sys.platform != "linux":
        return bool
    return getattr(ctypes.CDLL(None), "malloc_trim", bool)
