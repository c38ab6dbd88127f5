"""From examples to requests, and from outcomes back to examples. Pure: no Ray, no network."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qzhou.recipe import SynthesisSection
from qzhou.records import Drop, Example, Negative, RetrievalExample, Task
from qzhou.synthesis.client import Outcome
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.parsing import Synthetic, drop, parse
from qzhou.synthesis.techniques import TECHNIQUES, ChatRequest, SynthesisTechnique, chosen, requests_for

OutcomeOf = Mapping[ChatRequest, Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A dataset after synthesis: raw examples first and in their order, then new ones."""

    examples: tuple[Example, ...]
    dropped: tuple[Drop, ...]
    made: Mapping[SynthesisTechnique, int]


def planned(
    examples: Sequence[Example], task: Task, settings: SynthesisSection, *, seed: int
) -> tuple[ChatRequest, ...]:
    """Every request that the settings ask for about one dataset; none if it has more rows than allowed."""
    if len(examples) > settings.max_dataset_rows:
        return ()
    rows: dict[SynthesisTechnique, int] = {
        "paraphrase": settings.paraphrase_rows,
        "augmentation": settings.augment_rows,
        "hard_negative": settings.hard_negative_rows,
    }
    requests = (
        requests_for(example, technique)
        for technique in TECHNIQUES[task]
        for example in chosen(examples, technique, rows=rows[technique], seed=seed)
    )
    return tuple(dict.fromkeys(requests))  # a dataset that was not deduplicated repeats ids


def merged(
    examples: Sequence[Example], requests: Iterable[ChatRequest], outcome_of: OutcomeOf, ledger: Ledger
) -> Merged:
    """Parse the outcomes of one dataset's requests and put the new records beside the raw ones.

    An example keeps its id when a negative is written for it: it still asks the same. A new example
    that repeats one that is there is dropped as ``duplicate``.
    """
    by_id = {example.id: example for example in examples}
    negatives: dict[str, list[Negative]] = defaultdict(list)
    new: dict[str, Example] = {}
    dropped: list[Drop] = []
    made: dict[SynthesisTechnique, int] = defaultdict(int)
    for request in requests:
        result = _result(request, by_id[request.example_id], outcome_of[request])
        if not isinstance(result, Drop | Negative) and (result.id in by_id or result.id in new):
            result = drop(request, "duplicate", f"repeats the example {result.id}")
        ledger.count(request, outcome_of[request], dropped=isinstance(result, Drop))
        if isinstance(result, Drop):
            dropped.append(result)
            continue
        made[request.technique] += 1
        if isinstance(result, Negative):
            negatives[request.example_id].append(result)
        else:
            new[result.id] = result
    return Merged(
        examples=(*_with_negatives(examples, negatives), *new.values()), dropped=tuple(dropped), made=dict(made)
    )


def _result(request: ChatRequest, example: Example, outcome: Outcome) -> Synthetic | Drop:
    if outcome.answer is None:
        return drop(request, "no_answer", outcome.failure)
    return parse(request, example, outcome.answer)


def _with_negatives(examples: Iterable[Example], negatives: Mapping[str, list[Negative]]) -> Iterator[Example]:
    for example in examples:
        written = negatives.get(example.id)
        if written and isinstance(example, RetrievalExample):
            yield dataclasses.replace(example, negatives=(*example.negatives, *written))
        else:
            yield example
