"""What is measured while jobs run: every metric declared once, and one function that takes a value. No ray in here.

Rooms call :func:`measure`. In a process that has joined Ray the value goes to the node's
Prometheus exposition (:mod:`qzhou.cluster.metrics`); elsewhere, under torchrun or in a
test, nothing happens.

Names follow Prometheus' conventions: the unit is the suffix, counters end in ``_total``.
Labels take few values: names of the recipe (datasets, models) and words of ours, never ids,
paths or texts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "ray_"  # Ray puts it before the names of all that it exposes
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LLM_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A time series for each combination of its labels.

    Attributes:
        meaning: One sentence, for the exposition and for docs/observability.md.
        unit: What a value counts.
        buckets: Of a histogram: their upper bounds.
        at_endpoint: The serving endpoint exposes it at its own ``/metrics``, and not Ray.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    unit: str
    buckets: tuple[float, ...] = ()
    at_endpoint: bool = False

    @property
    def exposed(self) -> str:
        """The name that Prometheus knows; a histogram's has ``_bucket``, ``_sum`` and ``_count`` behind it."""
        return self.name if self.at_endpoint else PREFIX + self.name


def _endpoint(name: str, kind: Kind, labels: tuple[str, ...], *rest: Any) -> Metric:
    """A metric that the endpoint exposes, for each of its replicas."""
    return replace(Metric(name, kind, (*labels, "replica"), *rest), at_endpoint=True)


# fmt: off
STAGE_STARTED = Metric("qzhou_stage_started_timestamp_seconds", "gauge", ("stage",),
    "When the stage began; 0 once it ended.", "Unix time")
ROWS = Metric("qzhou_rows_total", "counter", ("stage", "dataset"),
    "Rows gone through: raw rows (transform), requests (synthesis), queries (mining), examples of steps (training), "
    "items judged (evaluation).", "rows")
UNITS = Metric("qzhou_units_total", "counter", ("stage", "step", "unit"),
    "Work finished, as its line of progress counts it.", "-")
PROGRESS = Metric("qzhou_progress_ratio", "gauge", ("stage", "step"),
    "Share of a step's work that is done.", "0 to 1")
TRAINING_STEPS = Metric("qzhou_training_steps_total", "counter", ("stage",), "Optimizer steps finished.", "steps")
TRAINING_LAST_STEP = Metric("qzhou_training_last_step_timestamp_seconds", "gauge", ("stage",),
    "When the latest step ended.", "Unix time")
TRAINING_STEP = Metric("qzhou_training_step_seconds", "gauge", ("stage",), "Time of the latest step.", "seconds")
TRAINING_LOSS = Metric("qzhou_training_loss", "gauge", ("stage", "task"),
    "Loss of the latest step of the task.", "nats; CoSENT: none")
TRAINING_TOKENS = Metric("qzhou_training_tokens_total", "counter", ("stage",),
    "Tokens trained on, all ranks, without padding.", "tokens")
TRAINING_PADDING = Metric("qzhou_training_padding_ratio", "gauge", ("stage",),
    "Share of the latest step's tokens that pad.", "0 to 1")
TRAINING_WAIT = Metric("qzhou_training_loader_wait_ratio", "gauge", ("stage",),
    "Share of the latest step that waited for data.", "0 to 1")
TRAINING_GRADIENT = Metric("qzhou_training_gradient_norm", "gauge", ("stage",),
    "Norm of the latest gradient, before it is clipped.", "-")
TRAINING_RATE = Metric("qzhou_training_learning_rate", "gauge", ("stage",),
    "Learning rate of the latest step.", "-")
TRAINING_MEMORY = Metric("qzhou_training_peak_memory_bytes", "gauge", ("stage",),
    "Most memory of rank 0 so far: its GPU's or its own.", "B")
LLM_REQUESTS = Metric("qzhou_llm_requests_total", "counter", ("model", "result"),
    "Requests sent, by how each try ended: answered, overloaded, unreachable, rejected, refused.", "requests")
LLM_RETRIES = Metric("qzhou_llm_retries_total", "counter", ("model",), "Requests that were sent again.", "requests")
LLM_TOKENS = Metric("qzhou_llm_tokens_total", "counter", ("model", "kind"),
    "Tokens paid for: prompt or completion.", "tokens")
LLM_COST = Metric("qzhou_llm_cost_total", "counter", ("model",), "Money spent.", "currency of the recipe's prices")
LLM_SECONDS_METRIC = Metric("qzhou_llm_request_seconds", "histogram", ("model",),
    "From sending to the answer.", "seconds", LLM_SECONDS)
ENDPOINT_REQUESTS = _endpoint("qzhou_requests_total", "counter", ("route", "status"),
    "Requests answered.", "requests")
ENDPOINT_SECONDS = _endpoint("qzhou_request_seconds", "histogram", ("route",),
    "From request to answer.", "seconds", SECONDS)
ENDPOINT_TOKENS = _endpoint("qzhou_tokens_total", "counter", ("model", "key"), "Tokens of answered requests.", "tokens")
ENDPOINT_TRUNCATED = _endpoint("qzhou_truncated_texts_total", "counter", ("model",),
    "Texts whose end the model did not read.", "texts")
ENDPOINT_WAITING = _endpoint("qzhou_waiting_tokens", "gauge", ("model",), "Tokens waiting for the model.", "tokens")
ENDPOINT_SPEED = _endpoint("qzhou_tokens_per_second", "gauge", ("model",),
    "What the model computes while it computes.", "tokens/s")
ENDPOINT_BATCHES = _endpoint("qzhou_batches_total", "counter", ("model",), "Forward passes.", "batches")
ENDPOINT_COMPUTED = _endpoint("qzhou_computed_tokens_total", "counter", ("model",), "Tokens computed.", "tokens")
ENDPOINT_PADDED = _endpoint("qzhou_padded_tokens_total", "counter", ("model",),
    "Tokens of padding, computed for nothing.", "tokens")
ENDPOINT_REUSED = _endpoint("qzhou_reused_texts_total", "counter", ("model",),
    "Texts that were known or on their way already.", "texts")
# fmt: on

METRICS = tuple(one for one in list(globals().values()) if isinstance(one, Metric))

Exporter = Callable[[Metric, float, Mapping[str, str]], None]
_exporter: Exporter | None = None


def measure(metric: Metric, value: float, **labels: str) -> None:
    """Add to a counter, set a gauge, observe by histogram; nothing without an exporter.

    ``value`` is in the metric's unit, and ``labels`` are exactly those of the metric.
    """
    if _exporter is not None and (value or metric.kind != "counter"):
        _exporter(metric, value, labels)


def set_exporter(exporter: Exporter | None) -> None:
    """Pass on what this process measures from now on; None: to nobody."""
    global _exporter
    _exporter = exporter


def has_exporter() -> bool:
    """Whether what this process measures is passed on."""
    return _exporter is not None
