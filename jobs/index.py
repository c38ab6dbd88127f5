"""The run's model makes its documents searchable: POST /v1/search of the endpoint, and its page.

python jobs/index.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.serving.indexing import index

    index(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
