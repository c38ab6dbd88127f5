"""Transform, synthesis and mining over several nodes, one of which dies in each: what comes out is what always does.

Training on several nodes: ``test_train_nodes.py``.
"""

import json
import threading
import time
from pathlib import Path

import pytest

from qzhou.cluster.session import session
from qzhou.config.recipe import parse_recipe
from qzhou.mining.pipeline import mine
from qzhou.synthesis.builtin import answer_by_rules
from qzhou.synthesis.pipeline import synthesize
from qzhou.transform.pipeline import transform
from tests.llm_faults import Behaviour
from tests.llm_server import LLMServer, serving
from tests.ray.nodes import kill_a_busy_node, small_nodes
from tests.run_outputs import examples

READER = """
import json, time

def rows(stream, slow_s):
    time.sleep(slow_s)
    for line in stream:
        yield json.loads(line)
"""
STEPS = {"steps": 1, "learning_rate": 1e-5}
DATASETS, ROWS = 5, 30

pytestmark = pytest.mark.nodes  # minutes, by `make nodes-test`


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head without CPUs and five nodes of one CPU each; what the tests' reader is found by."""
    readers = tmp_path_factory.mktemp("readers")
    (readers / "slow_reader.py").write_text(READER)
    with small_nodes(5) as (cluster, added), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.syspath_prepend(str(readers))
        with session():
            yield cluster, added, readers


class Chaos:
    """Kills a busy node as soon as a condition holds."""

    def __init__(self, cluster, added, condition) -> None:
        self.failed: Exception | None = None
        self._cluster, self._added, self._condition = cluster, added, condition
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._thread.join()
        assert self.failed is None, self.failed

    def _run(self) -> None:
        try:
            deadline = time.monotonic() + 600
            while not self._condition():
                assert time.monotonic() < deadline, "the stage was over, or did not begin"
                time.sleep(0.02)
            kill_a_busy_node(self._cluster, self._added)
        except Exception as error:  # shown by the test and not lost in its thread
            self.failed = error


def recipe(folder: Path, name: str, endpoint: str, backbone: str, readers: Path):
    datasets = []
    for number in range(DATASETS):
        rows = [
            {
                "question": f"Which number do people find after {100 * number + n}?",
                "answer": f"They find {100 * number + n + 1}, a large one.",
            }
            for n in range(ROWS)
        ]
        path = folder / f"own-{number}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        datasets.append(
            {
                "name": f"own-{number}",
                "reader": "slow_reader:rows",
                "rule": "question_answer",
                "paths": [str(path)],
                "reader_options": {"slow_s": 1.0},
            }
        )
    made = parse_recipe(
        {
            "run": {"name": name, "storage": str(folder / "runs"), "seed": 1},
            "model": {
                "backbone": str(backbone),
                "max_query_tokens": 24,
                "max_document_tokens": 24,
                "dtype": "float32",
            },
            "datasets": datasets,
            "synthesis": {"endpoint": endpoint, "model": "m", "paraphrase_rows": 200, "filters": {"scores": False}},
            "mining": {"rank_from": 1, "rank_to": 10, "negatives_per_query": 2},
            "training": {"negatives_per_query": 1, "stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
        },
        place="test",
    )
    made.in_folder(str(readers))
    return made


def test_a_node_that_dies_in_a_stage_changes_nothing(nodes, tiny_qwen2, tmp_path):
    cluster, added, readers = nodes
    endpoint = LLMServer(answer_by_rules, Behaviour(latency_s=0.3))
    with serving(endpoint) as url:
        disturbed, calm = (recipe(tmp_path, name, url, tiny_qwen2, readers) for name in ("disturbed", "calm"))
        folder = tmp_path / "runs" / "disturbed"
        with Chaos(cluster, added, lambda: [*folder.glob("transform/work/done/convert/*.json")]):
            transform(disturbed)
        with Chaos(cluster, added, lambda: len(endpoint.counts.completed) > 20):
            assert synthesize(disturbed).outputs["examples"] == 2 * DATASETS * ROWS
        with Chaos(cluster, added, lambda: [*folder.glob("mining/embeddings/**/*.npy")]):
            mine(disturbed)
        assert len(added) == 2
        for stage in (transform, synthesize, mine):
            stage(calm)

    stages = ("transform", "synthesis", "mining")
    expected = examples(tmp_path / "runs" / "calm", *stages)
    assert len(expected) >= 3 * DATASETS
    assert examples(folder, *stages) == expected
