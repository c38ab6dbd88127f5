"""What a rehearsal tries: the recipe's own batches and masks, few steps, in a folder of its own."""

import pytest

from qzhou.data.records import PairExample, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.errors import StorageError
from qzhou.experiments.rehearsal import STEPS, rehearsal_of, rehearse, write_examples

DATASETS = [
    {"name": "r", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "instruction": "Find"},
    {"name": "p", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"], "instruction": "Compare"},
]


def stage(**settings):
    return {"steps": 100, "learning_rate": 1e-5, "cosent_batch_size": 20, **settings}


def test_batches_are_those_of_the_larger_stage_and_the_soft_mask_stays(make_recipe, tmp_path):
    training = {"stage1": stage(batch_size=40, soft_mask_steps=50), "stage2": stage(batch_size=10)}
    recipe = make_recipe(datasets=DATASETS, training=training)

    tried = rehearsal_of(recipe)
    folder = Folder.open(str(tmp_path / "rehearsal"))
    write_examples(tried, folder)

    assert (tried.training.stage1.steps, tried.training.stage1.soft_mask_steps) == (STEPS, STEPS - 1)
    assert (tried.training.stage1.batch_size, tried.training.stage2.batch_size) == (40, 10)
    assert tried.run.name == f"{recipe.run.name}-rehearsal"
    examples = folder / "mining" / "examples"
    retrieval = list(read_records(examples / "retrieval" / "r", RetrievalExample))
    pairs = list(read_records(examples / "pair" / "p", PairExample))
    assert (len(retrieval), len(pairs)) == (40, 20)
    assert {len(one.negatives) for one in retrieval} == {recipe.training.negatives_per_query}
    words = [len(text.split()) for one in retrieval for text in one.positives]
    assert max(words) > 4 * min(words)
    assert len({one.query for one in retrieval}) == 40
    assert len({one.score for one in pairs}) > 1


def test_a_run_that_has_the_rehearsals_name_is_not_removed(make_recipe):
    recipe = make_recipe(datasets=DATASETS)
    theirs = Folder.open(recipe.run.storage) / f"{recipe.run.name}-rehearsal"
    theirs.write_bytes("model/weights", b"weeks of work")

    with pytest.raises(StorageError, match="is in the way"):
        rehearse(recipe)

    assert theirs.read_bytes("model/weights") == b"weeks of work"
