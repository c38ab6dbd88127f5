"""The DeepSpeed ZeRO engine: the only file that imports deepspeed."""

import json
import os
import shutil
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

from qzhou.config.loading import merged
from qzhou.config.training import TrainingSection
from qzhou.encoder import EmbeddingModel
from qzhou.errors import SetupError, TrainingError
from qzhou.training.engine import prepare_model, token_budgets
from qzhou.training.sharding import Ids

TAG, UNIVERSAL_TAG = "deepspeed", "universal"
STATE_FILE = "state.json"
CPU_EXTENSION = "deepspeed_shm_comm"


class DeepSpeedEngine:
    """An engine with DeepSpeed ZeRO over the ranks of the process group, which must be there already."""

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Any,
        training: TrainingSection,
        device: torch.device,
        *,
        checkpoint: Path | None = None,
    ) -> None:
        """Shard a model over the ranks; the dtype of its weights, float32 or bfloat16, decides the dtype to train in.

        ``checkpoint`` is the folder that :meth:`load` will read: ZeRO must know beforehand
        whether the same number of ranks wrote it.

        Raises:
            TrainingError: Settings with which weights would be lost.
        """
        deepspeed = _import_deepspeed(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.micro_batch_tokens, self.activation_tokens = token_budgets(training, device)
        self.device, self._zero_stage = device, training.zero_stage
        self._is_offloaded = training.offload_optimizer
        # stage 0 shards nothing: any number of ranks reads the same file
        self._resharded = (
            training.zero_stage > 0 and checkpoint is not None and _state(checkpoint)["workers"] != self.world
        )
        self._collate = prepare_model(model, tokenizer, training)
        self.packed = self._collate.packed
        is_bfloat16 = next(model.parameters()).dtype == torch.bfloat16
        if is_bfloat16 and training.zero_stage == 0:
            raise TrainingError(
                "training.zero_stage is 0 and the model computes in bfloat16: DeepSpeed then returns weights rounded "
                "to 16 bits. Set it to 1, which keeps them in float32."
            )
        # DeepSpeed's own group waits ten minutes, whatever the first one allows: copies of data may differ by more
        dist.barrier()
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=[one for one in model.parameters() if one.requires_grad],
            config=deepspeed_config(training, bfloat16=is_bfloat16, universal=self._resharded),
        )

    @property
    def later_bytes(self) -> int:
        """Memory of this rank that the first optimizer step takes and keeps, or needs for a moment.

        The two moments of Adam, of which a loaded checkpoint has made both, and the gradient
        in float32; ZeRO shards them.
        """
        if self._is_offloaded:
            return 0
        weights: int = sum(one.numel() for one in self.engine.module.parameters() if one.requires_grad)
        each = 4 if self.engine.optimizer.state else 12
        return each * weights // (self.world if self._zero_stage else 1)

    def forward(self, ids: Sequence[Ids], soft_mask_weight: float | None = None) -> Tensor:
        """Vectors [S, D] of S texts."""
        vectors: Tensor = self.engine(self._collate(ids, soft_mask_weight))
        return vectors

    def backward(self, value: Tensor, *, last: bool) -> None:
        """One of the backward passes of a step."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(value)

    def update(self, learning_rate: float) -> float:
        """The gradient norm before clipping, after one optimizer step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path, step: int) -> None:
        """Write this rank's part of a checkpoint; rank 0 also writes which step and how many ranks it is of."""
        self.engine.save_checkpoint(str(folder), tag=TAG)
        if self.rank == 0:
            state = {"step": step, "workers": self.world, "zero_stage": self._zero_stage}
            (folder / STATE_FILE).write_text(json.dumps(state), "utf-8")

    def load(self, folder: Path) -> int:
        """The step of a checkpoint, also of one that another number of ranks wrote.

        Raises:
            TrainingError: Another ZeRO stage wrote the checkpoint, or DeepSpeed cannot convert it to this number of
                ranks.
        """
        state = _state(folder)
        if state["zero_stage"] != self._zero_stage:
            raise TrainingError(
                f"the checkpoint in {folder} was written with training.zero_stage {state['zero_stage']}, and it is "
                f"{self._zero_stage} now. Set it to {state['zero_stage']} to go on, or remove the stage's folder to "
                "start it over."
            )
        if self._resharded:
            with _universal(folder, state["workers"], self.world) as converted:
                self.engine.load_checkpoint(str(converted), tag=UNIVERSAL_TAG)
                dist.barrier()  # no rank removes what another still reads
        else:
            self.engine.load_checkpoint(str(folder), tag=TAG)
        return int(state["step"])

    def full_state(self) -> dict[str, Tensor]:
        """All weights in float32 on the CPU, complete on rank 0."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.engine.module.named_parameters():
            full = (safe_get_full_fp32_param if parameter.requires_grad else _gathered_weight)(parameter)
            if self.rank == 0:
                state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return state


def deepspeed_config(training: TrainingSection, *, bfloat16: bool, universal: bool = False) -> dict[str, Any]:
    """The settings of DeepSpeed.

    A step may have several backward passes (gradient cache), and the engine itself marks
    the last. So no step counts as gradient accumulation, which would cut the negatives of a
    batch. ``universal`` says that the checkpoint to load was converted from another number
    of ranks. What the recipe's ``training.deepspeed`` says comes last.
    """
    # torch's AdamW needs no compiled kernel
    adamw = {"lr": 0.0, "weight_decay": training.weight_decay, "torch_adam": True}
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    ours = {
        # counts nothing: the batch plan makes the batches
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_gradient_norm,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "AdamW", "params": adamw},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return merged(ours, training.deepspeed)


def _state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / STATE_FILE).read_text("utf-8")))


def _gathered_weight(parameter: Tensor) -> Tensor:
    """The whole of a frozen weight, which ZeRO-3 shards too."""
    if not hasattr(parameter, "ds_id"):
        return parameter
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


@contextmanager
def _universal(folder: Path, before: int, now: int) -> Iterator[Path]:
    """A copy of a checkpoint that any number of ranks can load, removed after the block.

    The first rank of each node converts the checkpoint, which it reads whole.
    """
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    own = tempfile.mkdtemp(prefix="universal-") if is_first else ""
    failure = _convert(folder, Path(own)) if own else ""
    results: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
    dist.all_gather_object(results, (own, failure))
    if failures := [failure for _, failure in results if failure]:
        raise TrainingError(
            f"the checkpoint in {folder} was written by {before} workers, and DeepSpeed cannot convert it for {now}: "
            f"{failures[0]}\n       Set training.workers to {before} to go on, or remove the stage's folder to start "
            "it over."
        )
    places = [place for place, _ in results if place and Path(place).exists()]
    try:
        yield Path(own or places[0])
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def _convert(folder: Path, target: Path) -> str:
    """The last line of DeepSpeed's error, empty if the universal checkpoint was written.

    DeepSpeed's converter is a program, so it runs in a process of its own.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--inject_missing_state", "--input_folder", str(folder / TAG)]
    command += ["--output_folder", str(target / UNIVERSAL_TAG)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (target / "latest_universal").write_text(UNIVERSAL_TAG, "utf-8")
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["no output"])[-1]


def _import_deepspeed(device: torch.device) -> Any:
    """The package deepspeed; on a CPU without its compiled extension.

    The extension (all-reduce through shared memory) is compiled with a C++ compiler for up
    to a minute at first use. Without it DeepSpeed reduces through gloo: a step of MiniLM on
    two ranks takes 2.0 s either way, and a machine without a compiler can train.

    DeepSpeed's autotuner, which nothing here uses, would load MLflow wherever it is installed:
    half of the time that the import takes. It does without, and so MLflow is hidden from it.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        with _hidden("mlflow"):
            import deepspeed
            import deepspeed.ops
    except ImportError as error:
        raise SetupError(f"DeepSpeed cannot be imported: {error}. pip install 'deepspeed>=0.19.8,<0.20'") from None
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__[CPU_EXTENSION] = False
    return deepspeed


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """A block in which a package that is not loaded yet cannot be imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python is told that a module is not there
    try:
        yield
    finally:
        del sys.modules[package]
