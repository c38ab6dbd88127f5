"""From examples and documents to requests, and from outcomes back to examples. Pure: no Ray, no network."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qzhou.config.synthesis import BUILTIN_MODEL, SynthesisSection
from qzhou.data.records import Document, Drop, Example, Negative, RetrievalExample, Task
from qzhou.synthesis.client import Outcome
from qzhou.synthesis.gates import Scores
from qzhou.synthesis.journal import Answer
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.parsing import (
    Configuration,
    Subject,
    Synthetic,
    drop,
    parse,
    parse_configuration,
    parse_verdict,
)
from qzhou.synthesis.techniques import (
    TECHNIQUES,
    ChatRequest,
    SynthesisTechnique,
    chosen,
    configuration_requests,
    judge_request,
    query_request,
    requests_for,
)

OutcomeOf = Mapping[ChatRequest, Outcome]
Ask = Callable[[Sequence[ChatRequest]], OutcomeOf]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new record, what it was made from, the request that it answers, and the teacher's scores if it was judged."""

    request: ChatRequest
    subject: Subject
    record: Synthetic
    scores: Scores | None = None


@dataclass(slots=True, kw_only=True)
class Written:
    """What came of some requests: records so far, and what was refused on the way."""

    made: list[Made] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A dataset after synthesis: raw examples first and in their order, then new ones."""

    examples: tuple[Example, ...]
    dropped: tuple[Drop, ...]
    made: tuple[Made, ...]


def planned(
    examples: Sequence[Example], task: Task, settings: SynthesisSection, *, seed: int
) -> tuple[ChatRequest, ...]:
    """Every request that the settings ask for about one dataset's examples."""
    rows: Mapping[SynthesisTechnique, tuple[int, int]] = {
        "paraphrase": (settings.paraphrase_rows, settings.paraphrases_per_row),
        "augmentation": (settings.augment_rows, settings.augmentations_per_row),
        "hard_negative": (settings.hard_negative_rows, settings.hard_negatives_per_row),
    }
    raw = [example for example in examples if example.source.technique == "raw"]
    requests = (
        request
        for technique in TECHNIQUES[task]
        for example in chosen(raw, technique, rows=rows[technique][0], seed=seed)
        for request in requests_for(
            example, technique, variants=rows[technique][1], pool=settings.pool
        )
    )
    return tuple(dict.fromkeys(requests))  # a dataset that was not deduplicated repeats ids


def planned_queries(
    documents: Iterable[Document], dataset: str, settings: SynthesisSection, *, seed: int
) -> tuple[tuple[Document, ...], tuple[ChatRequest, ...]]:
    """The documents of a corpus that get a query, and the first of the two requests for each."""
    found = chosen(documents, "query", rows=settings.query_rows, seed=seed)
    requests = (
        request
        for document in found
        for request in configuration_requests(
            document, dataset, seed=seed, variants=settings.queries_per_row, pool=settings.pool
        )
    )
    return tuple(found), tuple(dict.fromkeys(requests))


def written(
    requests: Sequence[ChatRequest],
    subject_of: Mapping[tuple[str, str], Subject],
    ask: Ask,
    settings: SynthesisSection,
    ledger: Ledger,
) -> Written:
    """Ask, in rounds, until every request has given a record or a drop.

    A refused answer goes back to the model with the reason, ``parse_retries`` times. The configuration of a query is
    followed by the request for the query.

    Args:
        requests: The first round.
        subject_of: (dataset, id) -> what a request is about.
        ask: Sends some requests and gives their outcomes.
        settings: Of the recipe.
        ledger: Counts every answer.
    """
    result = Written()
    waiting = list(requests)
    while waiting:
        outcome_of, next_round = ask(waiting), []
        for request in waiting:
            outcome, subject = outcome_of[request], subject_of[request.dataset, request.example_id]
            found: Synthetic | Configuration | Drop
            if outcome.answer is None:
                found = drop(request, "no_answer", outcome.failure)
            elif request.technique == "query_configuration":
                found = parse_configuration(request, outcome.answer)
            else:
                found = parse(request, subject, outcome.answer, settings.gates)
            ledger.count(request, outcome, refused=isinstance(found, Drop))
            if isinstance(found, Drop):
                by_rules = request.model == BUILTIN_MODEL  # which say the same again
                if (
                    outcome.answer is not None
                    and not by_rules
                    and len(request.refused) < settings.parse_retries
                ):
                    next_round.append(request.again(outcome.answer.content, found.detail))
                else:
                    result.dropped.append(found)
            elif isinstance(found, dict):
                next_round.append(query_request(request, found, settings.pool))
            else:
                result.made.append(Made(request=request, subject=subject, record=found))
        waiting = list(dict.fromkeys(next_round))
    return result


def following(
    answered: Mapping[ChatRequest, Answer], settings: SynthesisSection
) -> list[ChatRequest]:
    """The requests for queries whose configurations are answered already."""
    asked = [request for request in answered if request.technique == "query_configuration"]
    parsed = [(request, parse_configuration(request, answered[request])) for request in asked]
    return [
        query_request(request, one, settings.pool)
        for request, one in parsed
        if not isinstance(one, Drop)
    ]


def judged(made: Sequence[Made], ask: Ask, settings: SynthesisSection, ledger: Ledger) -> Written:
    """Ask of every new query and document whether the one answers the other, and keep what is as it should be.

    A judge without a verdict refuses nothing: its failure says nothing about the record.
    """
    wanted: dict[int, list[tuple[ChatRequest, bool]]] = defaultdict(list)
    for index, one in enumerate(made):
        for query, document, answers in _claims(one):
            wanted[index].append(
                (judge_request(one.request, query, document, settings.pool), answers)
            )
    requests = list(dict.fromkeys(request for claims in wanted.values() for request, _ in claims))
    outcome_of = ask(requests) if requests else {}
    verdicts: dict[ChatRequest, bool | Drop | None] = {}
    for request in requests:
        answer = outcome_of[request].answer
        verdicts[request] = None if answer is None else parse_verdict(request, answer)
        ledger.count(request, outcome_of[request], refused=not isinstance(verdicts[request], bool))
    result = Written()
    for index, one in enumerate(made):
        wrong = next(
            (answers for request, answers in wanted[index] if verdicts[request] is (not answers)),
            None,
        )
        if wrong is None:
            result.made.append(one)
        else:
            reason = "judge_not_answered" if wrong else "judge_negative_answers"
            said = (
                "the document does not answer the query"
                if wrong
                else "the negative answers the query"
            )
            result.dropped.append(refused(one, reason, f"the judge says that {said}"))
    return result


def merged(examples: Sequence[Example], found: Written) -> Merged:
    """Put the new records of one dataset beside the raw ones.

    An example keeps its id when a negative is written for it: it still asks the same. A new example that repeats one
    that is there is dropped as ``duplicate``, and so is a second negative with the same text.
    """
    known = {example.id for example in examples}
    negatives: dict[str, list[Negative]] = defaultdict(list)
    new: dict[str, Example] = {}
    kept: list[Made] = []
    dropped = list(found.dropped)
    for one in found.made:
        if isinstance(one.record, Negative):
            others = negatives[one.subject.id]
            if one.record.text in {other.text for other in others}:
                dropped.append(refused(one, "duplicate", "repeats another negative of the example"))
                continue
            others.append(one.record)
        elif one.record.id in known or one.record.id in new:
            dropped.append(refused(one, "duplicate", f"repeats the example {one.record.id}"))
            continue
        else:
            new[one.record.id] = one.record
        kept.append(one)
    return Merged(
        examples=(*_with_negatives(examples, negatives), *new.values()),
        dropped=tuple(dropped),
        made=tuple(kept),
    )


def refused(made: Made, reason: str, detail: str) -> Drop:
    """The drop of a record that was made and is not kept."""
    return drop(
        made.request,
        reason,
        detail,
        json.dumps(dataclasses.asdict(made.record), ensure_ascii=False),
    )


def _claims(made: Made) -> Iterator[tuple[str, str, bool]]:
    """(query, document, whether it must answer) of a new record of retrieval."""
    record = made.record
    if isinstance(record, Negative):
        assert isinstance(made.subject, RetrievalExample)
        yield made.subject.query, record.text, False
    elif isinstance(record, RetrievalExample):
        yield record.query, record.positives[0], True
        for negative in record.negatives:
            yield record.query, negative.text, False


def _with_negatives(
    examples: Iterable[Example], negatives: Mapping[str, list[Negative]]
) -> Iterator[Example]:
    for example in examples:
        more = negatives.get(example.id)
        if more and isinstance(example, RetrievalExample):
            yield dataclasses.replace(example, negatives=(*example.negatives, *more))
        else:
            yield example
