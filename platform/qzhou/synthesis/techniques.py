"""What is asked of the LLM, of which rows, and in which words. Pure.

Retrieval rows are paraphrased, augmented and given hard negatives. Pairs and labelled texts are
only paraphrased: a new aspect would blur their score or label. Source: QZhou-Embedding
(arXiv:2508.21632), section 4.3.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from qzhou.records import Example, LabeledExample, PairExample, RetrievalExample, Task

SynthesisTechnique = Literal["paraphrase", "augmentation", "hard_negative"]
Side = Literal["text_a", "text_b"]
Message = dict[str, str]

TECHNIQUES: Mapping[Task, tuple[SynthesisTechnique, ...]] = {
    "retrieval": ("paraphrase", "augmentation", "hard_negative"),
    "pair": ("paraphrase",),
    "classification": ("paraphrase",),
}

PROMPTS: Mapping[SynthesisTechnique, str] = {
    "paraphrase": "paraphrase.en@v1",
    "augmentation": "augment.en@v1",
    "hard_negative": "hard_negative.en@v1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to the LLM about one example.

    Attributes:
        prompt: System prompt as ``id@version``.
        user: The user message, a JSON object with the texts.
        side: Pairs: the text that is replaced by its paraphrase.
    """

    technique: SynthesisTechnique
    dataset: str
    example_id: str
    prompt: str
    user: str
    side: Side | None = None

    @property
    def messages(self) -> list[Message]:
        return chat_messages(self.prompt, self.user)


def requests_for(example: Example, technique: SynthesisTechnique) -> ChatRequest:
    """The question that ``technique`` asks about ``example``; the same for the same example, always."""
    side = side_to_paraphrase(example) if isinstance(example, PairExample) else None
    return ChatRequest(
        technique=technique,
        dataset=example.dataset,
        example_id=example.id,
        prompt=PROMPTS[technique],
        user=json.dumps({"technique": technique, **_texts(example, side)}, ensure_ascii=False),
        side=side,
    )


def chosen(examples: Iterable[Example], technique: SynthesisTechnique, *, rows: int, seed: int) -> list[Example]:
    """At most ``rows`` raw examples, drawn by the hash of (seed, technique, id).

    A re-run draws the same rows, and asking for more rows keeps those that were drawn before, so
    that answers which are already paid for stay in use.
    """
    raw = (example for example in examples if example.source.technique == "raw")
    return heapq.nsmallest(rows, raw, key=lambda example: _rank(seed, technique, example.id))


def side_to_paraphrase(example: PairExample) -> Side:
    """Half of the pairs change their first text, half their second; the id decides."""
    return "text_a" if int(_rank(0, "side", example.id)[:2], 16) % 2 == 0 else "text_b"


def chat_messages(prompt: str, user: str) -> list[Message]:
    """The chat as the endpoint wants it."""
    return [{"role": "system", "content": system_prompt(prompt)}, {"role": "user", "content": user}]


@cache
def system_prompt(label: str) -> str:
    """The text of a prompt named ``id@version``, kept beside the code as ``prompts/<id>.<version>.md``."""
    return resources.files(__package__).joinpath("prompts", f"{label.replace('@', '.')}.md").read_text("utf-8").strip()


def _texts(example: Example, side: Side | None) -> dict[str, str]:
    if isinstance(example, RetrievalExample):
        return {"query": example.query, "positive": example.positives[0]}
    if isinstance(example, LabeledExample):
        return {"text": example.text}
    return {"text": example.text_a if side == "text_a" else example.text_b}


def _rank(seed: int, purpose: str, identity: str) -> str:
    return hashlib.sha256(f"{seed}\n{purpose}\n{identity}".encode()).hexdigest()
