"""Filters that need a model and are switched on by dataset: language and length in tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from qzhou.config.dataset import Dataset
from qzhou.config.sections import ModelSection
from qzhou.data.languages import language_of
from qzhou.data.records import Example
from qzhou.transform.dedup import texts_of

JUDGED_CHARS = 15  # shorter texts are too short to tell a language by


def refusals(
    examples: Sequence[Example], dataset: Dataset, model: ModelSection
) -> list[tuple[str, str] | None]:
    """For each example, why the dataset's filters refuse it: (reason, detail), or None."""
    found: list[tuple[str, str] | None] = [None] * len(examples)
    if dataset.languages:
        for index, example in enumerate(examples):
            text = " ".join(texts_of(example))
            if (
                len(text) >= JUDGED_CHARS
                and (language := language_of(text)) not in dataset.languages
            ):
                found[index] = (
                    "other_language",
                    f"{language}; languages is {', '.join(dataset.languages)}",
                )
    if dataset.max_tokens is not None:
        texts = [texts_of(example) for example in examples]
        counts = iter(_token_counts([text for own in texts for text in own], model.backbone))
        for index, own in enumerate(texts):
            longest = max(next(counts) for _ in own)
            if longest > dataset.max_tokens and found[index] is None:
                found[index] = (
                    "too_many_tokens",
                    f"{longest} tokens; max_tokens is {dataset.max_tokens}",
                )
    return found


def _token_counts(texts: Sequence[str], backbone: str) -> list[int]:
    encoded = _tokenizer(backbone)(
        list(texts), add_special_tokens=True, padding=False, truncation=False, verbose=False
    )
    return [len(ids) for ids in encoded["input_ids"]]


@functools.lru_cache(maxsize=2)
def _tokenizer(backbone: str) -> Any:
    from qzhou.encoder.backbone import load_tokenizer

    return load_tokenizer(backbone)
