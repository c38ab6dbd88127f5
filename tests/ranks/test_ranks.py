"""Many ranks equal one: gradients, DeepSpeed's update and its checkpoints, on gloo without Ray."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from qzhou.training.engine import TorchEngine
from tests.ranks.problem import (
    CHUNK_TOKENS,
    assert_same,
    gradients,
    model_of,
    plain_gradients,
    run,
    stage_plan,
    three_tasks,
    torch_gradient,
)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def join(rank, world, port):
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)


def leave(everyone_done):
    """End this process at once: threads of a process group can abort an interpreter that winds down by itself."""
    everyone_done.wait()
    os._exit(0)


def gradient_rank(rank, world, port, everyone_done, recipe, folder, out):
    join(rank, world, port)
    found = model_of(folder)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    gathered = gradients(engine, recipe, found.tokenizer, torch_gradient)
    if rank == world - 1:
        torch.save(gathered, out)
    leave(everyone_done)


def spawn(function, world, *arguments):
    everyone_done = multiprocessing.get_context("spawn").Barrier(world)
    multiprocessing.spawn(function, (world, free_port(), everyone_done, *arguments), nprocs=world)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_gradient_of_one_for_each_loss_at_each_temperature(make_recipe, tiny_qwen2, tmp_path, world):
    """Defects of peers: gathered without gradient, or each rank with another dataset."""
    recipe = three_tasks(make_recipe)

    spawn(gradient_rank, world, recipe, tiny_qwen2, tmp_path / "gradients.pt")

    assert_same(torch.load(tmp_path / "gradients.pt"), plain_gradients(recipe, tiny_qwen2))


def deepspeed_engine(recipe, folder, checkpoint=None):
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    found = model_of(folder)
    engine = DeepSpeedEngine(found.model, found.tokenizer, recipe.training, torch.device("cpu"), checkpoint=checkpoint)
    return engine, found.tokenizer


def deepspeed_gradient(engine):
    from deepspeed.utils import safe_get_full_grad

    return torch.cat([safe_get_full_grad(one).flatten() for one in engine.engine.module.parameters()])


def deepspeed_rank(rank, world, port, everyone_done, recipe, folder, out):
    join(rank, world, port)
    engine, tokenizer = deepspeed_engine(recipe, folder)
    gathered = gradients(engine, recipe, tokenizer, deepspeed_gradient)
    engine, tokenizer = deepspeed_engine(recipe, folder)  # the other's optimizer has seen those gradients
    losses = run(engine, recipe, stage_plan(recipe), tokenizer)
    (out / "checkpoint").mkdir(exist_ok=True)
    engine.save(out / "checkpoint", 6)
    state = engine.full_state()
    if rank == 0:
        torch.save({"losses": losses, "state": state, "gradients": gathered}, out / "trained.pt")
    leave(everyone_done)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_on_two_ranks_trains_like_plain_torch_on_one(make_recipe, tiny_qwen2, tmp_path, zero_stage):
    recipe = three_tasks(make_recipe, zero_stage=zero_stage, chunk_tokens=CHUNK_TOKENS, held_tokens=1)
    found = model_of(tiny_qwen2)
    plain = TorchEngine(found.model, found.tokenizer, recipe.training)
    losses = run(plain, recipe, stage_plan(recipe), found.tokenizer)

    spawn(deepspeed_rank, 2, recipe, tiny_qwen2, tmp_path)

    theirs = torch.load(tmp_path / "trained.pt")
    assert_same(theirs["gradients"], plain_gradients(recipe, tiny_qwen2))
    assert theirs["losses"] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] != losses[0]
    expected = plain.full_state()
    assert theirs["state"].keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(theirs["state"][name], weight, atol=1e-3), name


def elastic_rank(rank, world, port, everyone_done, recipe, folder, out, first, last):
    """Train some steps, from the other world's checkpoint if there is one."""
    join(rank, world, port)
    before, after = out / f"step{first}", out / f"step{last}"
    engine, tokenizer = deepspeed_engine(recipe, folder, checkpoint=before if first else None)
    assert (engine.load(before) if first else 0) == first
    losses = run(engine, recipe, stage_plan(recipe), tokenizer, first_step=first, last_step=last)
    if rank == 0:
        after.mkdir()
        torch.save(losses, out / f"losses{last}.pt")
    dist.barrier()
    engine.save(after, last)
    leave(everyone_done)


@pytest.mark.parametrize(("zero_stage", "worlds"), [(0, (2, 1)), (1, (2, 1, 3)), (2, (1, 2)), (3, (2, 1))])
def test_a_checkpoint_is_continued_by_another_number_of_ranks(make_recipe, tiny_qwen2, tmp_path, zero_stage, worlds):
    recipe = three_tasks(make_recipe, zero_stage=zero_stage, save_every_steps=2)
    found = model_of(tiny_qwen2)
    plain = TorchEngine(found.model, found.tokenizer, recipe.training)
    losses = run(plain, recipe, stage_plan(recipe), found.tokenizer)

    theirs = []
    for turn, world in enumerate(worlds):
        spawn(elastic_rank, world, recipe, tiny_qwen2, tmp_path, 2 * turn, 2 * turn + 2)
        theirs += torch.load(tmp_path / f"losses{2 * turn + 2}.pt")

    assert theirs == pytest.approx(losses[: len(theirs)], rel=1e-4)
