"""What every job script does: recipe from the command line, errors to messages and exit statuses."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from qzhou.config.recipe import Recipe, load_recipe
from qzhou.errors import QzhouError, RecipeError, kind_of
from qzhou.telemetry.events import as_json, check_switch, log_event, print_block

USAGE = """usage: {job} RECIPE [--dry-run] [--SECTION.SETTING VALUE ...]

  RECIPE       a TOML file, e.g. recipes/quickstart.toml
  --dry-run    print the resolved recipe as JSON and stop; loads neither torch nor ray
  --help       with a recipe: every setting that can be overridden

{about}"""

Stage = Callable[..., None]
Instead = Callable[..., None]
Options = Mapping[str, Callable[[str], object]]
NUMBERS = {int: "a whole number, like 1000 or 100_000_000", float: "a number, like 0.4"}


def main(
    stage: Stage,
    about: str,
    arguments: Sequence[str] | None = None,
    instead: Mapping[str, Instead] | None = None,
    options: Options | None = None,
) -> None:
    """Run a stage as a job and end the process.

    Args:
        stage: Does the work; imports what is heavy only when called.
        about: The job script's docstring, shown by ``--help``.
        arguments: Instead of the process's own.
        instead: Flags of the job, and what each does instead of the stage.
        options: Flags with a value, and how its text is read; keyword arguments of the stage, or of what runs instead
            of it, whichever has a parameter of that name.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with errors_for_people():
        asked = {"--dry-run": _show, **(instead or {})}
        given, words = split_options(words, options or {})
        recipe, flags = _recipe(words, about, list(asked))
        if len(flags) > 1:
            raise RecipeError(
                f"command line: {' and '.join(flags)} are different things to do; give one of them"
            )
        work = asked[flags[0]] if flags else stage
        named = stage if work is _show else work
        if strange := next((one for one in given if not _takes(named, one)), None):
            those = [flag for flag, other in asked.items() if _takes(other, strange)]
            raise RecipeError(f"command line: {_flag(strange)} belongs to {', '.join(those)}")
        work(recipe, **({} if work is _show else given))


@contextmanager
def errors_for_people() -> Iterator[None]:
    """End the process with one message where the block raises what was raised on purpose.

    Exit status: 1 a failure, 2 a mistake of the user's (see :mod:`qzhou.errors`), 130 interrupted.
    """
    try:
        check_switch()
        yield
    except QzhouError as error:
        _say_error(
            f"error: {error}", "failed", kind=kind_of(error).__name__, exit_status=error.exit_status
        )
        sys.exit(error.exit_status)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _say_error(
            "interrupted; the same command goes on from what is finished",
            "interrupted",
            exit_status=130,
        )
        sys.exit(130)
    except (
        Exception
    ) as error:  # a defect: people get the traceback, and a collected log the place of it
        if as_json():
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            _say_error("error: unexpected", "crashed", kind=type(error).__name__, where=where)
        raise


def say_what_to_do_next(recipe: Recipe, folder: str) -> None:
    """Where the results of a whole run are, and how its model is served."""
    serving = recipe.serving
    block = f"""model:   {folder}/model
report:  {folder}/report.html
serve it:  make serve RECIPE={shlex.quote(sys.argv[1])}        and then, in another terminal:
  curl http://{serving.host}:{serving.port}/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{{"model": "{recipe.run.name}", "input": "Return the sum of the elements."}}'"""
    print_block(
        block, "pipeline", "finished", model=f"{folder}/model", report=f"{folder}/report.html"
    )


def _say_error(line: str, event: str, **fields: object) -> None:
    if as_json():
        job = Path(sys.argv[0]).stem
        line = f"{job}: {line.removeprefix('error: ')}"
    log_event(line, event, level="error", stream=sys.stderr, **fields)


def split_options(words: Sequence[str], options: Options) -> tuple[dict[str, object], list[str]]:
    """The options' values by keyword, and the other words.

    Raises:
        RecipeError: An option stands there twice, or has no value, or one that cannot be read.
    """
    given: dict[str, object] = {}
    others, following = [], iter(words)
    for word in following:
        flag, equals, text = word.partition("=")
        if flag not in options:
            others.append(word)
            continue
        text = text if equals else next(following, "")
        keyword = flag.removeprefix("--").replace("-", "_")
        if keyword in given:
            raise RecipeError(f"command line: {flag} stands there twice; give it once")
        if not text or text.startswith("--"):
            raise RecipeError(f"command line: {flag} has no value")
        try:
            given[keyword] = options[flag](text)
        except ValueError as error:
            wanted = next((what for kind, what in NUMBERS.items() if kind is options[flag]), "")
            why = f"is '{text}', and it wants {wanted}" if wanted else str(error)
            raise RecipeError(f"command line: {flag} {why}") from None
    return given, others


def one_of(*names: str) -> Callable[[str], str]:
    """A reader of options that lets these names pass."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"is '{text}', and it is one of {', '.join(names)}")
        return text

    return read


def _takes(work: Callable[..., None], keyword: str) -> bool:
    parameters = inspect.signature(work).parameters
    return keyword in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _flag(keyword: str) -> str:
    return "--" + keyword.replace("_", "-")


def _show(recipe: Recipe) -> None:
    print(recipe.model_dump_json(indent=2))


def _recipe(words: list[str], about: str, known: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe, and which of the known flags stand on the command line."""
    flags = [flag for flag in known if flag in words]
    rest = [word for word in words if word not in flags]
    if flags and not rest:
        raise RecipeError(f"command line: {flags[0]} wants a recipe before it")
    if not rest or rest[0] in {"-h", "--help"}:
        print(USAGE.format(job=sys.argv[0], about=about.strip()))
        sys.exit(0)
    if rest[0].startswith("-"):
        raise RecipeError(f"command line: the recipe comes first, before {rest[0]}")
    return load_recipe(rest[0], rest[1:]), flags
