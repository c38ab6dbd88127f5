"""The nouns of the platform. No torch, no ray, no input or output.

Records are what the stages hand to each other, one Parquet column per field. Ids are stable
hashes of dataset and content, so that a second run gives the same ids.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any, Literal

SHOWN_CHARS = 300

Task = Literal["retrieval", "pair", "classification"]
Origin = Literal["given", "mined", "synthetic"]
Technique = Literal["raw", "paraphrase", "augmentation", "hard_negative", "query_generation"]

TASKS: tuple[Task, ...] = ("retrieval", "pair", "classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a record came from.

    ``raw`` rows have no parent; a synthetic row names the record it was made from, the
    model that wrote it and the prompt (``id@version``) that asked for it.
    """

    technique: Technique = "raw"
    parent: str = ""
    model: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Negative:
    """A document that is no answer; ``score`` is a teacher's cosine, if one judged it."""

    text: str
    origin: Origin
    score: float | None = None
    source: Source = field(default_factory=Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalExample:
    """A query with documents that answer it. Trained with InfoNCE and its query-query term.

    ``positive_scores`` are a teacher's, one per positive, where the data came with them or
    mining wrote them.
    ``instruction`` is the query's own, in place of the dataset's; empty where it has none.
    """

    id: str
    dataset: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[Negative, ...] = ()
    positive_scores: tuple[float, ...] = ()
    instruction: str = ""
    source: Source = field(default_factory=Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """Two texts and their ordinal ``score``: only its order counts. Trained with CoSENT."""

    id: str
    dataset: str
    text_a: str
    text_b: str
    score: float
    source: Source = field(default_factory=Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledExample:
    """A text and its class. Trained with same-label-masked InfoNCE.

    A label starts with its dataset's name, so that class "1" of one dataset never counts as
    class "1" of another.
    """

    id: str
    dataset: str
    text: str
    label: str
    source: Source = field(default_factory=Source)


Example = RetrievalExample | PairExample | LabeledExample

EXAMPLE_TYPES: dict[Task, type[Example]] = {
    "retrieval": RetrievalExample,
    "pair": PairExample,
    "classification": LabeledExample,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that can be retrieved."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A text that asks."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Qrel:
    """A relevance judgement: a document's grade as a query's answer (relevant above 0)."""

    query_id: str
    document_id: str
    grade: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What a rule, filter or parser refused, and why. ``record``: the refused row as JSON.

    ``part`` says that only a part of a row was refused (one piece of evidence, one
    negative) and the rest kept.
    """

    stage: str
    dataset: str
    reason: str
    detail: str
    record: str
    part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a finished stage did; its presence is the stage's completion mark.

    Attributes:
        stage: Folder of the stage in the run.
        fingerprint: 16 hex digits of settings, inputs and code.
        inputs: Name -> fingerprint of what it read.
        outputs: Name -> rows that it made.
        settings: The settings of the recipe that its output depends on.
        code_version: 16 hex digits of its code.
        code: Module -> 16 hex digits of its code.
        finished_at: Date and time, UTC.
        wall_s: Seconds from start to end.
        phases: What the seconds were spent on (:class:`qzhou.telemetry.progress.Phase`), as far as the driver saw it.
        accepted: Later fingerprints for which the user has accepted the stage as it is, each with the time and what
            had changed.
    """

    stage: str
    fingerprint: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, int]
    settings: Mapping[str, object]
    code_version: str
    finished_at: str
    wall_s: float
    code: Mapping[str, str] = field(default_factory=dict)
    phases: Sequence[Mapping[str, Any]] = field(default_factory=list)
    accepted: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def execution_id(self) -> str:
        """Distinguishes two executions with one fingerprint: what an LLM has written may differ between them."""
        return f"{self.fingerprint}-{''.join(filter(str.isdigit, self.finished_at))}"

    def is_valid_for(self, fingerprint: str) -> bool:
        """Whether the stage needs no second execution for this fingerprint."""
        return fingerprint in {self.fingerprint, *(one["fingerprint"] for one in self.accepted)}


def digest(content: object) -> str:
    """16 hex digits of anything that JSON can hold; of other values their text counts."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stable_id(dataset: str, *parts: object) -> str:
    """24 hex digits that depend on the dataset's name and the content alone."""
    content = f"[{', '.join(map(_as_json, (dataset, *parts)))}]"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _as_json(part: object) -> str:
    """What ``json.dumps`` writes, without making an encoder for every text."""
    return (
        encode_basestring(part) if isinstance(part, str) else json.dumps(part, ensure_ascii=False, sort_keys=True)
    )


def origin_id(example: Example) -> str:
    """The id of the raw example that this one was made from, or its own id if it is raw."""
    return example.source.parent or example.id


def relevant_keys(examples: Sequence[RetrievalExample]) -> list[set[str]]:
    """For each example, the keys (:func:`normalized_text`) of all its query's answers.

    These are its own positives, those of its relatives (a paraphrase's positive answers the
    original query, and the reverse), and those of examples with the same query: none of
    them is a negative.
    """
    by_group: dict[tuple[str, str], set[str]] = {}
    groups = [(("family", origin_id(one)), ("query", normalized_text(one.query))) for one in examples]
    for one, own in zip(examples, groups, strict=True):
        keys = {normalized_text(text) for text in one.positives}
        for group in own:
            by_group.setdefault(group, set()).update(keys)
    return [by_group[one] | by_group[other] for one, other in groups]


def shortened(text: str) -> str:
    """A text as reports show it: its first ``SHOWN_CHARS`` characters, and dots where it goes on."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} ..."


def normalized_text(text: str) -> str:
    """The text in lower case with single spaces: equal ones count as the same text."""
    return " ".join(text.casefold().split())
