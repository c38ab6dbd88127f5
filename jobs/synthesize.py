"""An LLM paraphrases, augments and writes hard negatives.

python jobs/synthesize.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.job import main
from qzhou.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.synthesis.pipeline import synthesize

    synthesize(recipe)


if __name__ == "__main__":
    main(run, __doc__ or "")
