"""From examples and documents to requests, and from results back to records. Pure: no Ray, no network."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qzhou.config.synthesis import BUILTIN_MODEL, SynthesisSection
from qzhou.data.records import (
    Document,
    Drop,
    Example,
    Negative,
    PairExample,
    RetrievalExample,
    Task,
    normalized_text,
)
from qzhou.synthesis.chat import ChatResult
from qzhou.synthesis.filters import Scores
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.parsing import NewRecord, SeedExample, drop, parse, parse_verdict
from qzhou.synthesis.techniques import (
    TECHNIQUES,
    SynthesisRequest,
    SynthesisTechnique,
    draw,
    query_requests,
    relevance_request,
    requests_for,
)

Results = Mapping[SynthesisRequest, ChatResult]
Send = Callable[[Sequence[SynthesisRequest]], Results]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticRecord:
    """A new record with its origin: the request, the seed, and the teacher's scores if there are any."""

    request: SynthesisRequest
    seed: SeedExample
    record: NewRecord
    scores: Scores | None = None


@dataclass(slots=True, kw_only=True)
class SynthesisResult:
    """The new records of some requests, and what was refused."""

    records: list[SyntheticRecord] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)


def example_requests(
    examples: Sequence[Example], task: Task, settings: SynthesisSection, *, seed: int
) -> tuple[SynthesisRequest, ...]:
    """All requests about the examples of one dataset."""
    rows: Mapping[SynthesisTechnique, tuple[int, int]] = {
        "paraphrase": (settings.paraphrase_rows, settings.paraphrases_per_row),
        "augmentation": (settings.augment_rows, settings.augmentations_per_row),
        "hard_negative": (settings.hard_negative_rows, settings.hard_negatives_per_row),
    }
    raw = [example for example in examples if example.source.technique == "raw"]
    requests: list[SynthesisRequest] = []
    for technique in TECHNIQUES[task]:
        count, variants = rows[technique]
        for example in draw(raw, technique, count=count, seed=seed):
            requests += requests_for(example, technique, variants=variants, pool=settings.pool)
    return tuple(dict.fromkeys(requests))  # a dataset without deduplication repeats ids


def corpus_requests(
    documents: Iterable[Document],
    dataset: str,
    settings: SynthesisSection,
    *,
    seed: int,
    max_tokens: int | None = None,
) -> tuple[tuple[Document, ...], tuple[SynthesisRequest, ...]]:
    """The documents of a corpus that get a query, and the requests; ``max_tokens`` are what encoders read of them."""
    drawn = draw(documents, "query", count=settings.query_rows, seed=seed)
    requests: list[SynthesisRequest] = []
    for document in drawn:
        requests += query_requests(
            document,
            dataset,
            seed=seed,
            variants=settings.queries_per_row,
            pool=settings.pool,
            max_tokens=max_tokens,
        )
    return tuple(drawn), tuple(dict.fromkeys(requests))


def generate(
    requests: Sequence[SynthesisRequest],
    seeds: Mapping[tuple[str, str], SeedExample],
    send: Send,
    settings: SynthesisSection,
    ledger: Ledger,
) -> SynthesisResult:
    """The new records that come of some requests.

    It works in rounds, of which ``requests`` are the first: a refused answer goes back with
    the reason. ``seeds`` maps (dataset, id) to the example or document that a request is about.
    """
    result = SynthesisResult()
    waiting = list(requests)
    while waiting:
        results = send(waiting)
        next_round: list[SynthesisRequest] = []
        for request in waiting:
            chat, seed = results[request], seeds[request.dataset, request.example_id]
            parsed = _parsed(request, seed, chat, settings)
            ledger.count(request, chat, refused=isinstance(parsed, Drop))
            if isinstance(parsed, Drop):
                if chat.answer is not None and _may_retry(request, settings):
                    next_round.append(request.again(chat.answer.content, parsed.detail))
                else:
                    result.dropped.append(parsed)
            else:
                result.records.append(SyntheticRecord(request=request, seed=seed, record=parsed))
        waiting = list(dict.fromkeys(next_round))
    return result


def _parsed(
    request: SynthesisRequest, seed: SeedExample, chat: ChatResult, settings: SynthesisSection
) -> NewRecord | Drop:
    """The new record, or why there is none."""
    if chat.answer is None:
        return drop(request, "no_answer", chat.failure)
    return parse(request, seed, chat.answer, settings.filters)


def _may_retry(request: SynthesisRequest, settings: SynthesisSection) -> bool:
    # The builtin rules would give the same answer again.
    return request.model != BUILTIN_MODEL and len(request.refused) < settings.parse_retries


def check_relevance(
    records: Sequence[SyntheticRecord], send: Send, settings: SynthesisSection, ledger: Ledger
) -> SynthesisResult:
    """Ask an LLM whether each new document answers its query, and keep the records that are as they should be.

    A check without a verdict refuses nothing: its failure says nothing about the record.
    """
    claims: dict[int, list[tuple[SynthesisRequest, bool]]] = defaultdict(list)
    for index, one in enumerate(records):
        for query, document, answers in _claims(one):
            request = relevance_request(one.request, query, document, settings.pool)
            claims[index].append((request, answers))
    requests = list(dict.fromkeys(request for ones in claims.values() for request, _ in ones))
    results = send(requests) if requests else {}
    verdicts: dict[SynthesisRequest, bool | Drop | None] = {}
    for request in requests:
        answer = results[request].answer
        verdicts[request] = None if answer is None else parse_verdict(request, answer)
        ledger.count(request, results[request], refused=not isinstance(verdicts[request], bool))
    result = SynthesisResult()
    for index, one in enumerate(records):
        wrong = [claim for request, claim in claims[index] if verdicts[request] is (not claim)]
        if not wrong:
            result.records.append(one)
        elif wrong[0]:
            detail = "the relevance check says that the document does not answer the query"
            result.dropped.append(dropped_record(one, "positive_not_relevant", detail))
        else:
            detail = "the relevance check says that the negative answers the query"
            result.dropped.append(dropped_record(one, "negative_relevant", detail))
    return result


def _claims(one: SyntheticRecord) -> Iterator[tuple[str, str, bool]]:
    """(query, document, whether it must answer) of a new record of retrieval."""
    if isinstance(one.record, Negative):
        assert isinstance(one.seed, RetrievalExample)
        yield one.seed.query, one.record.text, False
    elif isinstance(one.record, RetrievalExample):
        yield one.record.query, one.record.positives[0], True
        for negative in one.record.negatives:
            yield one.record.query, negative.text, False


def asked_texts(example: Example) -> tuple[str, ...]:
    """What an evaluation could ask with: a query, a classified text, both texts of a pair."""
    if isinstance(example, RetrievalExample):
        return (example.query,) if example.query else ()
    if isinstance(example, PairExample):
        return (example.text_a, example.text_b)
    return (example.text,)


def _texts_of(example: Example) -> tuple[str, ...]:
    """All texts of an example."""
    if not isinstance(example, RetrievalExample):
        return asked_texts(example)
    return (*asked_texts(example), *example.positives, *(one.text for one in example.negatives))


def without_held_out(result: SynthesisResult, held_out: Collection[str]) -> SynthesisResult:
    """The records that have no held-out text but those of their seeds; ``held_out`` are normalised texts."""
    kept = SynthesisResult(dropped=list(result.dropped))
    for one in result.records:
        texts = (one.record.text,) if isinstance(one.record, Negative) else _texts_of(one.record)
        known = (one.seed.text,) if isinstance(one.seed, Document) else _texts_of(one.seed)
        if any(normalized_text(text) in held_out for text in texts if text not in known):
            kept.dropped.append(dropped_record(one, "in_held_out", "one of its texts is held out for evaluation"))
        else:
            kept.records.append(one)
    return kept


@dataclass(frozen=True, slots=True)
class Merge:
    """What a dataset becomes by new records.

    Attributes:
        negatives: Id of an example -> the negatives that it gets.
        new: Examples that come after those of the dataset.
        kept: The result without duplicates.
    """

    negatives: dict[str, list[Negative]]
    new: list[Example]
    kept: SynthesisResult

    def applied(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Examples of the dataset with their further negatives."""
        for example in examples:
            more = self.negatives.get(example.id)
            if more and isinstance(example, RetrievalExample):
                yield dataclasses.replace(example, negatives=(*example.negatives, *more))
            else:
                yield example


def merge(ids: Iterable[str], result: SynthesisResult) -> Merge:
    """New records, and where they go in a dataset whose examples have these ids.

    An example keeps its id when it gets a negative: its query is the same. A new example
    that repeats another one is dropped as ``duplicate``, and so is a second negative with
    the same text.
    """
    known = set(ids)
    negatives: dict[str, list[Negative]] = defaultdict(list)
    new: list[Example] = []
    kept = SynthesisResult(dropped=list(result.dropped))
    for one in result.records:
        record = one.record
        if isinstance(record, Negative):
            others = negatives[one.seed.id]
            if record.text in {other.text for other in others}:
                detail = "repeats another negative of the example"
                kept.dropped.append(dropped_record(one, "duplicate", detail))
                continue
            others.append(record)
        else:
            if record.id in known:
                detail = f"repeats the example {record.id}"
                kept.dropped.append(dropped_record(one, "duplicate", detail))
                continue
            known.add(record.id)
            new.append(record)
        kept.records.append(one)
    return Merge(negatives, new, kept)


def dropped_record(one: SyntheticRecord, reason: str, detail: str) -> Drop:
    """The drop of a new record that parsing accepted."""
    record = json.dumps(dataclasses.asdict(one.record), ensure_ascii=False)
    return drop(one.request, reason, detail, content=record)
