"""Whether the recipe is the one that the run's models were made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.errors import RecipeError
from qzhou.run.run import MANIFEST, Run

# Stage -> where its manifest has settings ("": at its top), and the section of the recipe that they come from
SECTIONS: Mapping[str, Mapping[str, str]] = {
    "transform": {"transform": "transform"},
    "synthesis": {"": "synthesis"},
    "mining": {"mining": "mining"},
    "training/stage1": {"training": "training", "stage": "training.stage1", "model": "model"},
    "training/stage2": {"training": "training", "stage": "training.stage2", "model": "model"},
}
# of encoding alone, or told otherwise there
NO_MATTER = ("encoding_dtype", "compiled", "saved_dtype", "models")


def refuse_other_training(recipe: Recipe) -> None:
    """Refuse to judge models under settings that did not make them: the report would show those as what was done.

    Raises:
        RecipeError: A setting of a stage is another one now; names it, both values and the way out.
    """
    run, now = Run.at(recipe), json.loads(recipe.model_dump_json())
    for stage, sections in SECTIONS.items():
        place = run.folder / stage
        if not place.exists(MANIFEST):
            continue
        made = run.manifest(stage).settings
        for name, section in sections.items():
            current: Any = now
            for part in section.split("."):
                current = current[part]
            before = made.get(name, {}) if name else made
            for setting, old, new in _changed(before, current, f"{section}."):
                raise RecipeError(
                    f"{setting} is {json.dumps(new)}, and {place.uri} was made with {json.dumps(old)}. Make it again "
                    "first (jobs/pipeline.py does all that is needed), or leave the setting as it was."
                )


def _changed(made: Any, now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Settings that a stage was made with and that are others now; those that only its pace depends on are not among
    the former.
    """
    for key, before in made.items():
        if key in NO_MATTER:
            continue
        after = now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed(before, after, f"{prefix}{key}.")
        elif key in now and json.loads(json.dumps(before)) != after:
            yield prefix + key, before, after
