"""What a recipe would ask and what that would cost, before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qzhou.config.synthesis import SynthesisSection
from qzhou.synthesis.ledger import cost_of, expected_tokens
from qzhou.synthesis.techniques import SynthesisRequest

SHOWN_CHARS = 240
QUERY_ANSWER_TOKENS = 40  # a configuration or a query is short, whatever the document


@dataclass(slots=True)
class _Expected:
    requests: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class Estimate:
    """Requests, tokens and money by technique and model, and one request of each kind as it would be sent.

    Tokens are guessed from characters, an answer's from the length of what it rewrites. Answers that are refused and
    asked for again, and a relevance check, come on top.
    """

    def __init__(self, settings: SynthesisSection) -> None:
        self._settings, self._models = settings, {one.model: one for one in settings.pool}
        self._total = _Expected()
        self._found: dict[tuple[str, str], _Expected] = {}
        self._samples: dict[str, SynthesisRequest] = {}

    def add(
        self, requests: Iterable[SynthesisRequest], known: Collection[SynthesisRequest]
    ) -> None:
        """Take in the requests of a dataset.

        Args:
            requests: All that can be known; for a query's configuration without an answer, the query is counted too.
            known: Those of them that the response cache answers.
        """
        for request in requests:
            self._samples.setdefault(request.technique, request)
            row = self._found.setdefault((request.technique, request.model), _Expected())
            for one in (row, self._total):
                self._count(one, request, request in known)

    def _count(self, one: _Expected, request: SynthesisRequest, is_known: bool) -> None:
        if is_known:
            one.requests += 1
            one.answered += 1
            return
        prompt, answer = expected_tokens(request.messages)
        if request.technique in {"query_configuration", "query"}:
            answer = QUERY_ANSWER_TOKENS
        times = 2 if request.technique == "query_configuration" else 1
        one.requests += times
        one.prompt_tokens += times * prompt
        one.completion_tokens += times * answer
        one.cost += times * cost_of(self._models[request.model], prompt, answer)

    def table(self, *, spent: float) -> str:
        """Lines for the console; ``spent`` is the cost of the cached answers."""
        settings, total = self._settings, self._total
        lines = [
            f"  {technique}, {model}: {_sentence(one)}"
            for (technique, model), one in sorted(self._found.items())
        ]
        more = [
            f"answers that are refused and asked for again (up to {settings.parse_retries} times)"
        ]
        more += ["a relevance check of every new text"] if settings.filters.relevance_check else []
        lines.append(f"  in all: {_sentence(total)}; on top come {' and '.join(more)}")
        if spent or settings.max_cost is not None:
            limit = (
                "no max_cost" if settings.max_cost is None else f"max_cost {settings.max_cost:g}"
            )
            lines.append(f"  spent by earlier attempts: {spent:.4f}; {limit}")
        if settings.requests_per_minute:
            minutes = (total.requests - total.answered) / settings.requests_per_minute
            lines.append(
                f"  at {settings.requests_per_minute:g} requests a minute: {minutes:,.0f} minutes at least"
            )
        for technique, sample in self._samples.items():
            shown = (
                sample.user
                if len(sample.user) <= SHOWN_CHARS
                else f"{sample.user[:SHOWN_CHARS]}..."
            )
            lines.append(f"  e.g. {technique} ({sample.prompt}): {shown}")
        return "\n".join(lines)


def _sentence(one: _Expected) -> str:
    known = f" ({one.answered:,} answered already)" if one.answered else ""
    tokens = f"about {one.prompt_tokens:,} prompt and {one.completion_tokens:,} answered tokens"
    return f"{one.requests:,} requests{known}, {tokens}, cost {one.cost:.4f}"
