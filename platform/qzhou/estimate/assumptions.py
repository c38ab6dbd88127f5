"""What a plan assumes: ``assumptions.toml``, and the command line's values in its place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from qzhou.errors import RecipeError
from qzhou.estimate.options import PlanOptions

TABLE = Path(__file__).with_name("assumptions.toml")
MAY_BE_ZERO = ("retried_share", "held_out_rows", "prompt_tokens", "named_task_texts")


@dataclasses.dataclass(frozen=True, slots=True)
class Assumption:
    """One value and its source."""

    name: str
    value: float
    unit: str
    kind: Literal["measured", "list", "assumed", "given"]
    source: str


class Assumptions:
    """Values by name. It remembers which were read: those that a plan rests on."""

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        """Read the table, and replace the ``given`` values, those of the command line.

        Raises:
            RecipeError: There is no such assumption, or a value is out of range.
        """
        rows = tomllib.loads(TABLE.read_text("utf-8"))
        self._values = {name: Assumption(name, *row) for name, row in rows.items()}
        self._used: set[str] = set()
        for name, value in (given or {}).items():
            self._values[name] = _replaced(self._values, name, value)

    @classmethod
    def of(cls, options: PlanOptions) -> Assumptions:
        """The table with the values of ``--assume`` and ``--utilisation``."""
        given = parse_assumptions(options.assume) if options.assume else {}
        if options.utilisation is not None:
            given["train_utilisation"] = options.utilisation
        return cls(given)

    def __getitem__(self, name: str) -> float:
        self._used.add(name)
        return self._values[name].value

    @property
    def used(self) -> list[Assumption]:
        """The assumptions that were read, in the order of the table."""
        return [one for name, one in self._values.items() if name in self._used]


def parse_assumptions(text: str) -> dict[str, float]:
    """Name -> value of ``NAME=VALUE,NAME=VALUE``.

    Raises:
        RecipeError: A part has another form.
    """
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise RecipeError(f"command line: --assume: '{part}' is not NAME=NUMBER") from None
    return found


def _replaced(values: Mapping[str, Assumption], name: str, value: float) -> Assumption:
    if name not in values:
        near = difflib.get_close_matches(name, values, n=3, cutoff=0.4)
        meant = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(values)}"
        raise RecipeError(f"command line: --assume names '{name}', which no plan uses; {meant}")
    unit = values[name].unit
    may_be_zero = name in MAY_BE_ZERO or unit.startswith(("s ", "s,", "$"))
    is_share = unit.startswith("share")
    enough = value >= 0 if may_be_zero else value > 0
    if not enough or value > (1 if is_share else math.inf) or value == math.inf:
        limits = ("0 or more" if may_be_zero else "above 0") + " and at most 1" * is_share
        raise RecipeError(f"command line: --assume {name} is {value:g}; it is a number {limits} ({unit})")
    return dataclasses.replace(values[name], value=value, kind="given", source="command line")
