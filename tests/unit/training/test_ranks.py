"""Many ranks equal one: gradients, DeepSpeed's update and its checkpoints, on gloo without Ray."""

import contextlib
import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from qzhou.encoder import load_backbone
from qzhou.errors import TrainingError
from qzhou.prompts import Prompt
from qzhou.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.training.batches import TrainingSet, build_batch
from qzhou.training.embed import GlobalEmbedder
from qzhou.training.engine import TorchEngine
from qzhou.training.loop import learning_rate_at, train_stage
from qzhou.training.objectives import loss_of
from qzhou.training.plan import BatchPlan, DatasetSize, PlannedBatch

COLOURS = ["red", "blue", "green", "tree", "sea", "paris", "london", "word", "list", "sum", "query"]
RETRIEVAL = [
    RetrievalExample(
        id=str(i), dataset="r", query=f"what is the {colour}", positives=(f"the {colour} is a text " * (1 + i % 3),),
        negatives=(Negative(text=f"the answer to {colour}", origin="mined"),),
    )
    for i, colour in enumerate(COLOURS)
]  # fmt: skip
PAIRS = [
    PairExample(id=str(i), dataset="p", text_a=f"a {c}", text_b=f"the {c} {c}", score=i % 3)
    for i, c in enumerate(COLOURS)
]
LABELED = [LabeledExample(id=str(i), dataset="c", text=f"{c} word", label=str(i % 3)) for i, c in enumerate(COLOURS)]
DATA = {
    "r": TrainingSet.of("r", Prompt("Find", symmetric=False), RETRIEVAL),
    "p": TrainingSet.of("p", Prompt("Compare", symmetric=True), PAIRS),
    "c": TrainingSet.of("c", Prompt(), LABELED),
}
TASKS = {"r": "retrieval", "p": "pair", "c": "classification"}
PLANNED = [PlannedBatch(0, name, task, torch.randperm(11).numpy()) for name, task in TASKS.items()]  # 11: uneven shares


def model_of(folder):
    return load_backbone(str(folder), attention="bidirectional", dtype=torch.float32)


def gradients(recipe, folder, rank=0, world=1, chunks=1):
    """The gradient of each loss, averaged over ranks as an engine does."""
    torch.manual_seed(0)
    found = model_of(folder)
    embed = GlobalEmbedder(found.model, found.tokenizer, torch.device("cpu"), chunks=chunks, rank=rank, world=world)
    gathered = {}
    for name, data in DATA.items():
        found.model.zero_grad()
        planned = PlannedBatch(0, name, TASKS[name], torch.arange(11).numpy())
        loss_of(
            build_batch(planned, data, negatives_per_query=1, seed=1), embed, recipe.model, recipe.training
        ).backward()
        vector = torch.cat([one.grad.flatten() for one in found.model.parameters() if one.grad is not None])
        if world > 1:
            dist.all_reduce(vector)
            vector /= world
        gathered[name] = vector
    return gathered


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
    found = gradients(recipe, folder, rank, world, chunks=2)
    if rank == 0:
        torch.save(found, out)
    leave(everyone_done)


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        datasets=[
            {"name": "r", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "instruction": "Find"},
            {"name": "p", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"], "instruction": "Compare"},
            {"name": "c", "reader": "jsonl", "rule": "labeled", "paths": ["x"]},
        ]
    )


def spawn(function, world, *arguments):
    everyone_done = multiprocessing.get_context("spawn").Barrier(world)
    multiprocessing.spawn(function, (world, free_port(), everyone_done, *arguments), nprocs=world)


def test_two_ranks_have_the_gradient_of_one_for_each_loss(recipe, tiny_qwen2, tmp_path):
    """Defect of peers: gathered without gradient, or each rank with another dataset."""
    out = tmp_path / "gradients.pt"

    spawn(gradient_rank, 2, recipe, tiny_qwen2, out)

    one, two = gradients(recipe, tiny_qwen2), torch.load(out)
    for name in TASKS:
        assert one[name].abs().max() > 0
        assert torch.allclose(one[name], two[name], atol=2e-5 * float(one[name].abs().max())), name


def test_encoding_in_chunks_changes_nothing(recipe, tiny_qwen2):
    one, chunked = gradients(recipe, tiny_qwen2), gradients(recipe, tiny_qwen2, chunks=3)

    for name in TASKS:
        assert torch.allclose(one[name], chunked[name], atol=2e-5 * float(one[name].abs().max())), name


def run(engine, recipe, plan, first_step=0, last_step=None):
    """Train and give back the losses; ``last_step`` stops as a killed job would."""
    seen = []

    class StopError(Exception):
        pass

    def save(step, metrics):
        seen.extend(metrics)
        if step == last_step:
            raise StopError

    with contextlib.suppress(StopError):
        train_stage(engine, plan, DATA, recipe, label="stage2", first_step=first_step, save=save)
    return [one["loss"] for one in seen]


def stage_plan(recipe):
    sizes = [DatasetSize(name, task, 11) for name, task in TASKS.items()]
    return BatchPlan(sizes, recipe.training.stage2, alpha=0.5, seed=1)


def trained(recipe):
    stage = recipe.training.stage2.model_copy(update={"steps": 6, "retrieval_share": 0.5, "batch_size": 5})
    return recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"stage2": stage, "save_every_steps": 3})}
    )


def test_a_resumed_run_ends_where_an_unbroken_one_does(recipe, tiny_bert, tmp_path):
    recipe = trained(recipe)
    plan, found = stage_plan(recipe), model_of(tiny_bert)
    start = copy.deepcopy(found.model)
    unbroken = TorchEngine(found.model, found.tokenizer, recipe.training)
    losses = run(unbroken, recipe, plan)

    first = TorchEngine(copy.deepcopy(start), found.tokenizer, recipe.training)
    before = run(first, recipe, plan, last_step=3)
    first.save(tmp_path, 3)
    second = TorchEngine(copy.deepcopy(start), found.tokenizer, recipe.training)
    after = run(second, recipe, plan, first_step=second.load(tmp_path))

    assert before + after == losses
    for name, weight in unbroken.full_state().items():
        assert torch.equal(weight, second.full_state()[name]), name


def deepspeed_rank(rank, world, port, everyone_done, recipe, folder, out):
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    join(rank, world, port)
    found = model_of(folder)
    engine = DeepSpeedEngine(found.model, found.tokenizer, recipe.training, torch.device("cpu"))
    losses = run(engine, recipe, stage_plan(recipe))
    (out / "checkpoint").mkdir(exist_ok=True)
    engine.save(out / "checkpoint", 6)
    state = engine.full_state()
    if rank == 0:
        torch.save({"losses": losses, "state": state}, out / "trained.pt")
    leave(everyone_done)


def other_world(rank, world, port, everyone_done, recipe, folder, out):
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    join(rank, world, port)
    found = model_of(folder)
    engine = DeepSpeedEngine(found.model, found.tokenizer, recipe.training, torch.device("cpu"))
    with pytest.raises(TrainingError, match="written by 2 workers and cannot be continued by 1"):
        engine.load(out / "checkpoint")
    leave(everyone_done)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_on_two_ranks_trains_like_plain_torch_on_one(recipe, tiny_qwen2, tmp_path, zero_stage):
    recipe = trained(recipe)
    training = recipe.training.model_copy(update={"zero_stage": zero_stage})
    recipe = recipe.model_copy(update={"training": training})
    found = model_of(tiny_qwen2)
    plain = TorchEngine(found.model, found.tokenizer, training)
    losses = run(plain, recipe, stage_plan(recipe))

    spawn(deepspeed_rank, 2, recipe, tiny_qwen2, tmp_path)

    theirs = torch.load(tmp_path / "trained.pt")
    assert theirs["losses"] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] != losses[0]
    expected = plain.full_state()
    assert theirs["state"].keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(theirs["state"][name], weight, atol=1e-3), name
    if zero_stage == 1:
        spawn(other_world, 1, recipe, tiny_qwen2, tmp_path)


def test_a_loss_that_is_not_finite_names_step_and_dataset(recipe, tiny_bert):
    recipe = trained(recipe)
    found = model_of(tiny_bert)
    with torch.no_grad():
        next(found.model.parameters()).fill_(float("nan"))
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 on '\w'"):
        run(engine, recipe, stage_plan(recipe))


def test_the_learning_rate_warms_up_to_the_peak_and_ends_near_zero(make_recipe):
    stage = make_recipe().training.stage1.model_copy(update={"steps": 10, "warmup_steps": 4, "learning_rate": 1.0})

    rates = [learning_rate_at(step, stage) for step in range(10)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1 - i / 6 for i in range(6)])


def test_checkpoints_load_without_running_foreign_code():
    source = Path(__import__("qzhou.training.engine", fromlist=["x"]).__file__).read_text("utf-8")

    assert "weights_only=True" in source
