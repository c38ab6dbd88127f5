"""What training at 7B does on one GPU, checked in under six minutes: no hub, no Ray, no data.

python -m bench.gpu [--small] [--results FOLDER]

Random weights of Qwen2.5-7B's shape, or of a part of its layers. Run `pytest tests/gpu` first. Each check prints PASS,
FAIL or INFO with its figures, and writes bench/results/gpu.json. Utilisation counts the FLOPs of the forward pass, of
its recomputation and of the backward pass (HFU), against the peak of the GPU's data sheet. `--small` runs a tiny model
on a CPU, to try the script itself: speeds are then not judged.

The bounds are guesses made before any GPU was there, from published runs on H100.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from qzhou.cluster.ports import free_port
from qzhou.config.recipe import load_recipe
from qzhou.config.training import TrainingSection
from qzhou.encoder.attention import PACKED, Packed, Padded, can_pack
from qzhou.encoder.backbone import EmbeddingModel
from qzhou.estimate.hardware import gpus
from qzhou.training.engine import Engine
from qzhou.training.gradient_cache import backward
from qzhou.training.losses import info_nce
from qzhou.training.sharding import ShardedBatch, shard_batch
from tests.torch_engine import TorchEngine

RECIPE = Path(__file__).parents[1] / "recipes" / "qzhou-7b.toml"
TOKENIZER = SimpleNamespace(pad_token_id=0)
LARGE = {"layers": 28, "width": 3584, "inner": 18_944, "heads": 28, "groups": 4, "tokens": 152_064}
TINY = {"layers": 2, "width": 64, "inner": 128, "heads": 4, "groups": 2, "tokens": 500}
HALF_B = {"layers": 24, "width": 896, "inner": 4864, "heads": 14, "groups": 2, "tokens": 151_936}
# texts and tokens of each, and the utilisation that a forward and backward pass over them has to reach
PASSES = {"4k": (20, 204, 0.35), "8k": (40, 204, 0.40), "15k": (10, 1536, 0.42), "16k": (80, 204, 0.42)}
PASSES_SMALL = {"tiny": (4, 8, 0.0)}
RANKS = 8  # of which one is tried
STEPS = 4
GIB = 2**30


class Checks:
    """Runs checks and keeps what they said."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.device = torch.device("cpu" if small else "cuda")
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def say(self, verdict: str, name: str, **figures: Any) -> None:
        """Print and keep a line."""
        self.rows.append(
            {"verdict": verdict, "name": name, "at_s": round(time.monotonic() - self.began, 1), **figures}
        )
        shown = "  ".join(f"{key} {value}" for key, value in figures.items())
        print(f"{verdict}  {name}:  {shown}", flush=True)

    def judge(self, passed: bool, name: str, **figures: Any) -> None:
        """The same, with a verdict."""
        self.say("PASS" if passed else "FAIL", name, **figures)

    def run(self, check: Callable[[Checks], None]) -> None:
        """Run a check; one that fails by an exception lets the others run."""
        try:
            check(self)
        except Exception as error:
            last = traceback.format_exc()[-600:]
            self.say("FAIL", check.__name__, error=f"{type(error).__name__}: {str(error)[:300]}", trace=last)
        free()

    def now(self) -> float:
        """Seconds, after the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def peak_gib(self) -> float:
        """Peak memory of the GPU since the last :func:`free`."""
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else 0.0

    def model(
        self, shape: dict[str, int], *, dtype: torch.dtype = torch.bfloat16, layers: int = 0
    ) -> EmbeddingModel:
        """A model of random weights, bidirectional, with mean pooling; always the same."""
        shape = TINY if self.small else shape
        config = Qwen2Config(
            vocab_size=shape["tokens"],
            hidden_size=shape["width"],
            intermediate_size=shape["inner"],
            num_hidden_layers=min(layers or shape["layers"], shape["layers"]),
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["groups"],
            use_cache=False,
            is_causal=False,
        )
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with self.device:
                return EmbeddingModel(Qwen2Model._from_config(config, attn_implementation="sdpa"), "mean")
        finally:
            torch.set_default_dtype(torch.float32)

    def batch(self) -> tuple[ShardedBatch, int]:
        """One of eight ranks' share of a step of the paper's recipe, lengths like MS MARCO's; and its queries."""
        random = np.random.default_rng(0)
        documents = np.clip(random.lognormal(np.log(133), 0.83, 1280 // RANKS), 8, 1536).astype(int)
        queries = np.clip(random.normal(35, 8, 256 // RANKS), 18, 256).astype(int)
        lengths = [*queries, *documents]
        if self.small:
            lengths = [2 + length // 16 for length in lengths[:40]]
        highest = (TINY if self.small else LARGE)["tokens"]
        ids = [random.integers(1, highest, length).tolist() for length in lengths]
        sharded = shard_batch(ids, micro_batch_tokens=256 if self.small else 16_384, packed=self.packs)
        return sharded, min(len(queries), len(ids) // 2)

    @property
    def packs(self) -> bool:
        """Whether texts are packed here."""
        return self.device.type == "cuda" and can_pack(self.device, torch.bfloat16)

    def texts(self, ids: list[list[int]], *, packed: bool) -> Packed | Padded:
        """Texts for a model."""
        return Packed.of(ids, self.device) if packed else Padded.of(ids, self.device, pad_token=0)


def free() -> None:
    """Give back what nothing holds any more, and begin to measure anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def attending(model: EmbeddingModel, *, packed: bool) -> Iterator[None]:
    """Gradient checkpointing computes attention again in the backward pass, so it must not change meanwhile."""
    if packed:
        model.backbone.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.backbone.set_attn_implementation("sdpa")


def environment(checks: Checks) -> None:
    """What the figures are of."""
    import transformers

    name = torch.cuda.get_device_name() if checks.device.type == "cuda" else "none"
    checks.say("INFO", "environment", gpu=name, torch=torch.__version__, cuda=str(torch.version.cuda),
               transformers=transformers.__version__, packs=checks.packs)  # fmt: skip


def attention(checks: Checks) -> None:
    """Padded, packed and alone, in 16 bits, texts have the vectors of float32, and packed the gradients of padded."""
    lengths = (40, 20, 6, 3) if checks.small else (1200, 300, 60, 17)
    ids = [list(range(5, 5 + length)) for length in lengths]
    exact, model = checks.model(LARGE, dtype=torch.float32, layers=2), checks.model(LARGE, layers=2)
    model.load_state_dict(exact.state_dict())
    with torch.no_grad():
        wanted = exact(checks.texts(ids, packed=False))
        alone = torch.cat([model(checks.texts([one], packed=False)) for one in ids])
    cosines, gradients = {"alone": lowest(alone, wanted)}, []
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(checks.device)
    for packed in (False, True):
        model.zero_grad(set_to_none=True)
        with attending(model, packed=packed):
            vectors = model(checks.texts(ids, packed=packed))
            (vectors * weight).sum().backward()
        cosines["packed" if packed else "padded"] = lowest(vectors, wanted)
        gradients.append(
            torch.cat([one.grad.flatten().float() for one in model.parameters() if one.grad is not None])
        )
    one, other = gradients
    same = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    checks.judge(min(cosines.values()) > 0.999, "attention: cosine to float32", **cosines)
    checks.judge(same > 0.99, "attention: gradient of packed and padded texts", cosine=same)


def lowest(found: Tensor, wanted: Tensor) -> float:
    """The lowest cosine between rows."""
    return round(float((found.detach().float() * wanted).sum(1).min()), 6)


def passes(checks: Checks) -> None:
    """Forward, recomputed forward and backward pass of all layers: speed, and memory beyond weights and gradients."""
    model = checks.model(LARGE).train()
    model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    everything = sum(one.numel() for one in model.parameters())
    config = model.backbone.config
    matrices = everything - config.vocab_size * config.hidden_size
    for name, (rows, length, needed) in (PASSES_SMALL if checks.small else PASSES).items():
        ids = [list(range(3, 3 + length))] * rows
        for packed in (False, True):
            free()
            with attending(model, packed=packed):
                texts = checks.texts(ids, packed=packed)
                seconds = min([timed(checks, partial(forward_backward, model, texts)) for _ in range(STEPS)][1:])
            beyond = checks.peak_gib() - 2 * 2 * everything / GIB
            tokens = rows * length
            forward = 2 * matrices * tokens + 4 * config.num_hidden_layers * config.hidden_size * rows * length**2
            hfu = 4 * forward / seconds / peak_flops()
            way = "packed" if packed else "padded"
            figures = {
                "tokens_per_s": round(tokens / seconds),
                "hfu": round(hfu, 3),
                "gib_beyond": round(beyond, 2),
            }
            checks.judge(checks.small or hfu > needed, f"7B, {name} tokens, {way}", **figures, needed=needed)
            if name == "15k":
                checks.judge(
                    beyond < 7, f"7B, memory of 15k tokens, {way}", gib=round(beyond, 2), expected="3 to 5"
                )
            model.zero_grad(set_to_none=True)


def forward_backward(model: EmbeddingModel, texts: Packed | Padded) -> None:
    """A pass whose gradients nobody reads."""
    model(texts).sum().backward()


def timed(checks: Checks, work: Callable[[], object]) -> float:
    """Seconds of some work."""
    began = checks.now()
    work()
    return checks.now() - began


def peak_flops() -> float:
    """Dense bfloat16 FLOP/s of this GPU's data sheet; an H200's where it is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = [one.flops for key, one in gpus().items() if key in name]
    return known[0] if known else gpus()["H200"].flops


def steps(checks: Checks) -> None:
    """A rank's step of four layers, by plain torch and by DeepSpeed: there is no network, so hooks alone cost time.

    The embedding is larger than a bucket of the reduction, as in all 28 layers.
    """
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    sharded, queries = checks.batch()
    checks.say(
        "INFO", "a rank of eight", passes=len(sharded.micro_batches), padding=round(sharded.padding_share, 3)
    )
    losses, seconds = {}, {}
    for zero_stage in (None, 1, 3):
        model, settings = checks.model(LARGE, layers=4).train(), training(zero_stage=zero_stage or 1)
        engine: Engine = (
            TorchEngine(model, TOKENIZER, settings, packed=checks.packs)
            if zero_stage is None
            else DeepSpeedEngine(model, TOKENIZER, settings, checks.device)
        )
        name = "plain torch" if zero_stage is None else f"ZeRO {zero_stage}"
        found, times = [], []
        for _ in range(STEPS):
            began = checks.now()
            found.append(step(engine, sharded, queries))
            times.append(checks.now() - began)
        losses[name], seconds[name] = found, min(times[1:])
        checks.say(
            "INFO", f"step, {name}", seconds=round(min(times[1:]), 3), losses=found, gib=round(checks.peak_gib(), 1)
        )
        if zero_stage == 1:
            checkpoint(checks, engine, sharded, queries)
        del engine, model
        free()
    apart = max(abs(a - b) / a for a, b in zip(losses["ZeRO 1"], losses["ZeRO 3"], strict=True))
    checks.judge(apart < 0.02, "step: ZeRO 1 and 3 have the same losses", apart=apart)
    checks.judge(losses["ZeRO 1"][-1] < losses["ZeRO 1"][0], "step: the loss falls", losses=losses["ZeRO 1"])
    for one, other, most in (("ZeRO 1", "plain torch", 1.15), ("ZeRO 3", "ZeRO 1", 1.25)):
        ratio = seconds[one] / seconds[other]
        checks.judge(checks.small or ratio < most, f"step: {one} / {other}", ratio=round(ratio, 2), most=most)


def training(**changes: Any) -> TrainingSection:
    """The paper's settings with others in their place."""
    return load_recipe(RECIPE).training.model_copy(update={"gradient_checkpointing": True, **changes})


def step(engine: Engine, sharded: ShardedBatch, queries: int) -> float:
    """The loss of an optimizer step."""

    def loss(vectors: Tensor) -> Tensor:
        labels = torch.arange(queries, device=vectors.device)
        return info_nce(vectors[:queries], vectors[queries:], labels)

    value = float(backward(sharded, engine.forward, loss, engine))
    engine.update(1e-5)
    return round(value, 5)


def checkpoint(checks: Checks, engine: Engine, sharded: ShardedBatch, queries: int) -> None:
    """A checkpoint goes on as if nothing had happened, and its weights come out in 32 bits."""
    from qzhou.training.deepspeed_engine import DeepSpeedEngine

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        took = timed(checks, lambda: engine.save(place, STEPS))
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        expected = [step(engine, sharded, queries) for _ in range(2)]
        model = checks.model(LARGE, layers=4).train()
        again = DeepSpeedEngine(model, TOKENIZER, training(zero_stage=1), checks.device, checkpoint=place)
        again.load(place)
        found = [step(again, sharded, queries) for _ in range(2)]
        whole = again.full_state()
    weights = sum(one.numel() for one in whole.values())
    figures = {
        "expected": expected,
        "found": found,
        "bytes_a_weight": round(size / weights, 1),
        "seconds": round(took, 1),
    }
    checks.judge(np.allclose(found, expected, rtol=2e-3), "checkpoint: goes on as before", **figures)
    sound = all(one.dtype == torch.float32 and bool(one.isfinite().all()) for one in whole.values())
    checks.judge(sound, "checkpoint: weights come out in float32", tensors=len(whole))


def busy(checks: Checks) -> None:
    """The share of a step in which the GPU computes, and how often it is waited for."""
    if checks.small:
        return
    from torch.profiler import ProfilerActivity, profile

    sharded, queries = checks.batch()
    engine = TorchEngine(checks.model(LARGE, layers=4).train(), TOKENIZER, training(), packed=checks.packs)
    step(engine, sharded, queries)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        took = timed(checks, lambda: step(engine, sharded, queries))
    events = seen.key_averages()
    share = sum(one.self_device_time_total for one in events) / 1e6 / took
    waited = sum(one.count for one in events if "Synchronize" in one.key)
    checks.judge(share > 0.85, "a step keeps the GPU busy", share=round(share, 3), synchronisations=waited)
    kernels = sorted({one.key for one in events if "attention" in one.key.lower()})
    checks.judge(
        not any("math" in one for one in kernels), "attention: no kernel that writes all weights", kernels=kernels
    )


def small_backbone(checks: Checks) -> None:
    """What the activations of a 0.5B model take without gradient checkpointing, for recipes of one small GPU."""
    model = checks.model(HALF_B).train()
    for rows in (2,) if checks.small else (41, 164):
        free()
        forward_backward(model, checks.texts([list(range(3, 203))] * rows, packed=False))
        checks.say("INFO", "0.5B without checkpointing", tokens=rows * 200, gib=round(checks.peak_gib(), 1))
        model.zero_grad(set_to_none=True)


def main() -> None:
    """Run every check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model on a CPU, to try the script")
    parser.add_argument(
        "--results", type=Path, help="folder of the JSON file; default: bench/results, or none if small"
    )
    arguments = parser.parse_args()
    if arguments.small:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ["LOCAL_RANK"] = "0"
    checks = Checks(small=arguments.small)
    address = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group("gloo" if checks.small else "nccl", init_method=address, rank=0, world_size=1)
    for check in (environment, attention, passes, steps, busy, small_backbone):
        checks.run(check)
    dist.destroy_process_group()
    failed = [row["name"] for row in checks.rows if row["verdict"] == "FAIL"]
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed")
    folder = arguments.results or (None if checks.small else Path(__file__).parent / "results")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps({"rows": checks.rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
