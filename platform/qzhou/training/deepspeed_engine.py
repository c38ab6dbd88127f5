"""The DeepSpeed ZeRO engine: the only file that imports deepspeed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qzhou.encoder import EmbeddingModel
from qzhou.errors import SetupError, TrainingError
from qzhou.learning import TrainingSection
from qzhou.training.embed import GlobalEmbedder
from qzhou.training.engine import without_dropout

TAG, STATE_FILE = "deepspeed", "state.json"
CPU_EXTENSION = "deepspeed_shm_comm"


class DeepSpeedEngine:
    """ZeRO over the ranks of the process group that is already there (Ray Train makes it).

    Args:
        model: Float32 or bfloat16 weights, which decide the type to train in.
        device: Where this rank's part lives.
    """

    def __init__(self, model: EmbeddingModel, tokenizer: Any, training: TrainingSection, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        without_dropout(model)
        if training.gradient_checkpointing:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.engine, *_ = deepspeed.initialize(
            model=model.train(),
            model_parameters=[one for one in model.parameters() if one.requires_grad],
            config=deepspeed_config(training, bfloat16=next(model.parameters()).dtype == torch.bfloat16),
        )
        self._embedder = GlobalEmbedder(
            self.engine, tokenizer, device, chunks=training.forward_chunks, rank=self.rank, world=self.world
        )

    def embed(self, texts: Sequence[str], *, max_tokens: int) -> Tensor:
        return self._embedder(texts, max_tokens=max_tokens)

    def update(self, loss: Tensor, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.backward(loss)
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path, step: int) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)
        if self.rank == 0:
            (folder / STATE_FILE).write_text(json.dumps({"step": step, "workers": self.world}), "utf-8")

    def load(self, folder: Path) -> int:
        state = json.loads((folder / STATE_FILE).read_text("utf-8"))
        if state["workers"] != self.world:
            raise TrainingError(
                f"the checkpoint in {folder} was written by {state['workers']} workers and cannot be continued by "
                f"{self.world}: ZeRO keeps a part of the optimizer on each.\n"
                f"       Set training.workers to {state['workers']}, or remove the stage's folder to start it over."
            )
        self.engine.load_checkpoint(str(folder), tag=TAG)
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.engine.module.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            if self.rank == 0:
                state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return state


def deepspeed_config(training: TrainingSection, *, bfloat16: bool) -> dict[str, Any]:
    """What DeepSpeed is told. A step is one backward pass: gradient accumulation would cut the batch's negatives."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts nothing: batches are made by the plan
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_gradient_norm,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {"stage": training.zero_stage},
        # torch's AdamW needs no compiled kernel
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 0.0, "weight_decay": training.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


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
        raise SetupError(f"DeepSpeed cannot be imported: {error}. pip install 'deepspeed>=0.19.8,<0.20'") from None
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__[CPU_EXTENSION] = False
    return deepspeed
