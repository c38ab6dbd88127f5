"""What every job script does: recipe from the command line, errors to messages and exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from qzhou.errors import QzhouError, RecipeError
from qzhou.recipe import Recipe, load_recipe

USAGE = """usage: {job} RECIPE [--dry-run] [--SECTION.SETTING VALUE ...]

  RECIPE       a TOML file, e.g. recipes/quickstart.toml
  --dry-run    print the resolved recipe as JSON and stop; loads neither torch nor ray
  --help       with a recipe: every setting that can be overridden

{about}"""


def main(stage: Callable[[Recipe], None], about: str, arguments: Sequence[str] | None = None) -> None:
    """Run a stage as a job and end the process.

    Exit status: 0 done, 1 a failure, 2 a mistake of the user's (see :mod:`qzhou.errors`), 130 interrupted.

    Args:
        stage: Does the work; imports what is heavy only when called.
        about: The job script's docstring, shown by ``--help``.
        arguments: Instead of the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        recipe, dry = _recipe(words, about)
        if dry:
            print(recipe.model_dump_json(indent=2))
        else:
            stage(recipe)
    except QzhouError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr, flush=True)
        sys.exit(130)


def _recipe(words: list[str], about: str) -> tuple[Recipe, bool]:
    dry = "--dry-run" in words
    rest = [word for word in words if word != "--dry-run"]
    if not rest or rest[0] in {"-h", "--help"}:
        print(USAGE.format(job=sys.argv[0], about=about.strip()))
        sys.exit(0)
    if rest[0].startswith("-"):
        raise RecipeError(f"command line: the recipe comes first, before {rest[0]}")
    return load_recipe(rest[0], rest[1:]), dry
