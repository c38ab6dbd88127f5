"""An LLM paraphrases, augments, writes hard negatives and asks documents questions.

python jobs/synthesize.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]

jobs/plan.py RECIPE --stage synthesis prints the requests and their cost, and sends nothing.
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    """Run the synthesis stage."""
    from qzhou.synthesis.pipeline import synthesize

    synthesize(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
