"""Synthesis requests and what they would cost, before anything is sent. No Ray in here."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.storage import Folder
from qzhou.run.run import Run
from qzhou.synthesis.dataset_requests import dataset_requests
from qzhou.synthesis.ledger import Usage, cost_of, expected_tokens
from qzhou.synthesis.response_cache import RESPONSES, cached_answers, totals
from qzhou.synthesis.techniques import SynthesisRequest

SHOWN_CHARS = 240
QUERY_ANSWER_TOKENS = 40  # a query is short, whatever the document


class _Count(Usage):
    """What is expected; ``answered`` are those whose answers are cached."""

    def __str__(self) -> str:
        answered = f" ({self.answered:,} answered already)" if self.answered else ""
        return (
            f"{self.requests:,} requests{answered}, about {self.prompt_tokens:,} prompt and "
            f"{self.completion_tokens:,} answered tokens, cost {self.cost:.4f}"
        )


def synthesis_details(recipe: Recipe) -> str:
    """Requests, tokens and cost by technique and model, and one request of each technique as it would be sent.

    Raises:
        DataError: The transform stage has not finished.
    """
    run = Run.open(recipe)
    run.manifest("transform")
    settings, responses = recipe.synthesis, run.folder / "synthesis" / RESPONSES
    counts = RequestCounts(settings)
    for dataset in dataset_requests(run):
        counts.add(dataset.requests, _answered(dataset.requests, settings.sampling, responses))
    return f"synthesis: details; nothing is sent\n{counts.table(spent=totals(responses)[1])}"


class RequestCounts:
    """Counts requests, tokens and cost.

    Tokens are guessed from characters, those of an answer from the text that it rewrites.
    Requests that are sent again and the relevance check come on top.
    """

    def __init__(self, settings: SynthesisSection) -> None:
        self._settings, self._models = settings, {one.model: one for one in settings.pool}
        self._total = _Count()
        self._counts: dict[tuple[str, str], _Count] = {}
        self._samples: dict[str, SynthesisRequest] = {}

    def add(self, requests: Iterable[SynthesisRequest], answered: Collection[SynthesisRequest]) -> None:
        """Count all requests of a dataset, and those whose answers are cached."""
        for request in requests:
            self._samples.setdefault(request.technique, request)
            count = self._counts.setdefault((request.technique, request.model), _Count())
            for one in (count, self._total):
                self._count(one, request, is_answered=request in answered)

    def _count(self, one: _Count, request: SynthesisRequest, *, is_answered: bool) -> None:
        if is_answered:
            one.requests += 1
            one.answered += 1
            return
        prompt, answer = expected_tokens(request.messages)
        if request.technique == "query":
            answer = QUERY_ANSWER_TOKENS
        one.requests += 1
        one.prompt_tokens += prompt
        one.completion_tokens += answer
        one.cost += cost_of(self._models[request.model], prompt, answer)

    def table(self, *, spent: float) -> str:
        """Lines for the console; ``spent`` is the cost of the cached answers."""
        settings, total = self._settings, self._total
        lines = [f"  {technique}, {model}: {count}" for (technique, model), count in sorted(self._counts.items())]
        more = f"unusable answers that are asked for again (up to {settings.parse_retries} times)"
        more += " and a relevance check of every new text" if settings.filters.relevance_check else ""
        lines.append(f"  in all: {total}; on top come {more}")
        if spent or settings.max_cost is not None:
            limit = "no max_cost" if settings.max_cost is None else f"max_cost {settings.max_cost:g}"
            lines.append(f"  spent by earlier attempts: {spent:.4f}; {limit}")
        if rate := settings.requests_per_minute:
            minutes = (total.requests - total.answered) / rate
            lines.append(f"  at {rate:g} requests a minute: {minutes:,.0f} minutes at least")
        for technique, sample in self._samples.items():
            shown = sample.user[:SHOWN_CHARS] + "..." * (len(sample.user) > SHOWN_CHARS)
            lines.append(f"  e.g. {technique} ({sample.prompt}): {shown}")
        return "\n".join(lines)


def _answered(
    requests: Sequence[SynthesisRequest], sampling: Mapping[str, Mapping[str, Any]], responses: Folder
) -> set[SynthesisRequest]:
    """The requests whose answers are cached."""
    keys = {request.key(sampling): request for request in requests}
    return {keys[key] for key in cached_answers(responses, keys)}
