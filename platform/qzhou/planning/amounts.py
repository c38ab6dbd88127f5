"""What there is to do: for every stage its rows, tokens, operations and bytes, whoever does it.

    part of a stage          amount
    transform.rows           raw rows
    synthesis.requests      requests
    synthesis.score         operations of the teacher that judges what an LLM wrote
    mining.encode              operations of the teachers on every text once
    mining.search              seconds that one CPU would take by ``search_s_per_query`` and ``search_s_per_score``
    training/stage1.steps       operations, gradient caching included
    training/stage2.steps
    model.export             1
    evaluation.judge           operations of all models on all texts

A part's time is a start and so many seconds for each unit of its amount.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from qzhou.costs.shapes import Shape
from qzhou.costs.training import Memory
from qzhou.planning.sizes import DatasetRows

PARTS = (
    "transform.rows", "synthesis.requests", "synthesis.score", "mining.encode", "mining.search", "training/stage1.steps",
    "training/stage2.steps", "model.export", "evaluation.judge",
)  # fmt: skip
STAGES = tuple(dict.fromkeys(part.partition(".")[0] for part in PARTS))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What a stage goes through.

    Attributes:
        rows_in: Rows that it reads.
        rows_out: Rows, examples, steps or scores that it writes; ``out`` says which.
        tokens: Of models: encoded, trained on, or an LLM's.
        flops: Of models; an LLM's are its provider's.
        read: Bytes from storage.
        written: Bytes to storage; ``kept`` are those that stay.
        money: US dollars for what is bought, machines not counted.
    """

    rows_in: float
    rows_out: float
    out: str
    tokens: float = 0.0
    flops: float = 0.0
    read: float = 0.0
    written: float = 0.0
    kept: float = 0.0
    money: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All of a run.

    Attributes:
        stages: In their order.
        parts: Part -> amount (see the module's text).
        row_bytes: Of a raw row, on average.
        shape: Of the backbone; ``teacher`` is that of mining.
        memory: Of training.
        notes: What was taken for something else.
    """

    rows: Sequence[DatasetRows]
    stages: Mapping[str, Amount]
    parts: Mapping[str, float]
    row_bytes: float
    shape: Shape
    teacher: Shape
    memory: Memory
    tasks: int
    requests: float
    request_tokens: float
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a finished run has counted, where others have to assume.

    Attributes:
        texts_per_example: That mining encoded for each retrieval example.
        llm_tokens: Of the prompts and of the answers of a first request, those of its follow-ups included.
    """

    texts_per_example: float | None = None
    llm_tokens: tuple[float, float] | None = None
