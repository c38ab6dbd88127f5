"""Both training stages: retrieval first, then everything.

python jobs/train.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.job import main
from qzhou.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.training.pipeline import train

    train(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
