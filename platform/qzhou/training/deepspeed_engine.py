"""The DeepSpeed ZeRO engine: the only file that imports deepspeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qzhou.config.training import TrainingSection
from qzhou.encoder import EmbeddingModel
from qzhou.errors import SetupError, TrainingError
from qzhou.training.deal import Ids
from qzhou.training.engine import STATE_FILE, Batcher, may_pack, token_budgets, without_dropout

TAG, UNIVERSAL_TAG = "deepspeed", "universal"
CPU_EXTENSION = "deepspeed_shm_comm"


class DeepSpeedEngine:
    """ZeRO over the ranks of the process group that is already there (Ray Train or ``torchrun`` makes it)."""

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Any,
        training: TrainingSection,
        device: torch.device,
        *,
        checkpoint: Path | None = None,
    ) -> None:
        """Shard a model over the ranks.

        Args:
            model: Float32 or bfloat16 weights, which decide the type to train in.
            device: Where this rank's part lives.
            checkpoint: What :meth:`load` will be asked for: ZeRO must know beforehand whether as many ranks wrote it.
        """
        deepspeed = _import_deepspeed(device)
        without_dropout(model)
        if training.gradient_checkpointing:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.micro_batch_tokens, self.activation_tokens = token_budgets(training, device)
        self.training = training
        sharded = training.zero_stage > 0
        self._resharded = (
            sharded and checkpoint is not None and _state(checkpoint)["workers"] != self.world
        )
        self._batch = Batcher(model, tokenizer, packed=may_pack(training))
        self.engine, *_ = deepspeed.initialize(
            model=model.train(),
            model_parameters=[one for one in model.parameters() if one.requires_grad],
            config=deepspeed_config(
                training,
                bfloat16=next(model.parameters()).dtype == torch.bfloat16,
                universal=self._resharded,
            ),
        )

    def forward(self, ids: Sequence[Ids], openness: float | None = None) -> Tensor:
        vectors: Tensor = self.engine(self._batch(ids, openness))
        return vectors

    def backward(self, value: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(value)

    def update(self, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path, step: int) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)
        if self.rank == 0:
            state = {"step": step, "workers": self.world, "zero_stage": self.training.zero_stage}
            (folder / STATE_FILE).write_text(json.dumps(state), "utf-8")

    def load(self, folder: Path) -> int:
        """Read a checkpoint, also one of another number of ranks, and give its step.

        Raises:
            TrainingError: DeepSpeed cannot convert the checkpoint to this number of ranks.
        """
        state = _state(folder)
        if self._resharded:
            with _universal(folder, state["workers"], self.world) as converted:
                self.engine.load_checkpoint(str(converted), tag=UNIVERSAL_TAG)
                dist.barrier()  # nobody removes what another still reads
        else:
            self.engine.load_checkpoint(str(folder), tag=TAG)
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.engine.module.named_parameters():
            full = (
                safe_get_full_fp32_param(parameter)
                if parameter.requires_grad
                else _whole(parameter)
            )
            if self.rank == 0:
                state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return state


def deepspeed_config(
    training: TrainingSection, *, bfloat16: bool, universal: bool = False
) -> dict[str, Any]:
    """What DeepSpeed is told.

    A step may have several backward passes (gradient cache); the engine says itself which is the last, so no step
    counts as accumulation, which would cut a batch's negatives.

    Args:
        universal: The checkpoint that will be loaded has been converted from another number of ranks.
    """
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts nothing: batches are made by the plan
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_gradient_norm,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        # torch's AdamW needs no compiled kernel
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 0.0, "weight_decay": training.weight_decay, "torch_adam": True},
        },
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / STATE_FILE).read_text("utf-8")))


def _whole(parameter: Tensor) -> Tensor:
    """A frozen weight, which ZeRO-3 shards too."""
    if not hasattr(parameter, "ds_id"):
        return parameter
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@contextmanager
def _universal(folder: Path, before: int, now: int) -> Iterator[Path]:
    """A checkpoint that any number of ranks can load, made once a node by its first rank; removed after the block.

    The conversion reads every rank's part. It is a process of its own, because DeepSpeed's converter is a program.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    shared: list[str | None] = [None] * dist.get_world_size()
    own = tempfile.mkdtemp(prefix="universal-") if local_rank == 0 else None
    failure = _convert(folder, Path(own)) if own else ""
    dist.all_gather_object(shared, json.dumps([own, failure]) if own else None)
    told = [json.loads(one) for one in shared if one]
    failures = [one for _, one in told if one]
    if failures:
        raise TrainingError(
            f"the checkpoint in {folder} was written by {before} workers, and DeepSpeed cannot convert it for {now}: "
            f"{failures[0]}\n       Set training.workers to {before} to go on, or remove the stage's folder to start "
            "it over."
        )
    place = own or next(place for place, _ in told if Path(place).exists())
    try:
        yield Path(place)
    finally:
        if own:
            import shutil

            shutil.rmtree(own, ignore_errors=True)


def _convert(folder: Path, target: Path) -> str:
    """Write the universal checkpoint; gives DeepSpeed's last words if it fails."""
    command = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--inject_missing_state",
    ]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(target / UNIVERSAL_TAG)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (target / "latest_universal").write_text(UNIVERSAL_TAG, "utf-8")
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]


def _import_deepspeed(device: torch.device) -> Any:
    """Import it for this device; on a CPU without its compiled extension.

    The extension (all-reduce through shared memory) is compiled with a C++ compiler for up to a minute
    at first use. Without it DeepSpeed reduces through gloo, which a step of MiniLM on two ranks did
    not notice (2.0 s with and without), and a machine without a compiler can train.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise SetupError(
            f"DeepSpeed cannot be imported: {error}. pip install 'deepspeed>=0.19.8,<0.20'"
        ) from None
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__[CPU_EXTENSION] = False
    return deepspeed
