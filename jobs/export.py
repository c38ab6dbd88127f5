"""The trained model as a sentence-transformers folder, checked against the encoder.

python jobs/export.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.export.pipeline import export

    export(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
