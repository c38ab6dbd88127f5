"""What stages measure stands in the node's Prometheus exposition while the cluster runs."""

import json
import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from qzhou.cluster.session import session
from qzhou.config.recipe import parse_recipe
from qzhou.synthesis.pipeline import synthesize
from qzhou.telemetry.metrics import LLM_REQUESTS, LLM_TOKENS, PROGRESS, ROWS, STAGE_STARTED, UNITS
from qzhou.transform.pipeline import transform

PATIENCE_S = 300  # reached only in failure
# what is measured last: driver and actor export at times of their own
AT_THE_END = {
    (ROWS.exposed, "more", "synthesis"): 5,
    (LLM_REQUESTS.exposed, "builtin-rules", "answered"): 5,
    (PROGRESS.exposed, "transform", "convert"): 1,
    (UNITS.exposed, "transform", "convert", "shards"): 2,
    (STAGE_STARTED.exposed, "transform"): 0,
}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """Samples after a transform of two datasets and some paraphrases: (name, values of our labels) -> value."""
    folder = tmp_path_factory.mktemp("meters")
    datasets = []
    for name, count in (("few", 3), ("more", 20)):
        rows = [
            json.dumps({"question": f"Question {n} of {name}?", "answer": f"Answer {n}."}) for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), "utf-8")
        shape = {"reader": "jsonl", "rule": "question_answer", "paths": [str(folder / f"{name}.jsonl")]}
        datasets.append({"name": name, **shape})
    steps = {"steps": 1, "learning_rate": 1e-5}
    recipe = parse_recipe(
        {
            "run": {"name": "run", "storage": str(folder)},
            "model": {"backbone": "unused"},
            "datasets": datasets,
            "synthesis": {"endpoint": "builtin", "datasets": ["more"], "paraphrase_rows": 5},
            "training": {"stage1": steps, "stage2": {**steps, "retrieval_share": 1.0}},
        },
        place="test",
    )
    with session():  # a cluster of its own, because counters outlive the stages of other tests
        transform(recipe)
        synthesize(recipe)
        yield samples_at_the_end()


def samples_at_the_end():
    """All samples when those of :data:`AT_THE_END` have come, or when patience has ended."""
    (node,) = [one for one in ray.nodes() if one["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + PATIENCE_S
    found = {}
    while not AT_THE_END.items() <= found.items() and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = {}
        for sample in (one for family in families for one in family.samples if one.name.startswith("ray_qzhou_")):
            ours = {
                key: sample.labels[key]
                for key in ("dataset", "model", "result", "kind", "stage", "step", "unit")
                if key in sample.labels
            }
            found[sample.name, *ours.values()] = sample.value
    return found


def test_rows_are_counted_by_stage_and_dataset(exposed):
    found = {key[1:]: value for key, value in exposed.items() if key[0] == ROWS.exposed}

    assert found == {("few", "transform"): 3, ("more", "transform"): 20, ("more", "synthesis"): 5}


def test_steps_tell_how_far_they_are(exposed):
    assert exposed[PROGRESS.exposed, "transform", "convert"] == 1
    assert exposed[UNITS.exposed, "transform", "convert", "shards"] == 2


def test_a_stage_that_has_ended_does_not_look_as_if_it_ran(exposed):
    assert exposed[STAGE_STARTED.exposed, "transform"] == 0


def test_what_an_actor_asks_of_an_llm_is_counted(exposed):
    assert exposed[LLM_REQUESTS.exposed, "builtin-rules", "answered"] == 5
    assert exposed[LLM_TOKENS.exposed, "builtin-rules", "prompt"] > 0
