"""Filters by language and by length in tokens, which a dataset switches on."""

import functools
from collections.abc import Sequence
from typing import Any

from qzhou.config.dataset import Dataset
from qzhou.config.model import ModelSection
from qzhou.data.languages import LANGUAGES_OF_SCRIPT, certain_language, language_of, script_of
from qzhou.data.records import Example
from qzhou.transform.rules.examples import texts_of

Refusal = tuple[str, str]  # reason, detail


def refusals(examples: Sequence[Example], dataset: Dataset, model: ModelSection) -> list[Refusal | None]:
    """For each example, why the dataset's filters refuse it: (reason, detail), or None."""
    texts = [texts_of(example) for example in examples]
    found: list[Refusal | None] = [None] * len(examples)
    if dataset.max_tokens is not None:
        found = _too_many_tokens(texts, dataset.max_tokens, model.backbone)
    if dataset.languages:
        for index, own in enumerate(texts):
            found[index] = _other_language(" ".join(own), dataset.languages) or found[index]
    return found


def _other_language(text: str, languages: Sequence[str]) -> Refusal | None:
    language = certain_language(text)
    others = LANGUAGES_OF_SCRIPT.get(script_of([text]))
    if others is not None and others.isdisjoint(languages):
        language = language_of(text)
    if not language or language in languages:
        return None
    return "other_language", f"{language}; languages is {', '.join(languages)}"


def _too_many_tokens(texts: Sequence[Sequence[str]], max_tokens: int, backbone: str) -> list[Refusal | None]:
    flat = [text for own in texts for text in own]
    encoded = _tokenizer(backbone)(flat, add_special_tokens=True, padding=False, truncation=False, verbose=False)
    counts = iter(map(len, encoded["input_ids"]))
    longest = [max(next(counts) for _ in own) for own in texts]
    detail = f"tokens; max_tokens is {max_tokens}"
    return [("too_many_tokens", f"{count} {detail}") if count > max_tokens else None for count in longest]


@functools.lru_cache(maxsize=2)
def _tokenizer(backbone: str) -> Any:
    from qzhou.encoder.backbone import load_tokenizer

    return load_tokenizer(backbone)
