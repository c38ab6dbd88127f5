"""What the answers cost: tokens per model, dataset and technique. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qzhou.synthesis.client import Outcome
from qzhou.synthesis.techniques import ChatRequest


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one model, dataset and technique, or of all of them.

    Attributes:
        prompt_tokens: Of requests sent by this attempt, as the endpoint counts them.
        answered: Requests with an answer, whether or not it was accepted.
        dropped: Requests that gave no record: unanswered, or refused by parsing.
        reused: Requests answered from the journal or by an identical request; they cost nothing.
        reused_tokens: What those had cost when they were sent.
    """

    requests: int = 0
    answered: int = 0
    dropped: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0

    def count(self, outcome: Outcome, *, dropped: bool) -> None:
        self.requests += 1
        self.dropped += dropped
        if outcome.answer is None:
            return
        self.answered += 1
        if outcome.reused:
            self.reused += 1
            self.reused_tokens += outcome.answer.prompt_tokens + outcome.answer.completion_tokens
        else:
            self.prompt_tokens += outcome.answer.prompt_tokens
            self.completion_tokens += outcome.answer.completion_tokens


class Ledger:
    """Collects tallies; an unanswered request stands under the model that was asked for."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._total = Tally()
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def count(self, request: ChatRequest, outcome: Outcome, *, dropped: bool) -> None:
        model = outcome.answer.model if outcome.answer else self._model
        tally = self._tallies.setdefault((model, request.dataset, request.technique), Tally())
        for one in (tally, self._total):
            one.count(outcome, dropped=dropped)

    def as_json(self) -> dict[str, object]:
        """``total``, and ``rows`` by model, dataset and technique."""
        rows = [
            {"model": model, "dataset": dataset, "technique": technique, **dataclasses.asdict(tally)}
            for (model, dataset, technique), tally in sorted(self._tallies.items())
        ]
        return {"total": dataclasses.asdict(self._total), "rows": rows}
