"""The evaluator: what one model is judged on does not depend on who was judged before it."""

import numpy as np
import pytest

from qzhou.data.records import LabeledExample
from qzhou.data.storage import Folder, write_records
from qzhou.evaluation.judge.evaluator import Evaluator
from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.mteb_models import MtebEncoder

KINDS = ["sorting", "files", "graphs", "dates"]


class NoisyEncoder:
    """Vectors of which half is the topic and half is chance, always the same for a text."""

    fingerprint, dimensions, probe, prompts, truncated = "0", 8, None, {}, 0

    def encode(self, texts, **_):
        rows = [
            np.random.default_rng(sum(map(ord, text))).normal(size=8)
            + 1.5 * np.pad([kind in text for kind in KINDS], (0, 4))
            for text in texts
        ]
        return (np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Judge(Evaluator):
    """An evaluator whose models are all the same."""

    def _mteb_encoder(self, model):
        return MtebEncoder(NoisyEncoder(), self._prompts, name=model.name)


@pytest.mark.slow
def test_a_clustering_task_draws_the_same_texts_for_every_model(make_recipe, tmp_path):
    """mteb draws from a state that goes on from model to model: one model three times gave 0.187, 0.199, 0.195."""
    dataset = {
        "name": "topics", "reader": "jsonl", "rule": "labeled", "paths": ["x"], "eval_fraction": 0.5,
        "eval_tasks": ["clustering"],
    }  # fmt: skip
    retrieval = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["x"]}
    storage = str(tmp_path / "runs")
    recipe = make_recipe(datasets=[retrieval, dataset], run={"name": "run", "storage": storage})
    folder = Folder.open(storage) / "run"
    held_out = [
        LabeledExample(id=f"{n}", dataset="topics", text=f"text {n} on {KINDS[n % 4]}", label=KINDS[n % 4])
        for n in range(400)
    ]
    write_records(folder / "transform" / "held_out" / "classification" / "topics", held_out, LabeledExample)
    judge = Judge(recipe, folder.uri)
    (task,), _ = judge.tasks()

    scores = [judge.score(ModelSpec(name, "x", trained=True), task).score for name in ("stage1", "stage2", "third")]

    assert scores[0] == scores[1] == scores[2]
    assert 0 < scores[0] < 1
