"""Whether the recipe is the one with which the run's models were made."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import RecipeError
from qzhou.run.files import MANIFEST, MINING, SYNTHESIS, TRAINING_STAGE1, TRAINING_STAGE2, TRANSFORM
from qzhou.run.run import Run

# Stage folder -> key of the settings in its manifest ("": all of them) -> the section of the recipe that they are.
SECTIONS: Mapping[str, Mapping[str, str]] = {
    TRANSFORM: {"transform": "transform"},
    SYNTHESIS: {"": "synthesis"},
    MINING: {"mining": "mining"},
    TRAINING_STAGE1: {"training": "training", "model": "model"},
    TRAINING_STAGE2: {"training": "training", "model": "model"},
}
# Settings of encoding alone, and those of which the manifest keeps another form.
IGNORED = ("encoding_dtype", "compiled", "saved_dtype", "models")


def refuse_changed_settings(recipe: Recipe) -> None:
    """Refuse to score models under settings that did not make them, because the report would show wrong settings.

    Raises:
        RecipeError: A stage's setting has changed; names it, both values and the way out.
    """
    run = with_arithmetic(Run.at(recipe), record=False)
    now = json.loads(run.recipe.model_dump_json())
    for stage, sections in SECTIONS.items():
        place = run.folder / stage
        if not place.exists(MANIFEST):
            continue
        settings = run.manifest(stage).settings
        for name, section in sections.items():
            before = settings.get(name, {}) if name else settings
            for setting, old, new in _changed(before, now[section], f"{section}."):
                raise RecipeError(
                    f"{setting} is {json.dumps(new)}, and {place.uri} was made with {json.dumps(old)}. Make it again "
                    "first (`qzhou run` does all that is needed), or leave the setting as it was."
                )


def _changed(before: Any, now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Each changed setting with its old and new value.

    A manifest leaves out the settings that only the speed of its stage depends on, so those
    may change.
    """
    for key, old in before.items():
        if key in IGNORED:
            continue
        new = now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif key in now and json.loads(json.dumps(old)) != new:
            yield prefix + key, old, new
