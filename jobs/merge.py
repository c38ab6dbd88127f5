"""Several models merged into one: their weights averaged, or two of them interpolated on a sphere (slerp).

python jobs/merge.py MODEL MODEL ... --into FOLDER [--weights W W ...] [--method average|slerp] [--dry-run]

A MODEL is a sentence-transformers folder, a hub id, package:<import name>/<folder>, or the folder of a run, of which
the last finished model is taken.
"""

import argparse

from qzhou.cli.job import errors_for_people


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--into", required=True, metavar="FOLDER", help="a new folder, local or a URI"
    )
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one for each model; default: equal"
    )
    parser.add_argument("--method", choices=["average", "slerp"], default="average")
    parser.add_argument(
        "--prompts-of", metavar="MODEL", help="whose prompts are kept where the models' differ"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say whether they can be merged, and stop"
    )
    chosen = parser.parse_args()
    with errors_for_people():
        from qzhou.export.merge_models import merge_models

        merge_models(
            chosen.models,
            chosen.into,
            method=chosen.method,
            weights=chosen.weights,
            prompts_of=chosen.prompts_of,
            dry_run=chosen.dry_run,
        )


if __name__ == "__main__":
    main()
