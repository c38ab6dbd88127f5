"""What ``qzhou plan`` does."""

from __future__ import annotations

import json
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.errors import RecipeError
from qzhou.planning.assumptions import Assumptions, told_on_the_command_line
from qzhou.planning.plan import Plan, plan_of
from qzhou.planning.tables import as_json, shown
from qzhou.planning.target import Target


def print_plan(recipe: Recipe, **asked: Any) -> None:
    """Print a plan for people; see :func:`planned` for the arguments."""
    shown(planned(recipe, **asked))


def print_json(recipe: Recipe, **asked: Any) -> None:
    """Print a plan for machines, in base units."""
    print(json.dumps(as_json(planned(recipe, **asked)), indent=2), flush=True)


def planned(
    recipe: Recipe, *, assume: str = "", utilisation: float | None = None, **asked: Any
) -> Plan:
    """A plan.

    Args:
        recipe: Of the run.
        assume: ``NAME=VALUE,NAME=VALUE``: assumptions that replace the table's.
        utilisation: Short for ``train_utilisation``, as with training's estimate.
        asked: What :class:`~qzhou.planning.target.Target` holds.

    Raises:
        RecipeError: An option is out of range.
    """
    told = told_on_the_command_line(assume) if assume else {}
    if utilisation is not None:
        if not 0 < utilisation <= 1:
            raise RecipeError(
                f"command line: --utilisation is {utilisation:g}; it is a share, above 0 and at most 1"
            )
        told["train_utilisation"] = utilisation
    return plan_of(recipe, Target(**asked), Assumptions.of(told))
