"""Many ranks equal one: gradients, DeepSpeed's update and its checkpoints, on gloo without Ray."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from qzhou.cluster.ports import free_port
from qzhou.config.training import DistillationSection, LoraSection
from qzhou.training.distillation import Teacher
from qzhou.training.lora import add_adapters
from qzhou.training.memory_budget import Trial, fit_budgets
from tests.conftest import recipe_in
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
from tests.torch_engine import TorchEngine


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


# ten seconds of imports, once for all ranks: each is a fork of a process that has them
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["qzhou.training.deepspeed_engine", "deepspeed", "transformers", __name__])


def start(function, world, *arguments):
    everyone_done = FORKS.Barrier(world)
    multiprocessing.start_processes(
        function, (world, free_port(), everyone_done, *arguments), nprocs=world, start_method="forkserver"
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_gradient_of_one_for_each_loss_at_each_temperature(make_recipe, tiny_qwen2, tmp_path, world):
    """Defects of peers: gathered without gradient, or each rank with another dataset."""
    recipe = three_tasks(make_recipe)

    start(gradient_rank, world, recipe, tiny_qwen2, tmp_path / "gradients.pt")

    assert_same(torch.load(tmp_path / "gradients.pt"), plain_gradients(recipe, tiny_qwen2))


def deepspeed_engine(recipe, folder, checkpoint=None, dtype=torch.float32):
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    model, tokenizer = trainable(recipe, folder)
    engine = DeepSpeedEngine(
        model.to(dtype), tokenizer, recipe.training, torch.device("cpu"), checkpoint=checkpoint
    )
    return engine, tokenizer


def torch_engine(recipe, folder):
    model, tokenizer = trainable(recipe, folder)
    return TorchEngine(model, tokenizer, recipe.training), tokenizer


def trainable(recipe, folder):
    """The same model for everyone, adapters included."""
    found = model_of(folder)
    torch.manual_seed(5)
    model = add_adapters(found.model, recipe.training.lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero in the beginning: the others would not learn in a first step
            torch.nn.init.normal_(weight, std=0.05)
    return model, found.tokenizer


def deepspeed_gradient(engine):
    from deepspeed.utils import safe_get_full_grad

    return torch.cat([safe_get_full_grad(one).flatten() for one in engine.engine.module.parameters()])


def deepspeed_rank(rank, world, port, everyone_done, recipes, folder, out):
    """Every ZeRO stage one after the other: a process takes longer to start than to train."""
    join(rank, world, port)
    for zero_stage, recipe in recipes.items():
        engine, tokenizer = deepspeed_engine(recipe, folder)
        gathered = gradients(engine, recipe, tokenizer, deepspeed_gradient)
        # the other's optimizer has seen those gradients
        engine, tokenizer = deepspeed_engine(recipe, folder)
        losses = run(engine, recipe, stage_plan(recipe), tokenizer)
        checkpoint = out / f"checkpoint{zero_stage}"
        checkpoint.mkdir(exist_ok=True)
        engine.save(checkpoint, 6)
        state = engine.full_state()
        if rank == 0:
            torch.save({"losses": losses, "state": state, "gradients": gathered}, out / f"trained{zero_stage}.pt")
    leave(everyone_done)


def options_rank(rank, world, port, everyone_done, recipes, folder, out):
    join(rank, world, port)
    for number, recipe in enumerate(recipes):
        engine, tokenizer = deepspeed_engine(recipe, folder)
        if recipe.training.zero_stage < 2:  # what is tried on a GPU before the first step leaves nothing behind
            trial = Trial(64, engine.later_bytes)
            assert trial.later_bytes == 12 * weights_of(engine) // world
            fit_budgets(engine, trial, torch.device("cpu"))
        losses = run(engine, recipe, stage_plan(recipe), tokenizer, teacher=teacher_of(recipe))
        assert recipe.training.zero_stage != 1 or engine.later_bytes == 4 * weights_of(engine) // world
        state = engine.full_state()
        if rank == 0:
            torch.save({"losses": losses, "state": state}, out / f"option{number}.pt")
    leave(everyone_done)


def weights_of(engine):
    return sum(one.numel() for one in engine.engine.module.parameters() if one.requires_grad)


def teacher_of(recipe):
    teacher = recipe.training.distillation.teacher
    return Teacher.load(teacher, device=torch.device("cpu"), dtype=torch.float32) if teacher else None


ZERO_STAGES = (0, 1, 2, 3)
# by default ZeRO-3 keeps weights below 100,000 elements on every rank, and all of a tiny model are
RELEASED = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_model_persistence_threshold": 0,
        "stage3_max_live_parameters": 1,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "reduce_bucket_size": 500,  # below the embedding, as with a model of 7B
        "zero_hpz_partition_size": 2,
    }
}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory, tiny_qwen2):
    """For each ZeRO stage its recipe, and what DeepSpeed made of it on two ranks."""
    out = tmp_path_factory.mktemp("two_ranks")
    settings = {"micro_batch_tokens": CHUNK_TOKENS, "activation_tokens": 1}
    recipes = {one: three_tasks(recipe_in(out), zero_stage=one, **settings) for one in ZERO_STAGES}
    start(deepspeed_rank, 2, recipes, tiny_qwen2, out)
    return {one: (recipe, torch.load(out / f"trained{one}.pt")) for one, recipe in recipes.items()}


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_deepspeed_on_two_ranks_trains_like_plain_torch_on_one(on_two_ranks, tiny_qwen2, zero_stage):
    recipe, theirs = on_two_ranks[zero_stage]
    found = model_of(tiny_qwen2)
    plain = TorchEngine(found.model, found.tokenizer, recipe.training)
    losses = run(plain, recipe, stage_plan(recipe), found.tokenizer)

    assert_same(theirs["gradients"], plain_gradients(recipe, tiny_qwen2))
    assert theirs["losses"] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] != losses[0]
    expected = plain.full_state()
    assert theirs["state"].keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(theirs["state"][name], weight, atol=1e-3), name


def test_every_option_trains_with_deepspeed_on_two_ranks_as_with_plain_torch_on_one(
    tiny_qwen2, tiny_bert, tmp_path
):
    options = [
        {"zero_stage": 3, "lora": LoraSection(rank=4)},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "gradient_checkpointing": True, "activation_tokens": 1},
        {"zero_stage": 3, "deepspeed": RELEASED, "gradient_checkpointing": True, "activation_tokens": 1},
        {"zero_stage": 1, "deepspeed": {"zero_optimization": {"reduce_bucket_size": 500}}},
        {"zero_stage": 1, "distillation": DistillationSection(teacher=str(tiny_bert), temperature=0.5)},
    ]
    recipes = [three_tasks(recipe_in(tmp_path), micro_batch_tokens=CHUNK_TOKENS, **option) for option in options]

    start(options_rank, 2, recipes, tiny_qwen2, tmp_path)

    for number, recipe in enumerate(recipes):
        theirs = torch.load(tmp_path / f"option{number}.pt")
        plain, tokenizer = torch_engine(recipe, tiny_qwen2)
        losses = run(plain, recipe, stage_plan(recipe), tokenizer, teacher=teacher_of(recipe))
        assert theirs["losses"] == pytest.approx(losses, rel=1e-4), options[number]
        expected = plain.full_state()
        assert theirs["state"].keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.allclose(theirs["state"][name], weight, atol=1e-3), (options[number], name)


def bfloat16_rank(rank, world, port, everyone_done, recipes, folder, out):
    """Six steps in one go, and the same with a checkpoint between, in 16 bits."""
    join(rank, world, port)
    for number, recipe in enumerate(recipes):
        checkpoint = out / f"bfloat16_{number}"
        checkpoint.mkdir(exist_ok=True)
        whole, tokenizer = deepspeed_engine(recipe, folder, dtype=torch.bfloat16)
        losses = run(whole, recipe, stage_plan(recipe), tokenizer)
        first, _ = deepspeed_engine(recipe, folder, dtype=torch.bfloat16)
        begun = run(first, recipe, stage_plan(recipe), tokenizer, last_step=3)
        first.save(checkpoint, 3)
        dist.barrier()
        second, _ = deepspeed_engine(recipe, folder, checkpoint, dtype=torch.bfloat16)
        assert second.load(checkpoint) == 3
        resumed = begun + run(second, recipe, stage_plan(recipe), tokenizer, first_step=3)
        states = [one.full_state() for one in (whole, second)]
        if rank == 0:
            torch.save({"losses": losses, "resumed": resumed, "states": states}, out / f"bfloat16_{number}.pt")
    leave(everyone_done)


def test_in_bfloat16_losses_follow_float32_a_resumed_run_is_the_same_and_weights_keep_32_bits(
    make_recipe, tiny_qwen2, tmp_path
):
    settings = [
        {"zero_stage": 1},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "deepspeed": RELEASED, "gradient_checkpointing": True, "activation_tokens": 1},
    ]
    recipes = [three_tasks(make_recipe, micro_batch_tokens=CHUNK_TOKENS, **one) for one in settings]
    plain, tokenizer = torch_engine(recipes[0], tiny_qwen2)
    in_float32 = run(plain, recipes[0], stage_plan(recipes[0]), tokenizer)

    start(bfloat16_rank, 2, recipes, tiny_qwen2, tmp_path)

    for number, setting in enumerate(settings):
        found = torch.load(tmp_path / f"bfloat16_{number}.pt")
        assert found["losses"] == pytest.approx(in_float32, rel=0.05), setting
        assert found["resumed"] == found["losses"], setting
        whole, resumed = found["states"]
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items()), setting
        # no weight of the optimizer's is one that fits into 16 bits, but by chance
        finer = [not torch.equal(weight, weight.bfloat16().float()) for weight in whole.values()]
        assert sum(finer) > 0.9 * len(finer), setting


def elastic_rank(rank, world, port, everyone_done, recipes, folder, out, first, last):
    """Train some steps at every ZeRO stage, from the other world's checkpoints if there are some."""
    join(rank, world, port)
    for zero_stage, recipe in recipes.items():
        before, after = (out / f"zero{zero_stage}_step{step}" for step in (first, last))
        engine, tokenizer = deepspeed_engine(recipe, folder, checkpoint=before if first else None)
        assert (engine.load(before) if first else 0) == first
        losses = run(engine, recipe, stage_plan(recipe), tokenizer, first_step=first, last_step=last)
        if rank == 0:
            after.mkdir()
            torch.save(losses, out / f"losses{zero_stage}_{last}.pt")
        dist.barrier()
        engine.save(after, last)
    leave(everyone_done)


WORLDS = (2, 1, 3)
RESHARDED = (0, 1, 3)  # 1 and 2 have one optimizer of DeepSpeed's, and so one kind of checkpoint


@pytest.fixture(scope="module")
def over_many_worlds(tmp_path_factory, tiny_qwen2):
    """For each ZeRO stage its recipe, and the losses of two steps on each number of ranks."""
    out = tmp_path_factory.mktemp("worlds")
    recipes = {one: three_tasks(recipe_in(out), zero_stage=one, save_every_steps=2) for one in RESHARDED}
    for turn, world in enumerate(WORLDS):
        start(elastic_rank, world, recipes, tiny_qwen2, out, 2 * turn, 2 * turn + 2)
    ends = [2 * turn + 2 for turn in range(len(WORLDS))]
    return {
        one: (recipe, [loss for end in ends for loss in torch.load(out / f"losses{one}_{end}.pt")])
        for one, recipe in recipes.items()
    }


@pytest.mark.parametrize("zero_stage", RESHARDED)
def test_a_checkpoint_is_continued_by_fewer_and_by_more_ranks(over_many_worlds, tiny_qwen2, zero_stage):
    recipe, theirs = over_many_worlds[zero_stage]
    found = model_of(tiny_qwen2)
    plain = TorchEngine(found.model, found.tokenizer, recipe.training)

    losses = run(plain, recipe, stage_plan(recipe), found.tokenizer)

    assert len(losses) == len(theirs) == 6
    assert theirs == pytest.approx(losses, rel=1e-4)
