"""The Grafana dashboards as a short description, and the JSON that Grafana reads.

    python deploy/dashboards/dashboards.py

writes ``grafana/dashboards/*.json``. A change belongs here; a test holds both together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT, GRID = 3, 8, 24  # panels in a row; Grafana's units


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot.

    Attributes:
        unit: Grafana's name of it.
        lines: Legend -> PromQL. ``{{label}}`` in a legend is the label's value.
    """

    title: str
    unit: str
    lines: dict[str, str]
    description: str = ""


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{where}[$__rate_interval]))"


def _quantiles(histogram: str, by: str, *shares: float) -> dict[str, str]:
    rate = _rate(f"{histogram}_bucket", f"le, {by}")
    return {f"p{100 * share:g} {{{{{by}}}}}": f"histogram_quantile({share}, {rate})" for share in shares}


def _share_of_requests(status: str) -> str:
    answered, every = (f"sum(rate(qzhou_requests_total{where}[$__rate_interval]))" for where in (status, ""))
    return f"{answered} / {every}"


def _mean(metric: str, by: str) -> str:
    return f"avg by ({by}) ({metric})"


COMPUTED, PADDED = (_rate(f"qzhou_{kind}_tokens_total", "model") for kind in ("computed", "padded"))
NODE_STATES = ("active", "pending", "failed")

PIPELINE = (
    Panel(
        "Stages that run",
        "s",
        {"{{stage}}": "time() - max by (stage) (ray_qzhou_stage_started_timestamp_seconds > 0)"},
    ),
    Panel("Progress", "percentunit", {"{{stage}}: {{step}}": "max by (stage, step) (ray_qzhou_progress_ratio)"}),
    Panel("Rows", "rowsps", {"{{stage}}: {{dataset}}": _rate("ray_qzhou_rows_total", "stage, dataset")}),
    Panel("Work", "ops", {"{{stage}}: {{step}}, {{unit}}": _rate("ray_qzhou_units_total", "stage, step, unit")}),
    Panel("Rows so far", "short", {"{{stage}}": "sum by (stage) (ray_qzhou_rows_total)"}),
    Panel(
        "LLM requests", "reqps", {"{{model}} {{result}}": _rate("ray_qzhou_llm_requests_total", "model, result")}
    ),
    Panel("LLM retries", "reqps", {"{{model}}": _rate("ray_qzhou_llm_retries_total", "model")}),
    Panel(
        "LLM tokens a second", "short", {"{{model}} {{kind}}": _rate("ray_qzhou_llm_tokens_total", "model, kind")}
    ),
    Panel("LLM latency", "s", _quantiles("ray_qzhou_llm_request_seconds", "model", 0.5, 0.95)),
    Panel(
        "Money spent",
        "short",
        {"{{model}}": "sum by (model) (ray_qzhou_llm_cost_total)"},
        "In the recipe's currency.",
    ),
    Panel("CPU of nodes", "percent", {"{{ip}}": "ray_node_cpu_utilization"}),
    Panel("Memory of nodes", "percentunit", {"{{ip}}": "ray_node_mem_used / ray_node_mem_total"}),
    Panel("Disk of nodes", "percent", {"{{ip}}": "ray_node_disk_utilization_percentage"}),
    Panel(
        "Nodes",
        "short",
        {f"{{{{node_type}}}} {state}": f"sum by (node_type) (ray_cluster_{state}_nodes)" for state in NODE_STATES},
    ),
)

TRAINING = (
    Panel(
        "Loss",
        "none",
        {"{{stage}} {{task}}": _mean("ray_qzhou_training_loss", "stage, task")},
        "Tasks are on different scales.",
    ),
    Panel("Learning rate", "sci", {"{{stage}}": _mean("ray_qzhou_training_learning_rate", "stage")}),
    Panel(
        "Gradient norm",
        "none",
        {"{{stage}}": _mean("ray_qzhou_training_gradient_norm", "stage")},
        "Before clipping.",
    ),
    Panel(
        "Tokens a second", "short", {"{{stage}}": _rate("ray_qzhou_training_tokens_total", "stage")}, "All ranks."
    ),
    Panel("Steps a minute", "none", {"{{stage}}": "60 * " + _rate("ray_qzhou_training_steps_total", "stage")}),
    Panel("Time of a step", "s", {"{{stage}}": _mean("ray_qzhou_training_step_seconds", "stage")}),
    Panel("Padding", "percentunit", {"{{stage}}": _mean("ray_qzhou_training_padding_ratio", "stage")}),
    Panel("Wait for data", "percentunit", {"{{stage}}": _mean("ray_qzhou_training_loader_wait_ratio", "stage")}),
    Panel(
        "Since the last step",
        "s",
        {"{{stage}}": "time() - max by (stage) (ray_qzhou_training_last_step_timestamp_seconds)"},
    ),
    Panel("Peak memory of rank 0", "bytes", {"{{stage}}": "max by (stage) (ray_qzhou_training_peak_memory_bytes)"}),
    Panel("GPU utilisation", "percent", {"{{ip}} {{GpuIndex}}": "ray_node_gpus_utilization"}),
    Panel("GPU memory used", "decmbytes", {"{{ip}} {{GpuIndex}}": "ray_node_gram_used"}),
)

SERVING = (
    Panel("Requests", "reqps", {"{{route}} {{status}}": _rate("qzhou_requests_total", "route, status")}),
    Panel("Latency", "s", _quantiles("qzhou_request_seconds", "route", 0.5, 0.95, 0.99)),
    Panel(
        "Refused and failed",
        "percentunit",
        {"429": _share_of_requests('{status="429"}'), "5xx": _share_of_requests('{status=~"5.."}')},
    ),
    Panel("Tokens that wait", "short", {"{{model}} {{replica}}": "max_over_time(qzhou_waiting_tokens[1m])"}),
    Panel("Tokens answered a second", "short", {"{{model}}": _rate("qzhou_tokens_total", "model")}),
    Panel(
        "Speed while computing",
        "short",
        {"{{model}} {{replica}}": "max_over_time(qzhou_tokens_per_second[1m])"},
        "Tokens a second.",
    ),
    Panel("Padding", "percentunit", {"{{model}}": f"{PADDED} / ({PADDED} + {COMPUTED})"}),
    Panel(
        "Texts not computed again",
        "ops",
        {"{{model}}": _rate("qzhou_reused_texts_total", "model")},
        "From the cache, or asked for twice at the same time.",
    ),
    Panel(
        "Texts that were cut",
        "ops",
        {"{{model}}": _rate("qzhou_truncated_texts_total", "model")},
        "Above the limit of the model, which has not read their end.",
    ),
    Panel("Batches", "ops", {"{{model}}": _rate("qzhou_batches_total", "model")}),
    Panel(
        "Replicas that are well",
        "short",
        {"{{deployment}}": "sum by (deployment) (ray_serve_deployment_replica_healthy)"},
    ),
)

DASHBOARDS = {
    "pipeline": ("Qzhou: pipeline", PIPELINE),
    "training": ("Qzhou: training", TRAINING),
    "serving": ("Qzhou: serving", SERVING),
}


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """Grafana's JSON of one dashboard."""
    return {
        "uid": f"qzhou-{uid}",
        "title": title,
        "tags": ["qzhou"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": [_panel(number, one) for number, one in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    width = GRID // COLUMNS
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": number % COLUMNS * width, "y": number // COLUMNS * HEIGHT, "w": width, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for place, (legend, expression) in enumerate(panel.lines.items())
        ],
    }


def files() -> dict[Path, str]:
    """Each file and what belongs in it."""
    return {
        FOLDER / f"{uid}.json": json.dumps(dashboard(uid, title, panels), indent=2) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, "utf-8")
        print(path)
