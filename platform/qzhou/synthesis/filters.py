"""Quality filters for texts that an LLM wrote: copies of the original, and scores of an encoder. Pure."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from qzhou.config.synthesis import FiltersSection
from qzhou.data.languages import CJK

NGRAM_TOKENS = 3
SHORTEST_TOKENS = 6  # shorter texts have too few n-grams for a share

_TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


@dataclass(frozen=True, slots=True)
class Scores:
    """The teacher's cosines of a new record; None where there is nothing to compare.

    Attributes:
        rewrite: Of a rewritten text and its original, the lowest of the record.
        positive: Of query and positive.
        negative: Of query and negative.
        reference_positive: Of query and the positive that bounds the negative's score.
        negative_and_positive: Of the negative and that positive.
    """

    rewrite: float | None = None
    positive: float | None = None
    negative: float | None = None
    reference_positive: float | None = None
    negative_and_positive: float | None = None

    @property
    def margin(self) -> float | None:
        """How far the negative scores below the positive."""
        if self.negative is None or self.reference_positive is None:
            return None
        return self.reference_positive - self.negative


def copied_share(text: str, original: str) -> float:
    """Share of the word trigrams of ``text`` that are in ``original`` too; characters of Chinese and kana are words."""
    return share_among(text, set(word_ngrams(original)))


def share_among(text: str, ngrams: Collection[tuple[str, ...]]) -> float:
    """Share of the word trigrams of ``text`` that are among given ones; 0 of a text of few words."""
    own = word_ngrams(text)
    return sum(ngram in ngrams for ngram in own) / len(own) if own else 0.0


def refused_by_scores(scores: Scores, filters: FiltersSection) -> tuple[str, str] | None:
    """(reason, detail) why the teacher's scores refuse a record; None if they do not."""
    rewrite, positive = scores.rewrite, scores.positive
    lowest, highest = filters.min_rewrite_cosine, filters.max_rewrite_cosine
    if rewrite is not None and lowest is not None and rewrite < lowest:
        return "drifted", f"cosine to its original {rewrite:.3f}, below {lowest:g}"
    if rewrite is not None and highest is not None and rewrite > highest:
        return "too_alike", f"cosine to its original {rewrite:.3f}, above {highest:g}"
    lowest = filters.min_positive_score
    if positive is not None and lowest is not None and positive < lowest:
        return "positive_too_far", f"query and positive score {positive:.3f}, below {lowest:g}"
    alike = scores.negative_and_positive
    if alike is not None and alike > filters.max_negative_cosine:
        detail = f"cosine of negative and positive {alike:.3f}, above {filters.max_negative_cosine:g}"
        return "negative_is_positive", detail
    if filters.negative_below_positive and scores.margin is not None and scores.margin <= 0:
        scored = f"the negative scores {scores.negative:.3f}, the positive {scores.reference_positive:.3f}"
        return "negative_too_close", scored
    return None


def word_ngrams(text: str) -> list[tuple[str, ...]]:
    """The word trigrams of a text in order; none of a text of few words."""
    tokens = _TOKEN.findall(text.casefold())
    if len(tokens) < SHORTEST_TOKENS:
        return []
    return list(zip(*(tokens[start:] for start in range(NGRAM_TOKENS)), strict=False))
