"""What is refused of a text that an LLM wrote: copies, other languages, and what a teacher scores wrongly. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qzhou.config.synthesis import GatesSection

COPIED_NGRAM = 3
SHORTEST_TOKENS = 6  # fewer make no n-grams to speak of

_TOKEN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a teacher says of a new record, as cosines; None where there is nothing to compare.

    Attributes:
        rewrite: Of a rewritten text and its original, the lowest of the record.
        positive: Of query and positive.
        negative: Of query and negative.
        negative_of: Of query and the positive that the negative must stay below.
    """

    rewrite: float | None = None
    positive: float | None = None
    negative: float | None = None
    negative_of: float | None = None


def copied_share(text: str, original: str) -> float:
    """Share of the word trigrams of ``text`` (characters of Chinese and kana) that stand in ``original`` too."""
    grams, others = _grams(text), set(_grams(original))
    return sum(gram in others for gram in grams) / len(grams) if grams else 0.0


def refused_by_scores(scores: Scores, gates: GatesSection) -> tuple[str, str] | None:
    """(reason, detail) why a teacher's scores refuse a record; None if they do not."""
    if scores.rewrite is not None:
        if gates.min_rewrite_cosine is not None and scores.rewrite < gates.min_rewrite_cosine:
            return (
                "drifted",
                f"cosine to its original {scores.rewrite:.3f}, below {gates.min_rewrite_cosine:g}",
            )
        if gates.max_rewrite_cosine is not None and scores.rewrite > gates.max_rewrite_cosine:
            return (
                "too_alike",
                f"cosine to its original {scores.rewrite:.3f}, above {gates.max_rewrite_cosine:g}",
            )
    low = gates.min_positive_score
    if scores.positive is not None and low is not None and scores.positive < low:
        return "positive_too_far", f"query and positive score {scores.positive:.3f}, below {low:g}"
    if (
        gates.negative_below_positive
        and scores.negative is not None
        and scores.negative_of is not None
        and scores.negative >= scores.negative_of
    ):
        return (
            "negative_too_close",
            f"the negative scores {scores.negative:.3f}, the positive {scores.negative_of:.3f}",
        )
    return None


def _grams(text: str) -> list[tuple[str, ...]]:
    tokens = _TOKEN.findall(text.casefold())
    if len(tokens) < SHORTEST_TOKENS:
        return []
    return [
        tuple(tokens[start : start + COPIED_NGRAM])
        for start in range(len(tokens) - COPIED_NGRAM + 1)
    ]
