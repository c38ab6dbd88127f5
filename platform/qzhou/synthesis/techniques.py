"""What is asked of the LLM, of which rows, and in which words. Pure.

Retrieval rows are paraphrased, augmented and given hard negatives. Pairs and labelled texts are only paraphrased: a new
aspect would blur their score or label. Source: QZhou-Embedding (arXiv:2508.21632), section 4.3. Bare documents get a
query in two steps, first who would ask what, then the question itself: Qwen3-Embedding (arXiv:2506.05176), section 3.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from qzhou.config.synthesis import LLMSection
from qzhou.data.records import (
    Document,
    Example,
    LabeledExample,
    PairExample,
    RetrievalExample,
    Task,
)

SynthesisTechnique = Literal[
    "paraphrase", "augmentation", "hard_negative", "query_configuration", "query", "judge"
]
Side = Literal["text_a", "text_b"]
PromptLanguage = Literal["en", "zh"]
Message = dict[str, str]

TECHNIQUES: Mapping[Task, tuple[SynthesisTechnique, ...]] = {
    "retrieval": ("paraphrase", "augmentation", "hard_negative"),
    "pair": ("paraphrase",),
    "classification": ("paraphrase",),
}
VERSION = "v2"
PROMPTS: Mapping[SynthesisTechnique, str] = {
    "paraphrase": "paraphrase",
    "augmentation": "augment",
    "hard_negative": "hard_negative",
    "query_configuration": "query_configuration",
    "query": "query",
    "judge": "judge",
}

QUESTION_TYPES = ("keywords", "factual", "how_to", "reason", "comparison", "summary", "opinion")
DIFFICULTIES = ("high_school", "university", "phd")
QUERY_WORDS = (4, 8, 12, 20, 30)  # a length is drawn for each query
PERSONAS_SHOWN = 5

_HAN = ("\u4e00", "\u9fff")
_KANA_AND_HANGUL = (("\u3040", "\u30ff"), ("\uac00", "\ud7af"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to the LLM about one example or document.

    Attributes:
        example_id: Of the example, or of the document that a query is generated for.
        prompt: System prompt as ``id.language@version``.
        user: The user message, a JSON object with the texts.
        side: Pairs: the text that is replaced by its paraphrase.
        model: That is asked.
        refused: What was answered before and why it was refused, oldest first: (answer, reason).
    """

    technique: SynthesisTechnique
    dataset: str
    example_id: str
    prompt: str
    user: str
    side: Side | None = None
    model: str = ""
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The chat as the endpoint wants it."""
        chat = [
            {"role": "system", "content": system_prompt(self.prompt)},
            {"role": "user", "content": self.user},
        ]
        for answer, reason in self.refused:
            chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": reason}]
        return chat

    @property
    def fields(self) -> dict[str, Any]:
        """What the user message holds."""
        found: dict[str, Any] = json.loads(self.user)
        return found

    def again(self, answer: str, reason: str) -> ChatRequest:
        """The same question once more, with the answer that was refused and the reason."""
        told = f"Refused: {reason}. Answer the same request again, with the corrected JSON object and nothing else."
        return replace(self, refused=(*self.refused, (answer, told)))


def requests_for(
    example: Example,
    technique: SynthesisTechnique,
    *,
    variants: int = 1,
    pool: Sequence[LLMSection] = (),
) -> list[ChatRequest]:
    """The questions that ``technique`` asks about ``example``; the same for the same example, always.

    Args:
        example: To be rewritten.
        technique: One that its task has.
        variants: How often it is asked; from the second on the message carries a number, so that no two are identical.
        pool: Models; each request goes to one of them, drawn by weight.
    """
    side = side_to_paraphrase(example) if isinstance(example, PairExample) else None
    texts = _texts(example, side)
    return [
        _request(technique, example.dataset, example.id, texts | _variant(number), pool, side=side)
        for number in range(variants)
    ]


def configuration_requests(
    document: Document,
    dataset: str,
    *,
    seed: int,
    variants: int = 1,
    pool: Sequence[LLMSection] = (),
) -> list[ChatRequest]:
    """The first of two questions for a query to a bare document: who would ask, what kind of question, how hard."""
    language = prompt_language(document.text)
    found = []
    for number in range(variants):
        shown = sorted(
            personas(language), key=lambda one: _rank(seed, f"persona {document.id} {number}", one)
        )
        content = {
            "document": document.text,
            "personas": shown[:PERSONAS_SHOWN],
            **_variant(number),
        }
        found.append(_request("query_configuration", dataset, document.id, content, pool))
    return found


def query_request(
    configured: ChatRequest, configuration: Mapping[str, str], pool: Sequence[LLMSection]
) -> ChatRequest:
    """The second question: the query itself, with what the first one's answer says and a length that is drawn."""
    fields = configured.fields
    words = QUERY_WORDS[int(_rank(0, "words", configured.user)[:4], 16) % len(QUERY_WORDS)]
    content = {
        "document": fields["document"],
        **configuration,
        "words": words,
        "language": "Chinese" if prompt_language(fields["document"]) == "zh" else "the document's",
    }
    return _request("query", configured.dataset, configured.example_id, content, pool)


def judge_request(
    origin: ChatRequest, query: str, document: str, pool: Sequence[LLMSection]
) -> ChatRequest:
    """Does the document answer the query? Asked of what another answer brought."""
    return _request(
        "judge", origin.dataset, origin.example_id, {"query": query, "document": document}, pool
    )


def chosen(identities: Iterable[Any], purpose: str, *, rows: int, seed: int) -> list[Any]:
    """At most ``rows`` examples or documents, drawn by the hash of (seed, purpose, id).

    A re-run draws the same rows, and asking for more rows keeps those that were drawn before, so that answers which
    are already paid for stay in use.
    """
    return heapq.nsmallest(rows, identities, key=lambda one: _rank(seed, purpose, one.id))


def side_to_paraphrase(example: PairExample) -> Side:
    """Half of the pairs change their first text, half their second; the id decides."""
    return "text_a" if int(_rank(0, "side", example.id)[:2], 16) % 2 == 0 else "text_b"


def prompt_language(text: str) -> PromptLanguage:
    """Chinese texts are asked about in Chinese, all others in English: instructions in its own language are followed
    more closely, and two sets of prompts can still be kept alike."""
    han = sum(_HAN[0] <= char <= _HAN[1] for char in text)
    others = sum(first <= char <= last for char in text for first, last in _KANA_AND_HANGUL)
    return "zh" if han > others * 5 and han * 3 > sum(map(str.isalpha, text)) else "en"


def model_for(identity: str, pool: Sequence[LLMSection]) -> str:
    """One of the models, drawn by weight from the hash of what is asked: the same one on every run."""
    if not pool:
        return ""
    place = int(_rank(0, "model", identity)[:12], 16) / 16**12 * sum(one.weight for one in pool)
    for one in pool:
        place -= one.weight
        if place < 0:
            return one.model
    return pool[-1].model


@cache
def system_prompt(label: str) -> str:
    """The text of a prompt named ``id.language@version``, kept beside the code as ``prompts/<label>.md``."""
    return _prompt_file(f"{label.replace('@', '.')}.md")


@cache
def personas(language: PromptLanguage) -> tuple[str, ...]:
    """People who might ask, one a line of ``prompts/personas.<language>.txt``."""
    return tuple(_prompt_file(f"personas.{language}.txt").splitlines())


def _prompt_file(name: str) -> str:
    return resources.files(__package__).joinpath("prompts", name).read_text("utf-8").strip()


def _request(
    technique: SynthesisTechnique,
    dataset: str,
    identity: str,
    content: Mapping[str, Any],
    pool: Sequence[LLMSection],
    side: Side | None = None,
) -> ChatRequest:
    user = json.dumps({"technique": technique, **content}, ensure_ascii=False)
    language = prompt_language(
        " ".join(str(value) for name, value in content.items() if name != "language")
    )
    return ChatRequest(
        technique=technique,
        dataset=dataset,
        example_id=identity,
        prompt=f"{PROMPTS[technique]}.{language}@{VERSION}",
        user=user,
        side=side,
        model=model_for(user, pool),
    )


def _variant(number: int) -> dict[str, int]:
    return {"variant": number + 1} if number else {}


def _texts(example: Example, side: Side | None) -> dict[str, str]:
    if isinstance(example, RetrievalExample):
        return {"query": example.query, "positive": example.positives[0]}
    if isinstance(example, LabeledExample):
        return {"text": example.text}
    return {"text": example.text_a if side == "text_a" else example.text_b}


def _rank(seed: int, purpose: str, identity: str) -> str:
    return hashlib.sha256(
        f"{seed}\n{purpose}\n{identity}".encode("utf-8", "surrogatepass")
    ).hexdigest()
