"""Raw datasets to retrieval, pair and classification examples.

python jobs/transform.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.transform.pipeline import transform

    if not recipe.transform.contamination.tasks:
        transform(recipe)
        return
    from qzhou.evaluation.judge.mteb_tasks import task_texts  # mteb takes seconds to load

    transform(recipe, task_texts)


if __name__ == "__main__":
    main(run, __doc__ or "")
