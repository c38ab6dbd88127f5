"""Meters: nothing is done where nobody listens, names keep the conventions, the endpoint speaks the table."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qzhou.serving.observing import EndpointMetrics, RequestLog
from qzhou.telemetry.metrics import LLM_COST, METRICS, PROGRESS, ROWS, UNITS, measure, set_exporter
from qzhou.telemetry.progress import progress
from qzhou.training.tracking import DASHBOARD_METRICS, open_sinks

UNITS_IN_NAMES = ("_total", "_seconds", "_ratio", "_bytes", "_tokens", "_per_second", "_loss", "_norm", "_rate")


@pytest.fixture
def heard():
    """What was measured: (metric's name, labels' values) -> values."""
    found = {}
    set_exporter(lambda metric, value, labels: found.setdefault((metric.name, *labels.values()), []).append(value))
    yield found
    set_exporter(None)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_say_the_unit_and_labels_are_few(metric):
    assert re.fullmatch(r"qzhou_[a-z_]+", metric.name)
    assert metric.name.endswith(UNITS_IN_NAMES)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert len(set(metric.labels)) == len(metric.labels) <= 3


def test_no_name_stands_twice():
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_where_nobody_listens_nothing_happens():
    measure(ROWS, 1, stage="mining", dataset="docs")


def test_nothing_is_added_to_a_counter_that_stays(heard):
    measure(LLM_COST, 0.0, model="free")
    measure(PROGRESS, 0.0, stage="mining", step="encode")

    assert heard == {(PROGRESS.name, "mining", "encode"): [0.0]}


def test_progress_is_measured_by_step_and_rows_by_dataset(heard):
    with progress("mining: docs", total=4, unit="queries") as bar:
        bar.advance(1, rows={"docs": 1})
        bar.advance(3, "a note", rows={"docs": 2, "other": 1})

    assert heard[PROGRESS.name, "mining", "docs"] == [0.25, 1.0]
    assert heard[UNITS.name, "mining", "docs", "queries"] == [1, 3]
    assert heard[ROWS.name, "mining", "docs"] == [1, 2]
    assert heard[ROWS.name, "mining", "other"] == [1]


def test_a_step_of_training_is_measured_in_the_units_of_the_names(heard, tmp_path):
    from qzhou.data.storage import Folder

    step = {
        "step": 0,
        "task": "pair",
        "dataset": "docs",
        "loss": 0.5,
        **dict.fromkeys(DASHBOARD_METRICS, 0.25),
        "tokens": 70,
    }
    place = Folder.open(str(tmp_path / "stage2"))
    sinks = open_sinks((), place, run_name="run", settings={}, first_step=0, scratch=tmp_path)
    for sink in sinks:
        sink.log(step)

    assert heard["qzhou_training_loss", "stage2", "pair"] == [0.5]
    assert heard["qzhou_training_tokens_total", "stage2"] == [70]
    assert heard["qzhou_training_peak_memory_bytes", "stage2"] == [0.25e9]
    assert heard["qzhou_training_steps_total", "stage2"] == [1]


class _Engine:
    waiting_tokens, tokens_per_s, batches, computed, padded, reused = 7, 2.5, 3, 40, 5, 1


def test_the_endpoint_exposes_what_the_table_declares_and_says_which_replica_it_is():
    meter = EndpointMetrics({"tiny": _Engine()}, "r1")
    meter.count("/v1/embeddings", 200, 0.02, RequestLog(model="tiny", tokens=9, truncated=2))

    families = list(text_string_to_metric_families(meter.exposition().decode()))

    samples = {one.name: one for family in families for one in family.samples if not one.name.endswith("_created")}
    declared = [metric for metric in METRICS if metric.at_endpoint]
    for metric in declared:
        sample = samples[f"{metric.name}_count" if metric.kind == "histogram" else metric.name]
        assert set(sample.labels) == set(metric.labels)
        assert sample.labels["replica"] == "r1"
    assert len([one for one in families if not one.name.endswith("_created")]) == len(declared)
    assert samples["qzhou_computed_tokens_total"].value == 40
    assert samples["qzhou_truncated_texts_total"].value == 2
