"""N-grams of tokens as 64-bit hashes, for whole batches of texts at once.

A token is a word, or one character of Chinese or Japanese.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from qzhou.data.languages import CJK
from qzhou.data.splitmix import GOLDEN

_TOKEN = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
_SINGLE = re.compile(f"[{CJK}]")


@dataclass(frozen=True, slots=True)
class NgramSizes:
    """Words in a row, or characters of Chinese and kana, that count as one n-gram."""

    words: int = 13
    chars: int = 20


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of some texts, one text after the other.

    Attributes:
        hashes: uint64, one a token.
        ends: int64; text i has the tokens ``ends[i]`` to ``ends[i + 1]``.
        is_cjk: For each text, whether half of its tokens or more are single characters.
    """

    hashes: np.ndarray
    ends: np.ndarray
    is_cjk: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Tokens:
        """Tokens without regard to case, punctuation and white space."""
        hash_of: dict[str, int] = {}
        found: list[int] = []
        ends, is_cjk = [0], []
        for text in texts:
            tokens = _TOKEN.findall(text.casefold())
            for token in tokens:
                if token not in hash_of:
                    content = token.encode("utf-8", "surrogatepass")
                    hash_of[token] = xxhash.xxh3_64_intdigest(content)
            found += [hash_of[token] for token in tokens]
            ends.append(len(found))
            single = 0 if text.isascii() else sum(map(bool, map(_SINGLE.match, tokens)))
            is_cjk.append(2 * single >= len(tokens) > 0)
        return cls(np.array(found, dtype=np.uint64), np.array(ends), np.array(is_cjk, dtype=bool))


def windows(tokens: Tokens, size: int, *, whole_if_shorter: bool) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of ``size`` tokens of every text.

    With ``whole_if_shorter``, a text with fewer tokens is one n-gram by itself, if it has
    any tokens. Its hash differs from that of the same tokens inside a longer text.

    Returns: Hashes (uint64), and int64 ends: text i has the n-grams ``ends[i]`` to ``ends[i
        + 1]``.
    """
    lengths, begins = np.diff(tokens.ends), tokens.ends[:-1]
    counts = np.maximum(lengths - size + 1, 0)
    short = (lengths < size) & (lengths > 0)
    if whole_if_shorter:
        counts = np.where(short, 1, counts)
    ends = np.concatenate(([0], np.cumsum(counts)))
    grams = np.empty(int(ends[-1]), dtype=np.uint64)
    full = lengths >= size
    if full.any():
        own = counts[full]
        # The position of each n-gram inside its own text.
        inside = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        targets = np.repeat(ends[:-1][full], own) + inside
        sources = np.repeat(begins[full], own) + inside
        grams[targets] = _rolled(tokens.hashes, size)[sources]
    if whole_if_shorter:
        for length in np.unique(lengths[short]):
            chosen = short & (lengths == length)
            grams[ends[:-1][chosen]] = ~_rolled(tokens.hashes, int(length))[begins[chosen]]
    return grams, ends


def _rolled(hashes: np.ndarray, size: int) -> np.ndarray:
    """A hash of the ``size`` tokens from each position on."""
    starts = len(hashes) - size + 1
    rolled = np.zeros(starts, dtype=np.uint64)
    for step in range(size):
        rolled = rolled * GOLDEN + hashes[step : step + starts]
    return (rolled ^ (rolled >> np.uint64(32))) * GOLDEN
