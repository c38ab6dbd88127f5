"""The requests to the LLM: for which rows, with which prompt, to which model. Pure.

Retrieval rows are paraphrased, augmented and given hard negatives. Pairs and labelled texts
are only paraphrased: a new aspect would blur their score or label. Source: QZhou-Embedding
(arXiv:2508.21632), section 4.3. A document without a query gets one by two requests: first
who would ask what, then the query. Source: Qwen3-Embedding (arXiv:2506.05176), section 3.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from qzhou.config.synthesis import LLMSection
from qzhou.data.languages import HAN, HANGUL, KANA
from qzhou.data.records import Document, Example, LabeledExample, PairExample, RetrievalExample, Task
from qzhou.synthesis.answer_json import without_thoughts
from qzhou.synthesis.chat import Message, request_key

SynthesisTechnique = Literal[
    "paraphrase", "augmentation", "hard_negative", "query_configuration", "query", "relevance_check"
]
Side = Literal["text_a", "text_b"]
PromptLanguage = Literal["en", "zh"]

TECHNIQUES: Mapping[Task, tuple[SynthesisTechnique, ...]] = {
    "retrieval": ("paraphrase", "augmentation", "hard_negative"),
    "pair": ("paraphrase",),
    "classification": ("paraphrase",),
}
VERSION = "v2"
# Prompts and messages with other names than their techniques: records and keys of cached answers depend on them.
PROMPT_NAMES: Mapping[SynthesisTechnique, str] = {"augmentation": "augment"}
NAMES_IN_MESSAGES: Mapping[SynthesisTechnique, str] = {"relevance_check": "judge"}

QUESTION_TYPES = ("keywords", "factual", "how_to", "reason", "comparison", "summary", "opinion")
DIFFICULTIES = ("high_school", "university", "phd")
QUERY_WORDS = (4, 8, 12, 20, 30)  # a length is drawn for each query
PERSONAS_SHOWN = 5
SHOWN_CHARS = 4000  # of a refused answer


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisRequest:
    """One request to the LLM about one example or document.

    Attributes:
        example_id: Of the example, or of the document that a query is generated for.
        prompt: System prompt as ``id.language@version``.
        user: The user message, a JSON object with the texts.
        side: Of a pair, the text that the paraphrase replaces.
        model: Name of the model that gets the request.
        refused: Refused answers and the replies to them, oldest first: (answer, reply).
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
        """The chat as the endpoint expects it."""
        chat = [{"role": "system", "content": system_prompt(self.prompt)}, {"role": "user", "content": self.user}]
        for answer, reply in self.refused:
            chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": reply}]
        return chat

    @property
    def fields(self) -> dict[str, Any]:
        """The content of the user message."""
        found: dict[str, Any] = json.loads(self.user)
        return found

    def key(self, sampling: Mapping[str, Mapping[str, Any]]) -> str:
        """The key of the answer in the response cache; ``sampling`` is :attr:`SynthesisSection.sampling`."""
        return request_key(self.model, self.messages, sampling[self.model])

    def again(self, answer: str, reason: str) -> SynthesisRequest:
        """The same request once more, with the refused answer, without its thoughts, and the reason."""
        answer = without_thoughts(answer)[:SHOWN_CHARS].strip() or "(nothing)"
        reply = (
            f"Refused: {reason}. Answer the same request again, with the corrected JSON object and nothing else."
        )
        return replace(self, refused=(*self.refused, (answer, reply)))


def requests_for(
    example: Example, technique: SynthesisTechnique, *, variants: int = 1, pool: Sequence[LLMSection] = ()
) -> list[SynthesisRequest]:
    """The requests of one technique for one example; always the same for the same example.

    From the second variant on the message carries a number, so that no two are identical.
    Each request goes to one model of ``pool``, drawn by weight.
    """
    side = side_to_paraphrase(example) if isinstance(example, PairExample) else None
    texts = _texts(example, side)
    contents = [texts | _variant(number) for number in range(variants)]
    requests = [_request(technique, example.dataset, example.id, content, pool) for content in contents]
    return [replace(request, side=side) for request in requests]


def configuration_requests(
    document: Document, dataset: str, *, seed: int, variants: int = 1, pool: Sequence[LLMSection] = ()
) -> list[SynthesisRequest]:
    """First requests for a document's queries: who asks, which question, how difficult."""
    names = personas(prompt_language(document.text))
    requests = []
    for number in range(variants):
        rank = functools.partial(_rank, seed, f"persona {document.id} {number}")
        drawn = sorted(names, key=rank)[:PERSONAS_SHOWN]
        content: dict[str, Any] = {"document": document.text, "personas": drawn, **_variant(number)}
        requests.append(_request("query_configuration", dataset, document.id, content, pool))
    return requests


def query_request(
    configured: SynthesisRequest, configuration: Mapping[str, str], pool: Sequence[LLMSection]
) -> SynthesisRequest:
    """The second request for a query: with the first one's answer and a drawn length."""
    document = configured.fields["document"]
    words = QUERY_WORDS[int(_rank(0, "words", configured.user)[:4], 16) % len(QUERY_WORDS)]
    language = "Chinese" if prompt_language(document) == "zh" else "the document's"
    content = {"document": document, **configuration, "words": words, "language": language}
    return _request("query", configured.dataset, configured.example_id, content, pool)


def relevance_request(
    origin: SynthesisRequest, query: str, document: str, pool: Sequence[LLMSection]
) -> SynthesisRequest:
    """The request whether a document answers a query, both from ``origin``'s answer."""
    content = {"query": query, "document": document}
    return _request("relevance_check", origin.dataset, origin.example_id, content, pool)


def draw(rows: Iterable[Any], purpose: str, *, count: int, seed: int) -> list[Any]:
    """At most ``count`` examples or documents, drawn by the hash of (seed, purpose, id).

    A re-run draws the same rows. A larger ``count`` keeps the rows of a smaller one, so
    that answers which are paid for stay in use.
    """
    return heapq.nsmallest(count, rows, key=lambda row: _rank(seed, purpose, row.id))


def side_to_paraphrase(example: PairExample) -> Side:
    """The text of a pair to paraphrase: the first in half of the pairs, by the id."""
    return "text_a" if int(_rank(0, "side", example.id)[:2], 16) % 2 == 0 else "text_b"


def prompt_language(text: str) -> PromptLanguage:
    """The language of the prompt: Chinese for Chinese texts, English for all others.

    Models follow instructions in the language of the text more closely, and two sets of
    prompts can still be kept alike.
    """
    han = len(re.findall(f"[{HAN}]", text))
    others = len(re.findall(f"[{KANA}{HANGUL}]", text))
    # Japanese has kana beside Han characters; a quoted character does not make an English text Chinese.
    return "zh" if han > others * 5 and han * 3 > sum(map(str.isalpha, text)) else "en"


def model_for(user: str, pool: Sequence[LLMSection]) -> str:
    """One of the models, drawn by weight from the hash of the user message: the same one on every run."""
    if not pool:
        return ""
    place = int(_rank(0, "model", user)[:12], 16) / 16**12 * sum(model.weight for model in pool)
    for model in pool:
        place -= model.weight
        if place < 0:
            return model.model
    return pool[-1].model


@functools.cache
def system_prompt(label: str) -> str:
    """The text of the prompt ``id.language@version``, from the file ``prompts/id.language.version.md``."""
    return _prompt_file(f"{label.replace('@', '.')}.md")


@functools.cache
def example_texts(label: str) -> frozenset[str]:
    """The texts of the example answers in a prompt."""
    answers = re.findall(r"(?:answer|回答|回复|输出)\s*`(\{.*?\})`", system_prompt(label))
    return frozenset(str(text) for answer in answers for text in json.loads(answer).values())


@functools.cache
def personas(language: PromptLanguage) -> tuple[str, ...]:
    """People who might ask, from the lines of ``prompts/personas.<language>.txt``."""
    return tuple(_prompt_file(f"personas.{language}.txt").splitlines())


def _prompt_file(name: str) -> str:
    return resources.files(__package__).joinpath("prompts", name).read_text("utf-8").strip()


def _request(
    technique: SynthesisTechnique,
    dataset: str,
    example_id: str,
    content: Mapping[str, Any],
    pool: Sequence[LLMSection],
) -> SynthesisRequest:
    prompt = PROMPT_NAMES.get(technique, technique)
    name = NAMES_IN_MESSAGES.get(technique, technique)
    user = json.dumps({"technique": name, **content}, ensure_ascii=False)
    texts = " ".join(str(value) for field, value in content.items() if field != "language")
    return SynthesisRequest(
        technique=technique,
        dataset=dataset,
        example_id=example_id,
        prompt=f"{prompt}.{prompt_language(texts)}@{VERSION}",
        user=user,
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
    content = f"{seed}\n{purpose}\n{identity}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()
