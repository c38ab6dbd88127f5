"""What the answers cost: tokens and money by model, dataset and technique. Pure."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from qzhou.config.synthesis import LLMSection
from qzhou.synthesis.chat import ChatResult, Message
from qzhou.synthesis.techniques import SynthesisRequest

CHARS_PER_TOKEN = 4.0  # of Latin letters; OpenAI's rule of thumb
TOKENS_PER_WIDE_CHAR = 0.8  # of Chinese, kana and hangul
CHAT_TOKENS = 8  # overhead of a chat's format


def expected_tokens(messages: Sequence[Message]) -> tuple[int, int]:
    """Estimated (prompt, answer) tokens; a rewrite is about as long as its original."""
    counts = [_tokens(message["content"]) for message in messages]
    return sum(counts) + CHAT_TOKENS, counts[1] if len(counts) > 1 else counts[0]


def cost_of(model: LLMSection, prompt_tokens: int, completion_tokens: int) -> float:
    """Money at the recipe's prices."""
    return (prompt_tokens * model.input_price + completion_tokens * model.output_price) / 1e6


@dataclass(slots=True, kw_only=True)
class Usage:
    """Requests, tokens and money of one model, dataset and technique, or of all of them.

    Attributes:
        requests: Repeated requests after a refused answer included.
        answered: Requests with an answer, whether or not it was accepted.
        refused: Requests without an answer, and answers that parsing refused, those that were retried included.
        reused: Requests answered from the response cache or by an identical request; they cost nothing.
        prompt_tokens: Of requests sent by this attempt, as the endpoint counts them.
        cost: Money for what this attempt sent.
        reused_tokens: Tokens of reused answers when they were sent.
        reused_cost: Their cost at that time.
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

    @property
    def tokens(self) -> int:
        """Prompt and answer together, of what this attempt sent."""
        return self.prompt_tokens + self.completion_tokens

    def count(self, result: ChatResult, *, refused: bool) -> None:
        """Add one request."""
        self.requests += 1
        self.refused += refused
        answer = result.answer
        if answer is None:
            return
        self.answered += 1
        if result.reused:
            self.reused += 1
            self.reused_tokens += answer.prompt_tokens + answer.completion_tokens
            self.reused_cost += answer.cost
        else:
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
            self.cost += answer.cost


class Ledger:
    """Usage by the model that was named in the request, with the names that endpoints gave in their answers."""

    def __init__(self) -> None:
        self.total = Usage()
        self._names: dict[str, set[str]] = defaultdict(set)
        self._rows: dict[tuple[str, str, str], Usage] = defaultdict(Usage)

    def count(self, request: SynthesisRequest, result: ChatResult, *, refused: bool) -> None:
        """Add one request."""
        if result.answer is not None:
            self._names[request.model].add(result.answer.model)
        self._rows[request.model, request.dataset, request.technique].count(result, refused=refused)
        self.total.count(result, refused=refused)

    def as_json(self) -> dict[str, object]:
        """``total``, and ``rows`` by model, dataset and technique."""
        rows = [
            {
                "model": model,
                "answered_as": sorted(self._names[model]),
                "dataset": dataset,
                "technique": technique,
                **dataclasses.asdict(usage),
            }
            for (model, dataset, technique), usage in sorted(self._rows.items())
        ]
        return {"total": dataclasses.asdict(self.total), "rows": rows}


def _tokens(text: str) -> int:
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) / 2  # three bytes each
    return round((len(text) - wide) / CHARS_PER_TOKEN + wide * TOKENS_PER_WIDE_CHAR)
