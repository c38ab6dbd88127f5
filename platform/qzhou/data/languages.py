"""Which language a text is in, by py3langid's naive Bayes."""

from __future__ import annotations

import functools
from typing import Any

CLASSIFIED_CHARS = 1000
CERTAIN = 0.75  # technical prose is taken for many languages, seldom with such confidence
SHORTEST_BYTES = 40  # below, a name or two decides
# a written sentence seldom tells Mandarin from Wu and Cantonese
CHINESE = {"wuu": "zh", "yue": "zh"}


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely language; written Chinese is always ``zh``."""
    return _classified(text)[0]


def are_different_languages(text: str, other: str) -> bool:
    """Whether two texts are in different languages beyond doubt; short ones leave doubt."""
    if (
        min(len(text.encode("utf-8", "replace")), len(other.encode("utf-8", "replace")))
        < SHORTEST_BYTES
    ):
        return False
    (first, first_share), (second, second_share) = _classified(text), _classified(other)
    return first != second and min(first_share, second_share) >= CERTAIN


def _classified(text: str) -> tuple[str, float]:
    code, share = _identifier().classify(text[:CLASSIFIED_CHARS])
    return CHINESE.get(str(code), str(code)), float(share)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
