"""A teacher's embeddings and exact search find hard negatives.

python jobs/mine.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.mining.pipeline import mine

    mine(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
