"""What the LLM answered, as new records or as a drop with its reason. Pure and strict.

An answer is data from outside: whatever is not exactly what was asked for is refused, kept in ``dropped/`` and counted,
never repaired. Only a code fence around the whole object, and the thoughts before it, are looked past.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata

from qzhou.config.synthesis import GatesSection
from qzhou.data.languages import are_different_languages
from qzhou.data.records import (
    Document,
    Drop,
    Example,
    LabeledExample,
    Negative,
    PairExample,
    RetrievalExample,
    Source,
    Technique,
    stable_id,
)
from qzhou.synthesis.gates import copied_share
from qzhou.synthesis.journal import Answer
from qzhou.synthesis.schemas import CHOICES, FIELDS, form_of
from qzhou.synthesis.techniques import ChatRequest

STAGE = "synthesis"
PARAPHRASE_LENGTH = 0.15  # a paraphrase stays within this share of the original's characters
NEGATIVE_LENGTH = 0.20  # a negative, of its positive's: length must not give it away
SLACK_CHARS = 12  # allowed in any case: 15 % of a five-word title is less than one word

LONGEST_QUERY_CHARS = 600

Synthetic = Example | Negative
Configuration = dict[str, str]
Subject = Example | Document

_WHOLE = re.compile(
    r"\s*(?:<think>.*</think>)?\s*(?:```(?:json)?\s)?(?P<object>.*?)(?:\s```)?\s*", re.DOTALL
)


class _RefusedError(Exception):
    """Ends the parsing of one answer; never leaves this file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def parse_configuration(request: ChatRequest, answer: Answer) -> Configuration | Drop:
    """Who would ask for a document and how, for :func:`qzhou.synthesis.techniques.query_request`; or a refusal."""
    try:
        texts = _texts(request, answer)
        if texts["persona"] not in request.fields["personas"]:
            raise _RefusedError(
                "no_choice", f"'persona' is '{texts['persona'][:80]}', which was not offered"
            )
        return texts
    except _RefusedError as refusal:
        return drop(request, refusal.reason, refusal.detail, answer.content)


def parse_verdict(request: ChatRequest, answer: Answer) -> bool | Drop:
    """Whether a judge says that the document answers the query; or why its answer is none."""
    try:
        return _texts(request, answer)["verdict"] == "answers"
    except _RefusedError as refusal:
        return drop(request, refusal.reason, refusal.detail, answer.content)


def parse(
    request: ChatRequest, subject: Subject, answer: Answer, gates: GatesSection
) -> Synthetic | Drop:
    """The new record that an answer holds, a :class:`Negative` for ``subject``, or why it is refused.

    Reasons: ``not_json``, ``missing_field``, ``empty``, ``no_choice``, ``unchanged``, ``copied``, ``other_language``,
    ``length``, ``negative_is_positive``. An augmentation's query and positive are not measured against the original: a
    perfect answer to another question may well be shorter. Its negative is measured against its own positive.
    """
    try:
        texts = _texts(request, answer)
        made_by = "query_generation" if request.technique == "query" else request.technique
        technique: Technique = made_by  # type: ignore[assignment]
        source = Source(
            technique=technique, parent=subject.id, model=answer.model, prompt=request.prompt
        )
        if isinstance(subject, Document):
            return _queried(texts["query"], subject, request, source)
        if request.technique == "hard_negative":
            assert isinstance(subject, RetrievalExample)
            return _negative(texts["negative"], subject, source, gates)
        if isinstance(subject, PairExample):
            return _pair(texts["text"], subject, request, source, gates)
        if isinstance(subject, LabeledExample):
            return _labeled(texts["text"], subject, source, gates)
        make = _augmented if "negative" in texts else _paraphrased
        return make(texts, subject, source, gates)
    except _RefusedError as refusal:
        return drop(request, refusal.reason, refusal.detail, answer.content)


def drop(request: ChatRequest, reason: str, detail: str, content: str = "") -> Drop:
    """A refusal in the form in which every stage keeps them."""
    record = json.dumps(
        {"request": dataclasses.asdict(request), "answer": content}, ensure_ascii=False
    )
    return Drop(stage=STAGE, dataset=request.dataset, reason=reason, detail=detail, record=record)


def normalised(text: str) -> str:
    """What remains when case, white space and punctuation do not count."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _texts(request: ChatRequest, answer: Answer) -> dict[str, str]:
    """Field -> text of the form that a request asked for."""
    content, fields = answer.content, FIELDS[form_of(request)]
    whole = _WHOLE.fullmatch(content)
    try:
        values = json.loads(whole["object"] if whole else content)
    except (ValueError, RecursionError) as error:
        raise _RefusedError("not_json", f"it is not one JSON object: {error}") from None
    if not isinstance(values, dict):
        raise _RefusedError("not_json", f"a JSON {type(values).__name__} instead of an object")
    for field in fields:
        if not isinstance(values.get(field), str):
            raise _RefusedError("missing_field", f"'{field}' is missing or no string")
        # a lone surrogate fits no file
        values[field] = values[field].encode("utf-8", "replace").decode()
        if not normalised(values[field]):
            raise _RefusedError("empty", f"'{field}' says nothing")
        if field in CHOICES and values[field] not in CHOICES[field]:
            raise _RefusedError(
                "no_choice", f"'{field}' is '{values[field][:40]}', not {', '.join(CHOICES[field])}"
            )
    return {field: values[field].strip() for field in fields}


def _queried(
    query: str, document: Document, request: ChatRequest, source: Source
) -> RetrievalExample:
    """A document with the question that it answers."""
    _check_changed("query", query, document.text)
    if len(query) > min(LONGEST_QUERY_CHARS, max(SLACK_CHARS, len(document.text))):
        raise _RefusedError(
            "length", f"'query' has {len(query)} characters, the document {len(document.text)}"
        )
    if request.fields["language"] == "Chinese":
        _check_language("query", query, document.text)
    return RetrievalExample(
        id=stable_id(request.dataset, query, document.text),
        dataset=request.dataset,
        query=query,
        positives=(document.text,),
        source=source,
    )


def _paraphrased(
    texts: dict[str, str], example: RetrievalExample, source: Source, gates: GatesSection
) -> RetrievalExample:
    """A pair that says the same; mining attaches its negatives, as in the paper."""
    query, positive = texts["query"], texts["positive"]
    _check_changed("query", query, example.query)
    _check_changed("positive", positive, *example.positives)
    _check_length("query", query, example.query, PARAPHRASE_LENGTH)
    _check_length("positive", positive, example.positives[0], PARAPHRASE_LENGTH)
    _check_gates("query", query, example.query, gates)
    _check_gates("positive", positive, example.positives[0], gates)
    identity = stable_id(example.dataset, query, positive)
    return RetrievalExample(
        id=identity, dataset=example.dataset, query=query, positives=(positive,), source=source
    )


def _augmented(
    texts: dict[str, str], example: RetrievalExample, source: Source, gates: GatesSection
) -> RetrievalExample:
    query, positive = texts["query"], texts["positive"]
    _check_changed("query", query, example.query)
    _check_changed("positive", positive, *example.positives)
    _check_changed("positive", positive, query)
    _check_gates("query", query, example.query, gates)
    if gates.same_language:
        _check_language("positive", positive, example.positives[0])
    return RetrievalExample(
        id=stable_id(example.dataset, query, positive),
        dataset=example.dataset,
        query=query,
        positives=(positive,),
        negatives=(_checked_negative(texts["negative"], (positive,), source, gates),),
        source=source,
    )


def _negative(
    text: str, example: RetrievalExample, source: Source, gates: GatesSection
) -> Negative:
    negative = _checked_negative(text, example.positives, source, gates)
    _check_changed("negative", text, *(known.text for known in example.negatives))
    return negative


def _pair(
    text: str, example: PairExample, request: ChatRequest, source: Source, gates: GatesSection
) -> PairExample:
    assert request.side is not None
    original = getattr(example, request.side)
    # equal to the other side, the score would be wrong
    _check_changed("text", text, example.text_a, example.text_b)
    _check_length("text", text, original, PARAPHRASE_LENGTH)
    _check_gates("text", text, original, gates)
    text_a, text_b = (text, example.text_b) if request.side == "text_a" else (example.text_a, text)
    identity = stable_id(example.dataset, text_a, text_b, example.score)
    return PairExample(
        id=identity,
        dataset=example.dataset,
        text_a=text_a,
        text_b=text_b,
        score=example.score,
        source=source,
    )


def _labeled(
    text: str, example: LabeledExample, source: Source, gates: GatesSection
) -> LabeledExample:
    _check_changed("text", text, example.text)
    _check_length("text", text, example.text, PARAPHRASE_LENGTH)
    _check_gates("text", text, example.text, gates)
    identity = stable_id(example.dataset, text, example.label)
    return LabeledExample(
        id=identity, dataset=example.dataset, text=text, label=example.label, source=source
    )


def _checked_negative(
    text: str, positives: tuple[str, ...], source: Source, gates: GatesSection
) -> Negative:
    if normalised(text) in {normalised(positive) for positive in positives}:
        raise _RefusedError("negative_is_positive", "the negative repeats a positive")
    _check_length("negative", text, positives[0], NEGATIVE_LENGTH)
    if gates.same_language:
        _check_language("negative", text, positives[0])
    return Negative(text=text, origin="synthetic", source=source)


def _check_changed(field: str, text: str, *originals: str) -> None:
    if normalised(text) in {normalised(original) for original in originals}:
        raise _RefusedError("unchanged", f"'{field}' repeats a text of the example")


def _check_length(field: str, text: str, original: str, share: float) -> None:
    allowed = max(share * len(original), SLACK_CHARS)
    if abs(len(text) - len(original)) > allowed:
        raise _RefusedError(
            "length", f"'{field}' has {len(text)} characters, not {len(original)} +- {allowed:.0f}"
        )


def _check_gates(field: str, text: str, original: str, gates: GatesSection) -> None:
    copied = copied_share(text, original)
    if copied > gates.max_ngram_overlap:
        limit = f"{gates.max_ngram_overlap:.0%}"
        detail = f"{copied:.0%} of the word trigrams of '{field}' are the original's, above {limit}"
        raise _RefusedError("copied", detail)
    if gates.same_language:
        _check_language(field, text, original)


def _check_language(field: str, text: str, original: str) -> None:
    if are_different_languages(text, original):
        raise _RefusedError("other_language", f"'{field}' is not in the language of the original")
