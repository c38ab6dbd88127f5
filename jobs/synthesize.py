"""An LLM paraphrases, augments, writes hard negatives and asks documents questions.

python jobs/synthesize.py recipes/quickstart.toml [--estimate] [--dry-run] [--SECTION.SETTING VALUE ...]

--estimate prints the expected requests, tokens and cost, with an example of each kind, and sends nothing.
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.synthesis.pipeline import synthesize

    synthesize(recipe)


def estimate(recipe: Recipe) -> None:
    from qzhou.synthesis.pipeline import print_estimate

    print_estimate(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "", instead={"--estimate": estimate})
