"""The loop on one rank: resuming, what is recorded, what ends it."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import qzhou.training
from qzhou.errors import TrainingError
from qzhou.training.loader import TrainingStage
from qzhou.training.loop import train_stage
from qzhou.training.schedule import learning_rate_at, soft_mask_weight_at
from tests.ranks.problem import CHUNK_TOKENS, DATA, TASKS, FakeRecorder, model_of, run, stage_plan, three_tasks
from tests.torch_engine import TorchEngine


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(make_recipe, tiny_bert, tmp_path):
    recipe = three_tasks(make_recipe)
    plan, found = stage_plan(recipe), model_of(tiny_bert)
    start = copy.deepcopy(found.model)
    unbroken = TorchEngine(found.model, found.tokenizer, recipe.training)
    losses = run(unbroken, recipe, plan, found.tokenizer)

    first = TorchEngine(copy.deepcopy(start), found.tokenizer, recipe.training)
    before = run(first, recipe, plan, found.tokenizer, last_step=3)
    first.save(tmp_path, 3)
    second = TorchEngine(copy.deepcopy(start), found.tokenizer, recipe.training)
    after = run(second, recipe, plan, found.tokenizer, first_step=second.load(tmp_path))

    assert before + after == losses
    for name, weight in unbroken.full_state().items():
        assert torch.equal(weight, second.full_state()[name]), name


def test_a_loss_that_is_not_finite_names_step_and_dataset_and_keeps_the_batch(make_recipe, tiny_bert, tmp_path):
    recipe = three_tasks(make_recipe)
    found = model_of(tiny_bert)
    with torch.no_grad():
        next(found.model.parameters()).fill_(float("nan"))
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    stage = TrainingStage("stage2", stage_plan(recipe), DATA, recipe, found.tokenizer)

    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 on '\w'; its batch is in batch.json"):
        train_stage(stage, engine, FakeRecorder(folder=tmp_path), first_step=0)

    kept = json.loads((tmp_path / "batch.json").read_text())
    assert sum(map(len, kept["rows"].values())) >= 5
    assert all(isinstance(text, str) for texts in kept["texts"] for text in texts)


class Diverging(TorchEngine):
    """An engine whose gradient has the norm that a test wants."""

    norm = 0.0

    def update(self, _):
        return self.norm


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_ends_the_stage_too(make_recipe, tiny_bert, tmp_path, norm):
    recipe = three_tasks(make_recipe)
    found = model_of(tiny_bert)
    engine = Diverging(found.model, found.tokenizer, recipe.training)
    engine.norm = norm
    stage = TrainingStage("stage2", stage_plan(recipe), DATA, recipe, found.tokenizer)

    with pytest.raises(TrainingError, match=rf"the gradient's norm is {norm} at step 0 on"):
        train_stage(stage, engine, FakeRecorder(folder=tmp_path), first_step=0)
    assert (tmp_path / "batch.json").exists()


@pytest.mark.slow
def test_metrics_of_a_step_say_what_it_did_and_cost(make_recipe, tiny_bert):
    recipe = three_tasks(make_recipe, micro_batch_tokens=CHUNK_TOKENS, activation_tokens=1)
    found = model_of(tiny_bert)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    recorder = FakeRecorder()

    stage = TrainingStage("stage2", stage_plan(recipe), DATA, recipe, found.tokenizer)
    train_stage(stage, engine, recorder, first_step=0)

    assert recorder.saved == [3, 6]
    for step, one in enumerate(recorder.metrics):
        assert one["step"] == step
        assert one["task"] == TASKS[one["dataset"]]
        assert -1 <= one["positive_cosine"] <= 1
        assert one["gradient_norm"] > 0
        assert one["tokens"] > 0
        assert 0 <= one["padding_share"] < 1
        assert 0 <= one["gradient_cache_share"] < 1
        assert 0 <= one["loader_wait_share"] <= 1
        assert one["memory_gb"] > 0
    assert any(one["gradient_cache_share"] for one in recorder.metrics)


def test_the_learning_rate_warms_up_to_the_peak_and_ends_near_zero(make_recipe):
    stage = make_recipe().training.stage1.model_copy(update={"steps": 10, "warmup_steps": 4, "learning_rate": 1.0})

    rates = [learning_rate_at(step, stage) for step in range(10)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1 - i / 6 for i in range(6)])


def test_the_learning_rate_falls_as_the_recipe_says(make_recipe):
    stage = make_recipe().training.stage1.model_copy(update={"steps": 10, "warmup_steps": 0, "learning_rate": 1.0})

    def rates(decay):
        return [learning_rate_at(step, stage.model_copy(update={"lr_scheduler": decay})) for step in range(10)]

    assert rates("constant") == [1.0] * 10
    assert rates("cosine") == pytest.approx([(1 + np.cos(np.pi * step / 10)) / 2 for step in range(10)])


def test_a_soft_mask_opens_linearly_and_is_gone_then(make_recipe):
    stage = make_recipe().training.stage1.model_copy(update={"steps": 10, "soft_mask_steps": 4})

    assert [soft_mask_weight_at(step, stage) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, None, None]


def test_no_code_of_ours_unpickles_a_checkpoint():
    """A pickle runs whatever code its file names; DeepSpeed alone reads checkpoints."""
    for source in Path(qzhou.training.__path__[0]).glob("*.py"):
        assert not re.search(r"torch\.load|pickle", source.read_text("utf-8")), source
