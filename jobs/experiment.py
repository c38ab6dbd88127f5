"""An experiment: variants of one recipe, each with several seeds, on Ray Tune; a table and a plot of what came out.

python jobs/experiment.py recipes/experiments/eta.toml [--dry-run] [--recipe RECIPE] [--seeds K ...]
                          [--SECTION.SETTING VALUE ...]

The same command goes on where an earlier one ended. Finished stages are shared by all trials that make them alike.
"""

import argparse
import os

from qzhou.cli.job import errors_for_people


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="a TOML file of recipes/experiments/, or your own"
    )
    parser.add_argument("--recipe", default="", help="instead of the one that the experiment names")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], metavar="K", help="instead of its own"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the recipe of every variant, and stop"
    )
    chosen, settings = parser.parse_known_args()
    with errors_for_people():
        from qzhou.experiments.settings import load_experiment

        plan = load_experiment(
            chosen.experiment, settings, recipe=chosen.recipe, seeds=chosen.seeds
        )
        print(plan, flush=True)
        if not chosen.dry_run:
            # trials say the same, and each line counts
            os.environ.setdefault("RAY_DEDUP_LOGS", "0")
            from qzhou.experiments.pipeline import run_experiment

            run_experiment(plan)


if __name__ == "__main__":
    main()
