"""The models that an evaluation scores, by their names in tables. Loads nothing heavy."""

import re
from dataclasses import dataclass

from qzhou.config.recipe import Recipe
from qzhou.run.files import MODELS_OF_STAGES, TRAINING_STAGES

BM25, BACKBONE, STAGE1, STAGE2 = "bm25", "backbone", "stage1", "stage2"
OWN_MODELS = (BM25, BACKBONE, STAGE1, STAGE2)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to score.

    Attributes:
        name: The name in tables and file names.
        source: What loads it: a name like a backbone's, or a URL. For a model of this run, its path in the run folder.
        trained: Whether this run trained it.
    """

    name: str
    source: str = ""
    trained: bool = False


def models_to_score(recipe: Recipe) -> list[ModelSpec]:
    """BM25, the backbone, the stages that train, and ``evaluation.models``, in the tables' order."""
    found = [ModelSpec(BM25)] if recipe.evaluation.bm25 else []
    found.append(ModelSpec(BACKBONE))
    for stage in recipe.training.stages:
        found.append(ModelSpec(stage, MODELS_OF_STAGES[TRAINING_STAGES[stage]], trained=True))
    for source in recipe.evaluation.models:
        found.append(ModelSpec(_short_name(source, {one.name for one in found}), source))
    return found


def _short_name(source: str, taken: set[str]) -> str:
    """A URL's model, the run of its model, or a path's end; numbered where it is taken."""
    parts = [part for part in re.split(r"[/#:]", source.rstrip("/")) if part]
    if parts[-1:] == ["model"] and len(parts) > 1:
        parts = parts[:-1]  # runs/NAME/model is called NAME
    name = re.sub(r"[^A-Za-z0-9._-]", "-", parts[-1] if parts else "").strip(".") or "model"
    # Names become file names, and some disks ignore case.
    taken = {one.lower() for one in taken}
    number = 2
    while name.lower() in taken:
        name = f"{name.removesuffix(f'-{number - 1}')}-{number}"
        number += 1
    return name
