"""Which models are judged, and what they are called. Loads nothing."""

from __future__ import annotations

import re

from qzhou.config.recipe import Recipe
from qzhou.evaluation.messages import Candidate

BM25, BACKBONE, STAGE1, STAGE2 = "bm25", "backbone", "stage1", "stage2"
OWN = (BM25, BACKBONE, STAGE1, STAGE2)


def candidates(recipe: Recipe) -> list[Candidate]:
    """BM25, the untouched backbone, both stages, and the recipe's further models, in the order of tables."""
    own = [
        Candidate(BACKBONE),
        Candidate(STAGE1, "training/stage1/model", trained=True),
        Candidate(STAGE2, "training/stage2/model", trained=True),
    ]
    found = [*([Candidate(BM25)] if recipe.evaluation.bm25 else []), *own]
    for spec in recipe.evaluation.models:
        found.append(Candidate(_named(spec, {one.name for one in found}), spec))
    return found


def _named(spec: str, taken: set[str]) -> str:
    """A short name: the model behind an URL, the run of a run's model, or the end of a path; a number makes it the only
    one.
    """
    parts = [part for part in re.split(r"[/#:]", spec.rstrip("/")) if part]
    parts = parts[:-1] if parts[-1:] == ["model"] and len(parts) > 1 else parts  # runs/NAME/model
    name = re.sub(r"[^A-Za-z0-9._-]", "-", parts[-1] if parts else "").strip(".") or "model"
    number, taken = 2, {one.lower() for one in taken}  # some disks take both for one name
    while name.lower() in taken:
        name = f"{name.removesuffix(f'-{number - 1}')}-{number}"
        number += 1
    return name
