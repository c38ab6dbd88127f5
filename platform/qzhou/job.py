"""What every job script does: recipe from the command line, errors to messages and exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from qzhou.errors import QzhouError, RecipeError
from qzhou.recipe import Recipe, load_recipe

USAGE = """usage: {job} RECIPE [--dry-run] [--SECTION.SETTING VALUE ...]

  RECIPE       a TOML file, e.g. recipes/quickstart.toml
  --dry-run    print the resolved recipe as JSON and stop; loads neither torch nor ray
  --help       with a recipe: every setting that can be overridden

{about}"""

Stage = Callable[[Recipe], None]


def main(
    stage: Stage, about: str, arguments: Sequence[str] | None = None, instead: Mapping[str, Stage] | None = None
) -> None:
    """Run a stage as a job and end the process.

    Exit status: 0 done, 1 a failure, 2 a mistake of the user's (see :mod:`qzhou.errors`), 130 interrupted.

    Args:
        stage: Does the work; imports what is heavy only when called.
        about: The job script's docstring, shown by ``--help``.
        arguments: Instead of the process's own.
        instead: Flags of the job, and what each does instead of the stage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        asked = {"--dry-run": _show, **(instead or {})}
        recipe, flags = _recipe(words, about, list(asked))
        (asked[flags[0]] if flags else stage)(recipe)
    except QzhouError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr, flush=True)
        sys.exit(130)


def _show(recipe: Recipe) -> None:
    print(recipe.model_dump_json(indent=2))


def _recipe(words: list[str], about: str, known: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe, and which of the known flags stand on the command line."""
    flags = [flag for flag in known if flag in words]
    rest = [word for word in words if word not in flags]
    if not rest or rest[0] in {"-h", "--help"}:
        print(USAGE.format(job=sys.argv[0], about=about.strip()))
        sys.exit(0)
    if rest[0].startswith("-"):
        raise RecipeError(f"command line: the recipe comes first, before {rest[0]}")
    return load_recipe(rest[0], rest[1:]), flags
