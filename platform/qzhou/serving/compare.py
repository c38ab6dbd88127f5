"""Whether an endpoint gives a model's vectors; other engines read its files each in their own way.

Shape letters in this file: N texts, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch

from qzhou.config.api_keys import Keys
from qzhou.encoder.backbone import is_causal, load_backbone
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.model_files import Attention, Pooling, read_metadata
from qzhou.encoder.remote import RemoteEncoder
from qzhou.encoder.vectors import Vectors
from qzhou.errors import ModelError
from qzhou.run.models import find_model, local_model
from qzhou.serving.batch_embed import MAX_TOKENS
from qzhou.serving.loading import lowest_cosine

SAME, CLOSE = 0.999, 0.99  # lowest cosine of another order of the same sums, and of weights in 8 bits
WORDS = ("the", "engine", "of", "a", "river", "boat", "turns", "over", "deep", "green", "water", "in", "evening")
PROBES = {
    "a word": "harbour",
    "a sentence": "How do I sort a list in place?",
    "its reverse": "Place in list a sort I do how?",
    "another script": "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65\u3002",
    "accents": "Na\u00efve caf\u00e9s \u00fcberm\u00e4\u00dfig gro\u00df",
    "code": "def f(x):\n\treturn {'a': x[0]}\n",
    "spaces": "  two  spaces and a line\n\nbetween  ",
}
LONG = "a long text"
SHARES_READ = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)  # of it


@dataclass(frozen=True, slots=True)
class Comparison:
    """How near an endpoint's vectors are to a model's.

    Attributes:
        cosines: By the name of the probe.
        cause: What the endpoint does instead, where one thing explains its vectors; else empty.
    """

    cosines: Mapping[str, float]
    cause: str = ""

    @property
    def lowest(self) -> float:
        """The cosine of the probe that is furthest off."""
        return min(self.cosines.values())

    @property
    def is_same(self) -> bool:
        """Whether nothing is left to explain but the order of sums, or weights of fewer bits."""
        return self.lowest >= CLOSE

    def __str__(self) -> str:
        """A line for each probe, and what follows from them."""
        lines = [f"  {cosine:8.5f}  {name}" for name, cosine in self.cosines.items()]
        if self.lowest >= SAME:
            said = f"the vectors are the model's (lowest cosine {self.lowest:.5f})"
        elif self.is_same:
            said = (
                f"the vectors are near the model's, as of weights in fewer bits (lowest cosine {self.lowest:.5f})"
            )
        else:
            said = f"the vectors are others (lowest cosine {self.lowest:.5f}, and {CLOSE} is near): {self.cause}"
        return "\n".join([*lines, said])


def compare(model: str, url: str, api_key_env: str = "OPENAI_API_KEY") -> Comparison:
    """Ask an endpoint for vectors and compare them with what a model's files say.

    Args:
        model: A run's folder, a model's, a hub id, or a URI.
        url: ``https://host/v1#name``, of OpenAI's format.
        api_key_env: Variable of the environment with its key.

    Raises:
        ModelError: The model cannot be loaded, the URL is none, or the endpoint does not answer with finite vectors of
            its width.
    """
    if not url.startswith(("http://", "https://")):
        raise ModelError(f"'{url}' is no URL; write it as http://127.0.0.1:8000/v1#name")
    remote = RemoteEncoder(url, Keys.of([api_key_env], os.environ), api_key_env)
    with local_model(find_model(model)) as place:
        variant = _Variants(place)
        probes = PROBES | {LONG: variant.long_text()}
        theirs_ND = remote.encode(list(probes.values()))
        ours_ND = variant.vectors(list(probes.values()))
        if ours_ND.shape != theirs_ND.shape:
            raise ModelError(
                f"{url} answers with {theirs_ND.shape[1]} dimensions, and {model} has {ours_ND.shape[1]}: it is "
                "another model, or a layer after pooling is left out."
            )
        cosine_N = (ours_ND * theirs_ND).sum(axis=1)
        cosines = {name: round(float(cosine), 5) for name, cosine in zip(probes, cosine_N, strict=True)}
        found = Comparison(cosines)
        if found.is_same:
            return found
        cause = variant.explained(list(probes.values()), theirs_ND)
        return Comparison(cosines, cause or "nothing that was tried explains them; is it this model?")


class _Variants:
    """A model as its files say, and as an engine may misread them."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._metadata = read_metadata(place)
        self._found = load_backbone(place, dtype=torch.float32)
        self._most = min(self._found.max_tokens, MAX_TOKENS, self._found.tokenizer.model_max_length)

    def long_text(self) -> str:
        """About four fifths of what the model reads."""
        text, number = "", 0
        while len(self._found.tokenizer(text)["input_ids"]) < 0.8 * self._most:
            text += f"{WORDS[number % len(WORDS)]} {number} "
            number += 1
        return text

    def vectors(self, texts: list[str], most: int = 0, **other: Any) -> Vectors:
        """Unit vectors [N, D] of so many tokens of each text; ``other`` is said in place of the files."""
        found = load_backbone(self._place, dtype=torch.float32, **other) if other else self._found
        return encoder_of(found, max_tokens=most or self._most).encode(texts)

    def explained(self, texts: list[str], theirs_ND: Vectors) -> str:
        """What gives the endpoint's vectors; empty where nothing that is tried does."""
        for said, ours_ND in self._tried(texts):
            if lowest_cosine(ours_ND, theirs_ND) >= CLOSE:
                return said
        return ""

    def _tried(self, texts: list[str]) -> Iterator[tuple[str, Vectors]]:
        was: Attention = "causal" if is_causal(self._found.model.backbone) else "bidirectional"
        turned: Attention = "bidirectional" if was == "causal" else "causal"
        poolings = [one for one in get_args(Pooling) if one != self._found.model.pooling]
        directed = (
            f"it attends {turned}, and the model {was} (is_causal, use_bidirectional_attention in config.json)"
        )
        yield directed, self.vectors(texts, attention=turned)
        for pooling in poolings:
            pooled = (
                f"it pools by '{pooling}', and the model by '{self._found.model.pooling}' (1_Pooling/config.json)"
            )
            yield pooled, self.vectors(texts, pooling=pooling)
        for name, prompt in (self._metadata.prompts or {}).items():
            if prompt:
                said = f"it puts the model's prompt '{name}' before every text; switch its default prompt off"
                yield said, self.vectors([prompt + text for text in texts])
        for share in SHARES_READ:
            limit = max(1, round(share * len(self._found.tokenizer(texts[-1])["input_ids"])))
            said = f"it reads about {limit} tokens of a long text, and the model {self._most}; raise its limit"
            yield said, self.vectors(texts, most=limit)
        for pooling in poolings:
            yield f"{directed}, and it pools by '{pooling}'", self.vectors(texts, attention=turned, pooling=pooling)
