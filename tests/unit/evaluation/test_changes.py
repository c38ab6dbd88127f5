"""What training changed for single queries, and what mteb's predictions say was found first."""

from dataclasses import asdict

import pytest

from qzhou.data.records import SHOWN_CHARS, RetrievalExample
from qzhou.data.storage import Folder, write_records
from qzhou.evaluation.changes import SHOWN, changes_between, changes_of
from qzhou.evaluation.judge.evaluator import Evaluator
from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.mteb_models import MtebEncoder
from qzhou.evaluation.judge.per_example_scores import Part, PerExampleScores
from qzhou.evaluation.judge.task_scores import Answer, TaskScore
from qzhou.run.files import RunFiles

COLOURS = ["red", "blue", "green", "black"]


def scored(values, *, answers=True):
    """A score over queries q0, q1, ... with these values of their own."""
    ids = tuple(f"q{n}" for n in range(len(values)))
    examples = PerExampleScores("mean", (Part("default/test", tuple(values), ids=ids),))
    shown = tuple(Answer(one, f"query {one}", f"found at {values[n]}", "an answer") for n, one in enumerate(ids))
    return TaskScore(
        key="k", task="docs", type="Retrieval", metric="ndcg_at_10", score=0.5, n=len(values),
        per_example=examples, answers=shown if answers else (),
    )  # fmt: skip


def test_queries_are_counted_and_the_largest_changes_shown():
    before = [0.5] * 40
    after = [0.5 + n / 100 for n in range(15)] + [0.5 - n / 100 for n in range(1, 21)] + [0.5] * 5

    found = changes_between("stage2", scored(after), "backbone", scored(before))

    assert (found.better, found.worse, found.same) == (14, 20, 6)
    assert [round(one.after - one.before, 2) for one in found.gained] == [n / 100 for n in range(14, 4, -1)]
    assert [round(one.before - one.after, 2) for one in found.lost] == [n / 100 for n in range(20, 10, -1)]
    assert len(found.gained) == len(found.lost) == SHOWN
    first = found.gained[0]
    assert (first.query, first.found_before, first.found_after) == ("query q14", "found at 0.5", "found at 0.64")
    assert found.line == "14 queries better than with backbone, 20 worse, 6 the same"
    assert changes_of({"changes": [asdict(found)]}) == [found]


@pytest.mark.parametrize("before", [scored([0.1, 0.2]), scored([0.1, 0.2, 0.3], answers=False)])
def test_other_queries_are_not_compared(before):
    assert changes_between("stage2", scored([0.1, 0.2, 0.3]), "backbone", before) is None


def test_tasks_without_queries_are_not_compared():
    pairs = PerExampleScores("spearman", (Part("default/test", (0.5, 0.1), gold=(1.0, 0.0)),))
    score = TaskScore(key="k", task="pairs", type="STS", metric="m", score=0.5, n=2, per_example=pairs)

    assert changes_between("stage2", score, "backbone", score) is None


class ColourEncoder:
    """A vector of the colours that a text names: the last of them weighs most."""

    fingerprint, dimensions, probe, prompts, truncated = "0", 4, None, {}, 0

    def encode(self, texts, **_):
        import numpy as np

        rows = [[0.1 + (1 + text.rfind(colour)) * (colour in text) for colour in COLOURS] for text in texts]
        return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Judge(Evaluator):
    def _mteb_encoder(self, model):
        return MtebEncoder(ColourEncoder(), self._prompts, name=model.name)


def test_the_evaluator_keeps_what_was_found_first(make_recipe, tmp_path):
    dataset = {
        "name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "eval_fraction": 0.5,
    }  # fmt: skip
    storage = str(tmp_path / "runs")
    recipe = make_recipe(datasets=[dataset], run={"name": "run", "storage": storage})
    folder = Folder.open(storage) / "run"
    held_out = [
        RetrievalExample(
            id=colour, dataset="docs", query=f"which is {colour}?", positives=(f"it is {colour} {'and ' * 100}",)
        )
        for colour in COLOURS
    ]
    held_out += [
        RetrievalExample(id="odd", dataset="docs", query="red and blue", positives=("blue, not in the end red",))
    ]
    write_records(folder / "transform" / "held_out" / "retrieval" / "docs", held_out, RetrievalExample)
    judge = Judge(recipe, folder.uri)
    (task,), _ = judge.tasks()

    found = judge.score(ModelSpec("stage2", "x", trained=True), task)

    assert {one.query for one in found.answers} == {one.query for one in held_out}
    by_query = {one.query: one for one in found.answers}
    red = by_query["which is red?"]
    assert red.found == red.positive
    assert red.found.startswith("it is red")
    assert len(red.found) == SHOWN_CHARS + len(" ...")
    odd = by_query["red and blue"]
    assert odd.found != odd.positive == "blue, not in the end red"
    assert TaskScore.read(RunFiles(folder), "stage2", "docs") == found
