"""Both training stages: retrieval first, then everything.

python jobs/train.py recipes/quickstart.toml [--estimate] [--dry-run] [--SECTION.SETTING VALUE ...]
torchrun --nproc-per-node 8 jobs/train.py recipes/quickstart.toml ...     without Ray, on the ranks of torchrun

--estimate prints tokens, FLOPs, GPU hours and memory on 8, 32 and 64 GPUs, and trains nothing. With it:
  --gpu A100, H100, H200, ...   default: H100
  --utilisation SHARE           of the GPU's peak that training reaches; default: 0.4
  --mean-query-tokens N         default: what the run's examples say, else 40
  --mean-document-tokens N      default: what the run's examples say, else 200
"""

import os
from typing import Any

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe

OPTIONS = {
    "--gpu": str,
    "--utilisation": float,
    "--mean-query-tokens": float,
    "--mean-document-tokens": float,
}


def run(recipe: Recipe) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it for every rank
        from qzhou.training import torchrun

        torchrun.train(recipe)
    else:
        from qzhou.training.pipeline import train

        train(recipe)


def estimate(recipe: Recipe, **assumed: Any) -> None:
    from qzhou.training.estimate import print_estimate

    print_estimate(recipe, **assumed)


if __name__ == "__main__":
    main(run, __doc__ or "", instead={"--estimate": estimate}, options=OPTIONS)
