"""`qzhou rehearse` on two workers: what it says, and that nothing of it is left."""

import re

import pytest

from tests.e2e.commands import call, run

pytestmark = pytest.mark.nodes


def test_training_is_tried_from_the_network_to_the_export(write_recipe, head):
    recipe = write_recipe()

    done = run("jobs/rehearse.py", recipe, "--training.workers", "2", "--training.zero_stage", "2", **head)

    assert done.status == 0, done.text
    for said in (
        r"rehearse: workers: 2, nodes: 1; torch 2\.",
        r"rehearse: the workers sum \d+\.\d+ GB/s",
        r"rehearse: stage1: [\d,]+ tokens/s, .* s a step of [\d,]+ tokens, \d+% padding",
        r"rehearse: the last checkpoint is the same model on 2 workers",
        r"rehearse: the last checkpoint is the same model on 1 workers",
        r"SentenceTransformer and the encoder agree",
        r"rehearse: passed in \d+ s",
    ):
        assert re.search(said, done.text), said
    assert not list((recipe.parent / "runs").glob("*rehearsal*"))


def test_a_network_that_is_too_slow_ends_it_before_anything_is_trained(write_recipe, head):
    words = ("--training.workers", "2", "--training.min_all_reduce_gb_per_s", "1e9")

    done = call("jobs/rehearse.py", write_recipe(), *words, **head)

    assert done.status == 2
    assert "training.min_all_reduce_gb_per_s is 1e+09" in done.text
    assert "training/stage1: started" not in done.text
