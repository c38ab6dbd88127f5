"""What holds on a CPU holds on a GPU: gradients, DeepSpeed, resumption, packing, the encoder and search. Without Ray.

Skipped where torch sees no GPU; the tests of several ranks want several.
"""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from qzhou.cluster.ports import free_port
from qzhou.data.storage import Folder
from qzhou.encoder import load_backbone, load_encoder
from qzhou.encoder.encoder import token_ids
from qzhou.mining.shard import ExactSearch, QueryBlock, Shard, VectorFile
from tests.ranks.problem import (
    CHUNK_TOKENS,
    gradients,
    model_of,
    plain_gradients,
    run,
    stage_plan,
    three_tasks,
    torch_gradient,
)
from tests.torch_engine import TorchEngine

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="torch sees no GPU")
# of the norm of a gradient, float32: the order of a sum is another one than the CPU's
TOLERANCE = 1e-4
TEXTS = ["a red tree", "what is the sum of a list", "paris " * 40, "blue"]


def engine_of(recipe, folder, **options):
    """The tests' model on the GPU of this process."""
    found = model_of(folder)
    return TorchEngine(found.model.to("cuda"), found.tokenizer, recipe.training, **options), found.tokenizer


def assert_same_on_the_cpu(found, expected):
    for (name, temperature, way), gradient in found.items():
        wanted = expected[name, temperature]
        distance = float((gradient.cpu() - wanted).norm() / wanted.norm())
        assert distance < TOLERANCE, (name, temperature, way, distance)


def test_each_loss_has_the_gradient_of_the_cpu_direct_and_cached(make_recipe, tiny_qwen2):
    recipe = three_tasks(make_recipe, micro_batch_tokens=CHUNK_TOKENS)
    engine, tokenizer = engine_of(recipe, tiny_qwen2)

    assert_same_on_the_cpu(
        gradients(engine, recipe, tokenizer, torch_gradient), plain_gradients(recipe, tiny_qwen2)
    )


def gradient_rank(rank, world, port, recipe, folder, out):
    os.environ["LOCAL_RANK"] = str(rank)
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    engine, tokenizer = engine_of(recipe, folder)
    gathered = gradients(engine, recipe, tokenizer, torch_gradient)
    if rank == world - 1:
        torch.save({key: one.cpu() for key, one in gathered.items()}, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(GPUS < 2, reason="one rank a GPU: NCCL refuses two on one")
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_gradient_of_one(make_recipe, tiny_qwen2, tmp_path, world):
    if world > GPUS:
        pytest.skip(f"{GPUS} GPUs")
    recipe = three_tasks(make_recipe, micro_batch_tokens=CHUNK_TOKENS)

    out = tmp_path / "gradients.pt"
    multiprocessing.spawn(gradient_rank, (world, free_port(), recipe, tiny_qwen2, out), nprocs=world)

    assert_same_on_the_cpu(torch.load(out), plain_gradients(recipe, tiny_qwen2))


@pytest.fixture(scope="module")
def a_world_of_one():
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("a_world_of_one")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_trains_like_plain_torch(make_recipe, tiny_qwen2, zero_stage):
    pytest.importorskip("deepspeed")
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    recipe = three_tasks(make_recipe, zero_stage=zero_stage, micro_batch_tokens=CHUNK_TOKENS, activation_tokens=1)
    found = model_of(tiny_qwen2)
    theirs = DeepSpeedEngine(found.model.to("cuda"), found.tokenizer, recipe.training, torch.device("cuda"))
    plain, tokenizer = engine_of(recipe, tiny_qwen2)

    losses = run(plain, recipe, stage_plan(recipe), tokenizer)
    assert run(theirs, recipe, stage_plan(recipe), tokenizer) == pytest.approx(losses, rel=1e-4)

    expected = plain.full_state()
    for name, weight in theirs.full_state().items():
        assert torch.allclose(weight, expected[name], atol=1e-3), name


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(make_recipe, tiny_qwen2, tmp_path):
    recipe = three_tasks(make_recipe)
    plan = stage_plan(recipe)
    undisturbed, tokenizer = engine_of(recipe, tiny_qwen2)
    losses = run(undisturbed, recipe, plan, tokenizer)

    first, _ = engine_of(recipe, tiny_qwen2)
    begun = run(first, recipe, plan, tokenizer, last_step=3)
    first.save(tmp_path, 3)
    second, _ = engine_of(recipe, tiny_qwen2)
    assert second.load(tmp_path) == 3

    assert begun + run(second, recipe, plan, tokenizer, first_step=3) == pytest.approx(losses, rel=1e-5)


def test_packed_texts_have_the_vectors_of_padded_ones(make_recipe, tiny_qwen2):
    """FlashAttention computes in bfloat16, so the bound is its own."""
    training, vectors = three_tasks(make_recipe).training, []
    for packed in (False, True):
        found = load_backbone(str(tiny_qwen2), attention="bidirectional", dtype=torch.bfloat16)
        engine = TorchEngine(found.model.to("cuda"), found.tokenizer, training, packed=packed)
        with torch.no_grad():
            vectors.append(engine.forward(token_ids(found.tokenizer, TEXTS, max_tokens=64)).float())

    assert float((vectors[0] * vectors[1]).sum(dim=1).min()) > 0.999


@pytest.mark.parametrize(("dtype", "closeness"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_the_encoder_gives_the_vectors_of_the_cpu_in_any_batch(tiny_qwen2, dtype, closeness):
    wanted = load_encoder(str(tiny_qwen2), max_tokens=64, dtype="float32", device="cpu").encode(TEXTS)
    encoder = load_encoder(str(tiny_qwen2), max_tokens=64, dtype=dtype, device="cuda")

    together, alone = (encoder.encode(TEXTS), np.concatenate([encoder.encode([text]) for text in TEXTS]))

    assert (together * wanted).sum(axis=1).min() > closeness
    assert (together * alone).sum(axis=1).min() > closeness


def topic(generator, rows, spread):
    """Unit vectors around one direction: the smaller the spread, the less a search in 16 bits can tell them apart."""
    found = (np.eye(1, 256) + spread * generator.normal(size=(rows, 256)) / 16).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("spread", [4.0, 0.3, 0.1])
def test_a_search_finds_what_the_cpu_finds(tmp_path, spread):
    """Defect of a first version: in float16 without a bound, 42 of 200 queries had other neighbours."""
    generator = np.random.default_rng(0)
    query_ND, document_MD = topic(generator, 200, spread), topic(generator, 50_000, spread)
    np.save(tmp_path / "0.npy", document_MD)
    files, owners = [VectorFile("0.npy", 0, len(document_MD))], np.zeros(0, dtype=np.int64)
    block = QueryBlock(query_ND, np.zeros((0, 256), dtype=np.float32), owners)
    folder = Folder.open(str(tmp_path))
    expected = Shard(folder, files, exact=ExactSearch(prefilters=False)).search(block, 30)

    found = Shard(folder, files, exact=ExactSearch(device="cuda", least_products=0)).search(block, 30)

    assert (found.row_NK == expected.row_NK).all()
    assert (found.score_NK == expected.score_NK).all()
