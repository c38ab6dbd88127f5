"""What the LLM answered, as new records or as a drop with its reason. Pure and strict.

An answer is data from outside: whatever is not exactly what was asked for is refused, kept in
``dropped/`` and counted, never repaired.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata

from qzhou.records import Drop, Example, LabeledExample, Negative, PairExample, RetrievalExample, Source, stable_id
from qzhou.synthesis.journal import Answer
from qzhou.synthesis.techniques import ChatRequest

STAGE = "synthesize"
PARAPHRASE_LENGTH = 0.15  # a paraphrase stays within this share of the original's characters
NEGATIVE_LENGTH = 0.20  # a negative, of its positive's: length must not give it away
SLACK_CHARS = 12  # allowed in any case: 15 % of a five-word title is less than one word

FIELDS = {
    ("paraphrase", RetrievalExample): ("query", "positive"),
    ("paraphrase", PairExample): ("text",),
    ("paraphrase", LabeledExample): ("text",),
    ("augmentation", RetrievalExample): ("query", "positive", "negative"),
    ("hard_negative", RetrievalExample): ("negative",),
}

Synthetic = Example | Negative


class _RefusedError(Exception):
    """Ends the parsing of one answer; never leaves this file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def parse(request: ChatRequest, example: Example, answer: Answer) -> Synthetic | Drop:
    """The new record that an answer holds, a :class:`Negative` for ``example``, or why it is refused.

    Reasons: ``not_json``, ``missing_field``, ``empty``, ``unchanged``, ``length``, ``negative_is_positive``.
    An augmentation's query and positive are not measured against the original: a perfect answer to
    another question may well be shorter. Its negative is measured against its own positive.
    """
    try:
        texts = _texts(answer.content, FIELDS[request.technique, type(example)])
        source = Source(technique=request.technique, parent=example.id, model=answer.model, prompt=request.prompt)
        if request.technique == "hard_negative":
            assert isinstance(example, RetrievalExample)
            return _negative(texts["negative"], example, source)
        if isinstance(example, PairExample):
            return _pair(texts["text"], example, request, source)
        if isinstance(example, LabeledExample):
            return _labeled(texts["text"], example, source)
        return _augmented(texts, example, source) if "negative" in texts else _paraphrased(texts, example, source)
    except _RefusedError as refusal:
        return drop(request, refusal.reason, refusal.detail, answer.content)


def drop(request: ChatRequest, reason: str, detail: str, content: str = "") -> Drop:
    """A refusal in the form in which every stage keeps them."""
    record = json.dumps({"request": dataclasses.asdict(request), "answer": content}, ensure_ascii=False)
    return Drop(stage=STAGE, dataset=request.dataset, reason=reason, detail=detail, record=record)


def normalised(text: str) -> str:
    """What remains when case, white space and punctuation do not count."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _texts(content: str, fields: tuple[str, ...]) -> dict[str, str]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _RefusedError("not_json", str(error)) from None
    if not isinstance(values, dict):
        raise _RefusedError("not_json", f"a JSON {type(values).__name__} instead of an object")
    for field in fields:
        if not isinstance(values.get(field), str):
            raise _RefusedError("missing_field", f"'{field}' is missing or no string")
        values[field] = values[field].encode("utf-8", "replace").decode()  # a lone surrogate fits no file
        if not normalised(values[field]):
            raise _RefusedError("empty", f"'{field}' says nothing")
    return {field: values[field].strip() for field in fields}


def _paraphrased(texts: dict[str, str], example: RetrievalExample, source: Source) -> RetrievalExample:
    """A pair that says the same; mining attaches its negatives, as in the paper."""
    query, positive = texts["query"], texts["positive"]
    _check_changed("query", query, example.query)
    _check_changed("positive", positive, *example.positives)
    _check_length("query", query, example.query, PARAPHRASE_LENGTH)
    _check_length("positive", positive, example.positives[0], PARAPHRASE_LENGTH)
    identity = stable_id(example.dataset, query, positive)
    return RetrievalExample(id=identity, dataset=example.dataset, query=query, positives=(positive,), source=source)


def _augmented(texts: dict[str, str], example: RetrievalExample, source: Source) -> RetrievalExample:
    query, positive = texts["query"], texts["positive"]
    _check_changed("query", query, example.query)
    _check_changed("positive", positive, *example.positives)
    _check_changed("positive", positive, query)
    return RetrievalExample(
        id=stable_id(example.dataset, query, positive),
        dataset=example.dataset,
        query=query,
        positives=(positive,),
        negatives=(_checked_negative(texts["negative"], (positive,), source),),
        source=source,
    )


def _negative(text: str, example: RetrievalExample, source: Source) -> Negative:
    negative = _checked_negative(text, example.positives, source)
    _check_changed("negative", text, *(known.text for known in example.negatives))
    return negative


def _pair(text: str, example: PairExample, request: ChatRequest, source: Source) -> PairExample:
    assert request.side is not None
    original = getattr(example, request.side)
    _check_changed("text", text, example.text_a, example.text_b)  # equal to the other side, the score would be wrong
    _check_length("text", text, original, PARAPHRASE_LENGTH)
    text_a, text_b = (text, example.text_b) if request.side == "text_a" else (example.text_a, text)
    identity = stable_id(example.dataset, text_a, text_b, example.score)
    return PairExample(
        id=identity, dataset=example.dataset, text_a=text_a, text_b=text_b, score=example.score, source=source
    )


def _labeled(text: str, example: LabeledExample, source: Source) -> LabeledExample:
    _check_changed("text", text, example.text)
    _check_length("text", text, example.text, PARAPHRASE_LENGTH)
    identity = stable_id(example.dataset, text, example.label)
    return LabeledExample(id=identity, dataset=example.dataset, text=text, label=example.label, source=source)


def _checked_negative(text: str, positives: tuple[str, ...], source: Source) -> Negative:
    if normalised(text) in {normalised(positive) for positive in positives}:
        raise _RefusedError("negative_is_positive", "the negative repeats a positive")
    _check_length("negative", text, positives[0], NEGATIVE_LENGTH)
    return Negative(text=text, origin="synthetic", source=source)


def _check_changed(field: str, text: str, *originals: str) -> None:
    if normalised(text) in {normalised(original) for original in originals}:
        raise _RefusedError("unchanged", f"'{field}' repeats a text of the example")


def _check_length(field: str, text: str, original: str, share: float) -> None:
    allowed = max(share * len(original), SLACK_CHARS)
    if abs(len(text) - len(original)) > allowed:
        raise _RefusedError("length", f"'{field}' has {len(text)} characters, not {len(original)} +- {allowed:.0f}")
