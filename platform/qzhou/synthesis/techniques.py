"""The requests to the LLM: for which rows, with which prompt, to which model. Pure.

Retrieval rows are paraphrased, augmented and given hard negatives. Pairs and labelled texts
are only paraphrased: a new aspect would blur their score or label. Source: QZhou-Embedding
(arXiv:2508.21632), section 4.3. A document without a query gets one: type, difficulty and
length are drawn, and the model chooses who would ask. Source: Qwen3-Embedding
(arXiv:2506.05176), section 3, which has the model choose them all, in a request of its own.
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
from qzhou.data.languages import CJK, HAN, HANGUL, KANA
from qzhou.data.records import Document, Example, LabeledExample, PairExample, RetrievalExample, Task
from qzhou.synthesis.answer_json import without_thoughts
from qzhou.synthesis.chat import Message, request_key

SynthesisTechnique = Literal["paraphrase", "augmentation", "hard_negative", "query", "relevance_check"]
Side = Literal["text_a", "text_b"]
PromptLanguage = Literal["en", "zh"]

TECHNIQUES: Mapping[Task, tuple[SynthesisTechnique, ...]] = {
    "retrieval": ("paraphrase", "augmentation", "hard_negative"),
    "pair": ("paraphrase",),
    "classification": ("paraphrase",),
}
VERSION = "v3"

QUESTION_TYPES = ("keywords", "factual", "how_to", "reason", "comparison", "summary", "opinion")
DIFFICULTIES = ("high_school", "university", "phd")
QUERY_WORDS = (5, 8, 12, 20, 30)  # a length is drawn for each query
KEYWORDS = (2, 3, 4, 6)  # in a query without a sentence
PERSONAS_SHOWN = 12
CHARS_READ: Mapping[PromptLanguage, int] = {"en": 5, "zh": 2}  # of a document, for each token of an encoder
TEXT_FIELDS = ("query", "positive", "text", "document")
SHOWN_CHARS = 4000  # of a refused answer
CHARS_PER_WORD: Mapping[PromptLanguage, int] = {"en": 7, "zh": 3}  # a little more than the usual, with its blank
_WITHOUT_BLANKS = re.compile(f"[{CJK}\u0e00-\u0e7f]")  # Chinese, kana, Thai: a word has no visible end
EXAMPLE_LINES: Mapping[str, str] = {
    "en": "An example of the form, about something else; take no words from it. To `{request}` answer `{answer}`",
    "zh": "下面的例子只示范形式，内容与你的任务无关，不要照搬。对 `{request}`，回答 `{answer}`",
}


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
        parts = system_prompt(self.prompt), _example(self.technique, self.prompt, self.user)
        chat = [
            {"role": "system", "content": "\n\n".join(filter(None, parts))},
            {"role": "user", "content": self.user},
        ]
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
    content = _with_lengths(technique, texts)
    contents = [content | _variant(number) for number in range(variants)]
    requests = [_request(technique, example.dataset, example.id, content, pool) for content in contents]
    return [replace(request, side=side) for request in requests]


def query_requests(
    document: Document,
    dataset: str,
    *,
    seed: int,
    variants: int = 1,
    pool: Sequence[LLMSection] = (),
    max_tokens: int | None = None,
) -> list[SynthesisRequest]:
    """The requests for a document's queries: persona to be chosen; type, difficulty and length are drawn.

    ``max_tokens`` are what an encoder reads of a document, and so about what is shown of it.
    """
    language = prompt_language(document.text)
    text = document.text if max_tokens is None else document.text[: max_tokens * CHARS_READ[language]]
    requests = []
    for number in range(variants):
        rank = functools.partial(_rank, seed, f"persona {document.id} {number}")
        drawn = sorted(personas(language), key=rank)[:PERSONAS_SHOWN]
        # types alternate from variant to variant, so that a document is not asked the same twice
        kind = QUESTION_TYPES[(_number(seed, f"type {document.id}") + number) % len(QUESTION_TYPES)]
        # of a short document a long query would be refused for its length
        most = max(2, len(text) // CHARS_PER_WORD[language])
        lengths = [one for one in (KEYWORDS if kind == "keywords" else QUERY_WORDS) if one <= most] or [most]
        content: dict[str, Any] = {
            "document": text,
            "personas": [f"{place}: {one}" for place, one in enumerate(drawn, start=1)],
            "question_type": kind,
            "difficulty": DIFFICULTIES[_number(seed, f"difficulty {document.id} {number}") % len(DIFFICULTIES)],
            "words": lengths[_number(seed, f"words {document.id} {number}") % len(lengths)],
            "language": "Chinese" if language == "zh" else "the document's",
            **_variant(number),
        }
        requests.append(_request("query", dataset, document.id, content, pool))
    return requests


def _with_lengths(technique: SynthesisTechnique, texts: Mapping[str, str]) -> dict[str, Any]:
    """Texts and the lengths of those that an answer is measured by; of a hard negative the positive alone."""
    measured = ["positive"] if technique == "hard_negative" else list(texts)
    return {**texts, "length": {name: length_of(texts[name]) for name in measured}}


def length_of(text: str) -> str:
    """How long a text is, in words that a model can count by."""
    characters = sum(map(str.isalnum, text))
    if 2 * len(_WITHOUT_BLANKS.findall(text)) > characters:
        return f"about {characters} characters"
    return f"about {len(text.split())} words"


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
    """The texts of the examples that the prompts of a language show: what is given, and the answers."""
    shown = _examples(_language_of(label))
    answers = [answer for one in shown for answer in one["answers"].values()]
    return frozenset(text for texts in answers for text in texts.values()) | {
        one[name] for one in shown for name in ("query", "positive")
    }


@functools.cache
def personas(language: PromptLanguage) -> tuple[str, ...]:
    """People who might ask, from the lines of ``prompts/personas.<language>.txt``."""
    return tuple(_prompt_file(f"personas.{language}.txt").splitlines())


def _example(technique: SynthesisTechnique, label: str, user: str) -> str:
    """The example of a prompt, one of several by the user message; empty where the technique has none.

    It stands at the end, so that servers keep what all prompts have in common.
    """
    language = _language_of(label)
    examples = _examples(language)
    shown = examples[_number(0, f"example {user}") % len(examples)]
    if technique not in shown["answers"]:
        return ""
    texts = {name: shown[name] for name in ("query", "positive")}
    request = json.dumps({"technique": technique, **_with_lengths(technique, texts)}, ensure_ascii=False)
    return EXAMPLE_LINES[language].format(
        request=request, answer=json.dumps(shown["answers"][technique], ensure_ascii=False)
    )


def _language_of(label: str) -> str:
    """The language in ``id.language@version``."""
    return label.partition("@")[0].rpartition(".")[2]


@functools.cache
def _examples(language: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _prompt_file(f"examples.{language}.{VERSION}.jsonl").splitlines()]


def _prompt_file(name: str) -> str:
    return resources.files(__package__).joinpath("prompts", name).read_text("utf-8").strip()


def _request(
    technique: SynthesisTechnique,
    dataset: str,
    example_id: str,
    content: Mapping[str, Any],
    pool: Sequence[LLMSection],
) -> SynthesisRequest:
    user = json.dumps({"technique": technique, **content}, ensure_ascii=False)
    texts = " ".join(content[name] for name in TEXT_FIELDS if name in content)
    return SynthesisRequest(
        technique=technique,
        dataset=dataset,
        example_id=example_id,
        prompt=f"{technique}.{prompt_language(texts)}@{VERSION}",
        user=user,
        model=model_for(user, pool),
    )


def _number(seed: int, purpose: str) -> int:
    return int(_rank(seed, purpose, "")[:8], 16)


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
