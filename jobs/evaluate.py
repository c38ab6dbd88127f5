"""Held-out tasks judged by mteb: BM25, backbone, stage 1, stage 2; writes the report.

python jobs/evaluate.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.job import main
from qzhou.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.evaluation.pipeline import evaluate

    evaluate(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
