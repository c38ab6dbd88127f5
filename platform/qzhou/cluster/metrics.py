"""Metrics in Ray: the values of a process go to its node, where Prometheus fetches them with Ray's own metrics.

Ray exports every ten seconds and once more when a process ends. It keeps a histogram's
buckets and makes up its sum from them, so quantiles hold and means do not.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from qzhou.telemetry.metrics import Metric, has_exporter, set_exporter


def export_metrics() -> None:
    """Export what this process measures from now on. It must have joined Ray: Ray drops what came before that."""
    if not has_exporter():
        set_exporter(_RayExporter().take)


def stop_export() -> None:
    """Export nothing any more: the process leaves Ray."""
    set_exporter(None)


class _RayExporter:
    """Ray's instruments, each made when it is first used."""

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge | Histogram] = {}

    def take(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        found = self._made.get(metric.name)
        if found is None:
            found = self._made[metric.name] = _instrument(metric)
        act = {"counter": "inc", "gauge": "set", "histogram": "observe"}[metric.kind]
        getattr(found, act)(float(value), dict(labels))


def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, boundaries=list(metric.buckets), tag_keys=metric.labels)
    return (Counter if metric.kind == "counter" else Gauge)(metric.name, metric.meaning, tag_keys=metric.labels)
