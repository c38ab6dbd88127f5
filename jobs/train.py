"""Both training stages: retrieval first, then everything.

python jobs/train.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
torchrun --nproc-per-node 8 jobs/train.py recipes/quickstart.toml ...     without Ray, on the ranks of torchrun

jobs/plan.py RECIPE --stage training prints what it would take.
"""

import os

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    """Train under torchrun if it started this process, else on Ray."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it for every rank
        from qzhou.training import torchrun

        torchrun.train(recipe)
    else:
        from qzhou.training.pipeline import train

        train(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
