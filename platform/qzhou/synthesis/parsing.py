"""From an answer of the LLM to a new record, or to a drop with its reason. Pure and strict.

An answer comes from outside. Anything that is not what the prompt asks for is refused, kept
in ``dropped/`` and counted, never repaired. Only what stands around the object is ignored
(:mod:`qzhou.synthesis.answer_json`).
"""

import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Mapping

from qzhou.config.synthesis import FiltersSection
from qzhou.data.cleaning import clean_text
from qzhou.data.languages import HAN, are_different_languages
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
from qzhou.synthesis.answer_json import is_object, object_with
from qzhou.synthesis.chat import Answer
from qzhou.synthesis.empty_words import (
    goes_in_circles,
    has_preamble,
    is_placeholder,
    is_refusal,
    speaks_of_document,
)
from qzhou.synthesis.filters import copied_share, share_among, word_ngrams
from qzhou.synthesis.schemas import CHOICES, FIELDS, schema_name
from qzhou.synthesis.techniques import Side, SynthesisRequest, example_texts, prompt_language, system_prompt

STAGE = "synthesis"
PARAPHRASE_LENGTH = 0.15  # a paraphrase stays within this share of the original's characters
NEGATIVE_LENGTH = 0.20  # a negative, of its positive's: the length must not give it away
SLACK_CHARS = 12  # allowed in any case: 15 % of a five-word title is less than one word
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# what JSON makes of "\theta" and "C:\\new": a tab inside a line, or a line that begins with the rest of a LaTeX command
_BACKSLASH = re.compile(
    r"(?<=[^\n\t])[\t\r](?=[a-z])|\n(?=(?:abla|eq|eg|otin|earrow|warrow|ewline|ewcommand|exists)\b)"
)
COPIED_WORDS = 5  # from here on a query may not stand in its document; fewer are search words
LEAKED = 0.5  # share of a text that an example of the prompt has, too
LONGEST_QUERY_CHARS = 600
SHOWN_CHARS = 80

NewRecord = Example | Negative
SeedExample = Example | Document


class _RefusedError(Exception):
    """Ends the parsing of one answer with (reason, detail); never leaves this file."""


def parse_verdict(request: SynthesisRequest, answer: Answer) -> bool | Drop:
    """Whether the relevance check says that the document answers the query; or a drop."""
    try:
        return _texts(request, answer)["verdict"] == "answers"
    except _RefusedError as refusal:
        return drop(request, *refusal.args, content=answer.content)


def parse(
    request: SynthesisRequest, seed: SeedExample, answer: Answer, filters: FiltersSection
) -> NewRecord | Drop:
    """An answer's new record, a :class:`Negative` for ``seed``, or why it is refused.

    Reasons: ``no_text``, ``not_json``, ``missing_field``, ``empty``, ``placeholder``, ``refusal``,
    ``example_of_prompt``, ``no_choice``, ``unchanged``, ``copied``, ``speaks_of_document``,
    ``other_language``, ``length``, ``negative_is_positive``. An augmentation's
    query and positive are not measured against the original: a perfect answer to another
    question may well be shorter. Its negative is measured against its own positive.
    """
    try:
        texts = _texts(request, answer)
        _refuse_empty_words(texts, request)
        name = "query_generation" if request.technique == "query" else request.technique
        technique: Technique = name  # type: ignore[assignment]  # a check makes no record
        source = Source(technique=technique, parent=seed.id, model=answer.model, prompt=request.prompt)
        if isinstance(seed, Document):
            return _generated_query(texts["query"], seed, request, source, filters)
        if isinstance(seed, PairExample):
            return _paraphrased_pair(texts["text"], seed, request.side, source, filters)
        if isinstance(seed, LabeledExample):
            return _paraphrased_text(texts["text"], seed, source, filters)
        if request.technique == "hard_negative":
            negative = _negative(texts["negative"], seed.positives, source, filters)
            _check_changed("negative", texts["negative"], *(known.text for known in seed.negatives))
            return negative
        if request.technique == "augmentation":
            return _augmented(texts, seed, source, filters)
        return _paraphrased(texts, seed, source, filters)
    except _RefusedError as refusal:
        return drop(request, *refusal.args, content=answer.content)


def drop(request: SynthesisRequest, reason: str, detail: str, *, content: str = "") -> Drop:
    """The drop of an answer, with its request."""
    record = json.dumps({"request": dataclasses.asdict(request), "answer": content}, ensure_ascii=False)
    return Drop(stage=STAGE, dataset=request.dataset, reason=reason, detail=detail, record=record)


def normalised(text: str) -> str:
    """The words of a text without case, white space and punctuation."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _texts(request: SynthesisRequest, answer: Answer) -> dict[str, str]:
    """Field -> text of the JSON object that a request asked for."""
    fields = FIELDS[schema_name(request)]
    if not answer.content.strip():
        # a filter of the endpoint, or thoughts that left no room
        raise _RefusedError("no_text", f"the answer is empty (finish_reason '{answer.finish_reason}')")
    try:
        values = object_with(fields, answer.content)
    except ValueError as error:
        raise _RefusedError("not_json", str(error)) from None
    return {field: _text(field, values.get(field)) for field in fields}


def _text(field: str, value: object) -> str:
    if field == "persona":  # by its number, however that is written
        number = re.match(r"\s*(\d+)(?:\.0)?\b", str(value))
        value = number[1] if number else value
    if not isinstance(value, str):
        raise _RefusedError("missing_field", f"'{field}' is missing or no string")
    # A lone surrogate could not be written to any file.
    text = value.encode("utf-8", "replace").decode()
    if not normalised(text):
        raise _RefusedError("empty", f"'{field}' says nothing")
    if field in CHOICES and text not in CHOICES[field]:
        raise _RefusedError("no_choice", f"'{field}' is '{text[:40]}', not {', '.join(CHOICES[field])}")
    if _CONTROL.search(text):
        raise _RefusedError("control_character", f"'{field}' holds a character that no text has")
    if _BACKSLASH.search(text):
        detail = "a backslash was not doubled, and JSON reads what follows as a tab or line break"
        raise _RefusedError("control_character", f"'{field}': {detail}")
    return clean_text(text)


def _refuse_empty_words(texts: Mapping[str, str], request: SynthesisRequest) -> None:
    """Refuse what stands in the prompt itself, and a model's words about what it cannot do."""
    given = [str(value) for value in request.fields.values()]
    for field, text in texts.items():
        if is_placeholder(text):
            raise _RefusedError("placeholder", f"'{field}' is a placeholder: {text[:SHOWN_CHARS]}")
        if is_refusal(text) and not is_refusal(request.user):
            raise _RefusedError("refusal", f"'{field}' declines: {text[:SHOWN_CHARS]}")
        if has_preamble(text) and not any(map(has_preamble, given)):
            raise _RefusedError("preamble", f"'{field}' announces itself: {text[:SHOWN_CHARS]}")
        if goes_in_circles(text) and not any(map(goes_in_circles, given)):
            raise _RefusedError("repetition", f"'{field}' goes in circles: {text[:SHOWN_CHARS]}")
        if text.startswith("{") and text.endswith("}") and is_object(text):
            raise _RefusedError("nested", f"'{field}' is an object itself: {text[:SHOWN_CHARS]}")
        share = _share_of_prompt(text, request.prompt)
        # the data may speak of the same things
        if share > LEAKED and copied_share(text, request.user) <= LEAKED:
            raise _RefusedError(
                "example_of_prompt", f"{share:.0%} of '{field}' stands in the prompt or its examples"
            )


def _share_of_prompt(text: str, label: str) -> float:
    """Share of a text's word trigrams that the prompt and its examples have; 1 for a whole example, however short."""
    ngrams, whole = _prompt_ngrams(label)
    return 1.0 if normalised(text) in whole else share_among(text, ngrams)


@functools.cache
def _prompt_ngrams(label: str) -> tuple[frozenset[tuple[str, ...]], frozenset[str]]:
    examples = example_texts(label)
    ngrams = {ngram for text in (*examples, system_prompt(label)) for ngram in word_ngrams(text)}
    return frozenset(ngrams), frozenset(map(normalised, examples))


def _generated_query(
    query: str, document: Document, request: SynthesisRequest, source: Source, filters: FiltersSection
) -> RetrievalExample:
    _check_changed("query", query, document.text)
    _check_copied("query", query, document.text, filters)
    if len(query.split()) >= COPIED_WORDS and normalised(query) in normalised(document.text):
        raise _RefusedError("copied", "'query' stands in the document as it is")
    if query.casefold() in {one.partition(": ")[2].casefold() for one in request.fields["personas"]}:
        raise _RefusedError("placeholder", "'query' is the persona")
    if speaks_of_document(query):
        raise _RefusedError("speaks_of_document", "'query' speaks of a document, which who searches has not seen")
    if len(query) > min(LONGEST_QUERY_CHARS, max(SLACK_CHARS, len(document.text))):
        raise _RefusedError("length", f"'query' has {len(query)} characters, the document {len(document.text)}")
    _check_language("query", query, document.text)
    return _retrieval(request.dataset, query, document.text, source)


def _paraphrased(
    texts: Mapping[str, str], example: RetrievalExample, source: Source, filters: FiltersSection
) -> RetrievalExample:
    """A pair that says the same; mining adds its negatives, as in the paper."""
    _check_paraphrase(texts, {"query": (example.query,), "positive": example.positives}, filters)
    record = _retrieval(example.dataset, texts["query"], texts["positive"], source)
    return dataclasses.replace(record, instruction=example.instruction)


def _augmented(
    texts: Mapping[str, str], example: RetrievalExample, source: Source, filters: FiltersSection
) -> RetrievalExample:
    query, positive = texts["query"], texts["positive"]
    _check_changed("query", query, example.query)
    _check_changed("positive", positive, *example.positives)
    _check_changed("positive", positive, query)
    _check_copied("query", query, example.query, filters)
    if filters.same_language:
        _check_language("query", query, example.query)
        _check_language("positive", positive, example.positives[0])
    negative = _negative(texts["negative"], (positive,), source, filters)
    record = _retrieval(example.dataset, query, positive, source, negatives=(negative,))
    return dataclasses.replace(record, instruction=example.instruction)


def _retrieval(
    dataset: str, query: str, positive: str, source: Source, negatives: tuple[Negative, ...] = ()
) -> RetrievalExample:
    identity = stable_id(dataset, query, positive)
    return RetrievalExample(
        id=identity, dataset=dataset, query=query, positives=(positive,), negatives=negatives, source=source
    )


def _paraphrased_pair(
    text: str, example: PairExample, side: Side | None, source: Source, filters: FiltersSection
) -> PairExample:
    text_a, text_b = example.text_a, example.text_b
    # A text that equals the other one would make the score wrong.
    known = (text_a, text_b) if side == "text_a" else (text_b, text_a)
    _check_paraphrase({"text": text}, {"text": known}, filters)
    if side == "text_a":
        text_a = text
    else:
        text_b = text
    identity = stable_id(example.dataset, text_a, text_b, example.score)
    return dataclasses.replace(example, id=identity, text_a=text_a, text_b=text_b, source=source)


def _paraphrased_text(
    text: str, example: LabeledExample, source: Source, filters: FiltersSection
) -> LabeledExample:
    _check_paraphrase({"text": text}, {"text": (example.text,)}, filters)
    identity = stable_id(example.dataset, text, example.label)
    return dataclasses.replace(example, id=identity, text=text, source=source)


def _negative(text: str, positives: tuple[str, ...], source: Source, filters: FiltersSection) -> Negative:
    if normalised(text) in map(normalised, positives):
        raise _RefusedError("negative_is_positive", "the negative repeats a positive")
    for positive in positives:
        _check_copied("negative", text, positive, filters, of="positive")
    _check_length("negative", text, positives[0], NEGATIVE_LENGTH)
    if filters.same_language:
        _check_language("negative", text, positives[0])
    return Negative(text=text, origin="synthetic", source=source)


def _check_paraphrase(
    texts: Mapping[str, str], known: Mapping[str, tuple[str, ...]], filters: FiltersSection
) -> None:
    """Check every field; the first of its ``known`` texts is the original."""
    for field, text in texts.items():
        _check_changed(field, text, *known[field])
    for field, text in texts.items():
        _check_length(field, text, known[field][0], PARAPHRASE_LENGTH)
    for field, text in texts.items():
        _check_copied(field, text, known[field][0], filters)
        if filters.same_language:
            _check_language(field, text, known[field][0])


def _check_changed(field: str, text: str, *known: str) -> None:
    if normalised(text) in map(normalised, known):
        raise _RefusedError("unchanged", f"'{field}' repeats a text of the example")


def _check_length(field: str, text: str, original: str, share: float) -> None:
    allowed = max(share * len(original), SLACK_CHARS)
    if abs(len(text) - len(original)) > allowed:
        detail = f"'{field}' has {len(text)} characters, not {len(original)} +- {allowed:.0f}"
        raise _RefusedError("length", detail)


def _check_copied(field: str, text: str, original: str, filters: FiltersSection, of: str = "original") -> None:
    copied, limit = copied_share(text, original), filters.max_ngram_overlap
    if copied > limit:
        detail = f"{copied:.0%} of the word trigrams of '{field}' are the {of}'s, above {limit:.0%}"
        raise _RefusedError("copied", detail)


def _check_language(field: str, text: str, original: str) -> None:
    if are_different_languages(text, original) or _is_latin_about_chinese(text, original):
        raise _RefusedError("other_language", f"'{field}' is not in the language of the original")


def _is_latin_about_chinese(text: str, original: str) -> bool:
    """Whether Chinese was answered in Latin letters, in words of which the original has none."""
    if prompt_language(original) != "zh" or re.search(f"[{HAN}]", text):
        return False
    words = re.findall(r"[a-z]{2,}", text.casefold())
    return bool(words) and not any(word in original.casefold() for word in words)
