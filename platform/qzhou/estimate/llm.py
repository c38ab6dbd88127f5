"""Tokens, price and speed of the LLM that synthesis asks."""

from qzhou.config.synthesis import SynthesisSection
from qzhou.estimate.assumptions import Assumptions


def llm_tokens(
    settings: SynthesisSection, requests: float, text: float, assumed: Assumptions
) -> tuple[float, float]:
    """Tokens of all prompts and of all answers, where no run has counted them.

    A prompt is the instructions and an example, and an answer is as long as the example;
    ``text`` is the tokens of all these examples.
    """
    tries = 1.0
    if not settings.is_builtin and settings.parse_retries:
        tries += assumed["retried_share"]
    return tries * (requests * assumed["prompt_tokens"] + text), tries * text


def llm_price(settings: SynthesisSection, prompt: float, answer: float, assumed: Assumptions) -> float:
    """US dollars at the recipe's prices; at the table's for a model without prices."""
    if settings.is_builtin:
        return 0.0
    usd = weights = 0.0
    for one in settings.pool:
        prices = one.input_price, one.output_price
        if not any(prices):
            prices = assumed["llm_input_price"], assumed["llm_output_price"]
        usd += one.weight * (prompt * prices[0] + answer * prices[1]) / 1e6
        weights += one.weight
    return usd / weights


def seconds_per_request(settings: SynthesisSection, tokens: float, assumed: Assumptions) -> float:
    """The slowest of latency, requests and tokens per minute, for requests of this size."""
    if settings.is_builtin:
        return 1 / assumed["builtin_requests_per_s"]
    slowest = assumed["llm_latency_s"] / (settings.concurrency * assumed["llm_efficiency"])
    if settings.requests_per_minute:
        slowest = max(slowest, 60 / settings.requests_per_minute)
    if settings.tokens_per_minute:
        slowest = max(slowest, 60 * tokens / settings.tokens_per_minute)
    return slowest
