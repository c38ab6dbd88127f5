"""Typed settings from TOML, and the messages for settings that cannot be."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qzhou.config.describe import kinds_of, section_of
from qzhou.config.section import Section
from qzhou.errors import RecipeError

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what the shell takes as a name
SECRET_IN_URL = re.compile(
    r"\w+://([^/\s@]*:[^/\s@]+@|\S*[?&](key|\w*(access|api|secret)_?key\w*|[\w-]*(secret|token|password)\w*)=)",
    re.IGNORECASE,
)
UNQUOTED = re.compile(r"\s*([-+]?[0-9.][0-9_.eE+-]*|true|false)\s*")  # numbers and truth values of TOML
PLACES = {"recipe": "recipes/", "experiment": "recipes/experiments/"}
FOLLOWING = {"too_short", "default_factory_not_called"}  # types of pydantic's errors
SHOWN_NAMES = 10  # of all that are known, where none is near
Parsed = TypeVar("Parsed", bound=Section)


def read_toml(path: str | Path, kind: str) -> dict[str, Any]:
    """The content of a TOML file; ``kind`` names it in errors, a recipe or an experiment.

    Raises:
        RecipeError: The file is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"{path}: no such {kind} file. Those of this project are in {PLACES[kind]}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from None


def refuse_quoted_numbers(content: Mapping[str, Any], kind: type[Section], *, place: str) -> None:
    """Refuse numbers and truth values that a file holds as texts: ``steps = "20"``.

    On a command line everything is text, so this is for files alone.

    Raises:
        RecipeError: There is one; ``place`` names the file.
    """
    if quoted := list(_quoted(content, kind)):
        raise RecipeError("\n       ".join(f"{place}: {one}" for one in quoted))


def _quoted(content: Mapping[str, Any], kind: type[Section], table: str = "") -> Iterator[str]:
    for name, value in content.items():
        if name not in kind.model_fields:
            continue  # refused later, with the nearest known name
        annotation = kind.model_fields[name].annotation
        inner, _ = section_of(annotation)
        if inner is not None:
            tables = value if isinstance(value, list) else [value]
            for one in tables:
                yield from _quoted(one, inner, f"{table}{name}.") if isinstance(one, Mapping) else ()
        elif isinstance(value, str) and UNQUOTED.fullmatch(value) and kinds_of(annotation) <= {int, float, bool}:
            yield f"{table}{name}: '{value}' stands in quotes; write {name} = {value}"


def parse_section(kind: type[Parsed], content: Mapping[str, Any], *, place: str) -> Parsed:
    """Validate what is given as nested mappings; ``place`` names it in errors.

    Raises:
        RecipeError: A key is unknown, a value has the wrong type, is a secret, or settings contradict each other.
    """
    if secrets := list(_secrets(content)):
        raise RecipeError("\n       ".join(f"{place}: {one}" for one in secrets))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        # A refused dataset or section leads to further errors, which are not mistakes of the user.
        causes = [one for one in problems if one["type"] not in FOLLOWING] or problems
        raise RecipeError("\n       ".join(f"{place}: {_explain(one, kind)}" for one in causes)) from None


def _secrets(content: Any, key: str = "") -> Iterator[str]:
    """A line for each value that looks like a secret, without the value: settings are kept with a run and shown."""
    if isinstance(content, Mapping | list | tuple):
        inside = content.items() if isinstance(content, Mapping) else enumerate(content)
        for name, value in inside:
            yield from _secrets(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(content, str) and key.endswith("_env") and content and not VARIABLE.fullmatch(content):
        yield (
            f"{key}: what stands there (not shown: it may be a secret) is no name of an environment variable. Give the "
            "name, like MY_API_KEY, and keep the key itself in that variable"
        )
    elif isinstance(content, str) and SECRET_IN_URL.search(content):
        yield (
            f"{key}: the address (not shown) holds a password or key, and recipes are kept with the run and shown in "
            "the list of jobs. Take it out: keys come from the environment, as your cloud's tools read them"
        )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others in their place."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return found


def _explain(problem: Any, kind: type[Section]) -> str:
    """One line for one pydantic error: dotted key, what is wrong, what would be right."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such setting{nearest(str(location[-1]), _keys_beside(location, kind))}"
    if problem["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def nearest(key: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the one that may be meant, or some of those that there are."""
    renamed = ".".join(_renamed().get(part, part) for part in key.split("."))
    close = [renamed] if renamed in known else difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
    return f". Known: {', '.join(known[:SHOWN_NAMES])}{more}"


@cache
def _renamed() -> dict[str, str]:
    """Old name of a setting -> its name now."""
    return tomllib.loads(resources.files("qzhou.config").joinpath("renamed.toml").read_text("utf-8"))


def _keys_beside(location: Sequence[str | int], section: type[Section]) -> list[str]:
    """The keys that the table at ``location`` of a section knows."""
    for part in location[:-1]:
        if isinstance(part, str):
            section = section_of(section.model_fields[part].annotation)[0] or section
    return list(section.model_fields)
