"""Tasks judged by mteb: BM25, backbone, stage 1, stage 2 and further models; writes the comparison and the report.

python jobs/evaluate.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
                        [--fail-below TASK=SCORE[,TASK=SCORE ...]] [--no-worse-than RUN]

With --fail-below or --no-worse-than (another run's folder or name) it ends with status 1 where stage 2 is worse.
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def thresholds(text: str) -> dict[str, float]:
    from qzhou.evaluation.gate import thresholds_of

    return thresholds_of(text)


def run(
    recipe: Recipe, fail_below: dict[str, float] | None = None, no_worse_than: str = ""
) -> None:
    from qzhou.evaluation.gate import Gate
    from qzhou.evaluation.pipeline import evaluate

    evaluate(recipe, Gate(fail_below or {}, no_worse_than) if fail_below or no_worse_than else None)


if __name__ == "__main__":
    main(run, __doc__ or "", options={"--fail-below": thresholds, "--no-worse-than": str})
