"""What the answers cost: tokens and money per model, dataset and technique. Pure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qzhou.config.synthesis import LLMSection
from qzhou.synthesis.techniques import ChatRequest, Message

if TYPE_CHECKING:
    from qzhou.synthesis.client import Outcome

CHARS_PER_TOKEN = 4.0  # of Latin letters; OpenAI's rule of thumb
TOKENS_PER_WIDE_CHAR = 0.8  # of Chinese, kana and hangul
CHAT_TOKENS = 8  # what a chat's frame takes


def expected_tokens(messages: Sequence[Message]) -> tuple[int, int]:
    """About how many tokens a request takes: (prompt, answer). A rewrite is about as long as what it rewrites."""
    counts = [_tokens(message["content"]) for message in messages]
    return sum(counts) + CHAT_TOKENS, counts[1] if len(counts) > 1 else counts[0]


def cost_of(model: LLMSection, prompt_tokens: int, completion_tokens: int) -> float:
    """Money at the recipe's prices."""
    return (prompt_tokens * model.input_price + completion_tokens * model.output_price) / 1e6


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one model, dataset and technique, or of all of them.

    Attributes:
        requests: Follow-ups after a refused answer included.
        answered: Requests with an answer, whether or not it was accepted.
        refused: Answers that could not be used, some of which were asked for again, and requests without an answer.
        reused: Requests answered from the journal or by an identical request; they cost nothing.
        prompt_tokens: Of requests sent by this attempt, as the endpoint counts them.
        cost: Money for what this attempt sent.
        reused_tokens: What reused answers had taken when they were sent.
        reused_cost: What they had cost.
    """

    requests: int = 0
    answered: int = 0
    refused: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    reused_tokens: int = 0
    reused_cost: float = 0.0

    def count(self, outcome: Outcome, *, refused: bool) -> None:
        self.requests += 1
        self.refused += refused
        answer = outcome.answer
        if answer is None:
            return
        self.answered += 1
        if outcome.reused:
            self.reused += 1
            self.reused_tokens += answer.prompt_tokens + answer.completion_tokens
            self.reused_cost += answer.cost
        else:
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
            self.cost += answer.cost


class Ledger:
    """Collects tallies by the model that was asked; what it calls itself stands beside."""

    def __init__(self) -> None:
        self.total = Tally()
        self._names: dict[str, set[str]] = defaultdict(set)
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def count(self, request: ChatRequest, outcome: Outcome, *, refused: bool) -> None:
        tally = self._tallies.setdefault(
            (request.model, request.dataset, request.technique), Tally()
        )
        if outcome.answer is not None:
            self._names[request.model].add(outcome.answer.model)
        for one in (tally, self.total):
            one.count(outcome, refused=refused)

    def as_json(self) -> dict[str, object]:
        """``total``, and ``rows`` by model, dataset and technique."""
        rows = [
            {
                "model": model,
                "answered_as": sorted(self._names[model]),
                "dataset": dataset,
                "technique": technique,
                **dataclasses.asdict(tally),
            }
            for (model, dataset, technique), tally in sorted(self._tallies.items())
        ]
        return {"total": dataclasses.asdict(self.total), "rows": rows}


def _tokens(text: str) -> int:
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) / 2  # three bytes each
    return round((len(text) - wide) / CHARS_PER_TOKEN + wide * TOKENS_PER_WIDE_CHAR)
