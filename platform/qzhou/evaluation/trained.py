"""Whether the recipe is the one that the run's models were trained with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qzhou.errors import RecipeError
from qzhou.recipe import Recipe
from qzhou.runs import MANIFEST, Run


def refuse_other_training(recipe: Recipe) -> None:
    """Refuse to judge models under settings that did not make them: the report would show those as what was done.

    Raises:
        RecipeError: A setting of training is another one now; names it, both values and the way out.
    """
    run = Run.at(recipe)
    for name in ("stage1", "stage2"):
        stage = f"train/{name}"
        place = run.folder / stage
        if not place.exists(MANIFEST):
            continue
        made = run.manifest(stage).settings
        now = json.loads(recipe.training.model_dump_json())
        changed = [
            *_changed(made.get("training", {}), now, "training."),
            *_changed(made.get("stage", {}), now[name], f"training.{name}."),
        ]
        if changed:
            setting, before, after = changed[0]
            raise RecipeError(
                f"{setting} is {json.dumps(after)}, and {place.uri} was trained with {json.dumps(before)}. Train with "
                "it first (jobs/train.py, or jobs/pipeline.py for all), or leave it as it was."
            )


def _changed(made: Any, now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Settings that a stage was made with and that are others now; those that only its pace depends on are not among
    the former.
    """
    for key, before in made.items():
        after = now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed(before, after, f"{prefix}{key}.")
        elif key in now and json.loads(json.dumps(before)) != after:
            yield prefix + key, before, after
