"""Metrics in Ray: the values of a process go to its node, where Prometheus fetches them with Ray's own metrics.

Ray exports every ten seconds and once more when a process ends. It keeps a histogram's
buckets and makes up its sum from them, so quantiles hold and means do not.
"""

import functools
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from qzhou.telemetry.metrics import Metric, has_exporter, set_exporter


def export_metrics() -> None:
    """Export what this process measures from now on. It must have joined Ray: Ray drops what came before that."""
    if has_exporter():
        return
    instrument_of = functools.cache(_instrument)  # each is made when it is first used

    def export(metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        act = {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind]
        getattr(instrument_of(metric), act)(float(value), dict(labels))

    set_exporter(export)


def stop_export() -> None:
    """Export nothing any more: the process leaves Ray."""
    set_exporter(None)


def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, boundaries=list(metric.buckets), tag_keys=metric.labels)
    return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.meaning, tag_keys=metric.labels)
