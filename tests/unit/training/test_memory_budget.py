"""What a rank holds is found before the first step, by halves, and is the same on every rank."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from qzhou.cluster.ports import free_port
from qzhou.training.memory_budget import LEAST_TOKENS, Trial, fit_budgets, halve_budgets
from tests.ranks.problem import assert_same, gradients, model_of, plain_gradients, three_tasks, torch_gradient
from tests.torch_engine import TorchEngine

CPU = torch.device("cpu")


class SmallGpu(TorchEngine):
    """An engine that has memory for the activations of so many tokens."""

    room = 0
    used = 0

    def forward(self, ids, soft_mask_weight=None):
        self.used += len(ids) * max(map(len, ids))
        if self.used > self.room:
            self.used = 0
            raise torch.OutOfMemoryError
        return super().forward(ids, soft_mask_weight)

    def backward(self, value, *, last):
        super().backward(value, last=last)
        self.used = 0


def small_gpu(recipe, folder, room):
    found = model_of(folder)
    engine = SmallGpu(found.model, found.tokenizer, recipe.training)
    engine.room = room
    return engine


@pytest.mark.parametrize(
    ("room", "found"),
    [(10**6, (8192, 2048)), (8192, (8192, 2048)), (4100, (4096, 2048)), (2048, (2048, 2048)), (600, (512, 512)),
     (70, (256, 256)), (1, (256, 256))],
)  # fmt: skip
def test_the_largest_step_that_fits_is_found(make_recipe, tiny_bert, capsys, room, found):
    recipe = three_tasks(make_recipe, micro_batch_tokens=2048, activation_tokens=8192)
    engine = small_gpu(recipe, tiny_bert, room)

    fit_budgets(engine, Trial(longest=64), CPU)

    assert (engine.activation_tokens, engine.micro_batch_tokens) == found
    said = capsys.readouterr().out
    assert ("activations of 8,192 tokens do not fit" in said) == (found[0] < 8192)
    assert ("one text of 64 tokens does not fit" in said) == (room < 64)


@pytest.mark.parametrize(("room", "found"), [(5000, (4096, 2048)), (3000, (2048, 2048)), (2500, (2048, 2048))])
def test_a_text_that_is_longer_than_a_pass_is_tried_too(make_recipe, tiny_qwen2, capsys, room, found):
    """It is a pass of its own, whatever the budgets: one that does not fit is said, and does not drive them down."""
    recipe = three_tasks(make_recipe, micro_batch_tokens=2048, activation_tokens=8192)
    engine = small_gpu(recipe, tiny_qwen2, room)

    fit_budgets(engine, Trial(longest=2800), CPU)

    assert (engine.activation_tokens, engine.micro_batch_tokens) == found
    assert ("one text of 2,800 tokens does not fit" in capsys.readouterr().out) == (room < 2800)


def test_nothing_below_the_least_is_tried(make_recipe, tiny_bert):
    engine = small_gpu(three_tasks(make_recipe, micro_batch_tokens=LEAST_TOKENS), tiny_bert, 0)
    engine.activation_tokens = LEAST_TOKENS

    assert not halve_budgets(engine)


def rank_of(rank, world, port, everyone_done, recipe, folder, out):
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    engine = small_gpu(recipe, folder, 600 if rank else 10**6)
    fit_budgets(engine, Trial(longest=64), CPU)
    budgets = [None] * world
    dist.all_gather_object(budgets, (engine.activation_tokens, engine.micro_batch_tokens))
    engine.room = 10**6
    found = gradients(engine, recipe, model_of(folder).tokenizer, torch_gradient, ways=("cached",))
    if rank == 0:
        torch.save({"budgets": budgets, "gradients": found}, out)
    everyone_done.wait()
    os._exit(0)


@pytest.mark.slow
def test_a_rank_without_room_halves_what_all_ranks_hold_and_no_gradient_changes(make_recipe, tiny_bert, tmp_path):
    recipe = three_tasks(make_recipe, micro_batch_tokens=2048, activation_tokens=8192)
    everyone_done = multiprocessing.get_context("spawn").Barrier(2)

    multiprocessing.spawn(
        rank_of, (2, free_port(), everyone_done, recipe, tiny_bert, tmp_path / "found.pt"), nprocs=2
    )

    found = torch.load(tmp_path / "found.pt")
    assert found["budgets"] == [(512, 512)] * 2
    assert_same(found["gradients"], plain_gradients(recipe, tiny_bert))
