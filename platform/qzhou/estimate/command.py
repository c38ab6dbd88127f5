"""What ``qzhou plan`` prints."""

import json
from collections.abc import Callable

from rich.console import Console, RenderableType

from qzhou.config.recipe import Recipe
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import plan_of
from qzhou.estimate.tables import as_json, as_text
from qzhou.estimate.training_details import training_details

WIDTH = 150  # where there is no terminal


def print_plan(recipe: Recipe, options: PlanOptions, synthesis_details: Callable[[Recipe], str]) -> None:
    """Print the plan of a run, or the details of one stage.

    ``synthesis_details`` describes the requests of synthesis. It is passed in because only
    that package knows the prompts, and packages of stages do not import each other.

    Raises:
        RecipeError: An option is out of range, or a number of rows is not known.
        DataError: The measured folder is no run, or a stage lacks its input.
        ModelError: The size of the backbone is not known.
    """
    if options.stage == "synthesis":
        print(synthesis_details(recipe), flush=True)
    elif options.stage == "training":
        _print(training_details(recipe, options))
    elif options.json:
        print(json.dumps(as_json(plan_of(recipe, options)), indent=2), flush=True)
    else:
        _print(as_text(plan_of(recipe, options)))


def _print(content: RenderableType) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    console.print(content)
