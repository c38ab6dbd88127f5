"""``--check``: everything that a run would stumble over in its first minutes, and what it would take, in five lines."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.errors import QzhouError
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import plan_of
from qzhou.run.models import resolve
from qzhou.transform.reading.discovery import RawInputs, find_inputs
from qzhou.transform.reading.files import unpacked_bytes
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part, reads_together

COUNTED_ROWS = 20_000  # of a dataset; the rest is estimated by bytes
COUNTED_FILES = 24


def checked(recipe: Recipe, command: str) -> str:
    """What was found; files, columns and readers are opened, and models were before.

    Raises:
        DataError: A file, column or reader is missing; names each dataset's first problem.
    """
    raw = find_inputs(recipe)
    rows = {one.name: _rows(raw, one) for one in recipe.datasets}
    counted = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    judged = [one.name for one in recipe.datasets if one.eval_fraction] + list(recipe.evaluation.tasks)
    synthesis = recipe.synthesis
    asked = [one for model in synthesis.pool for one in model.endpoints] if synthesis.is_on else []
    lines = [
        f"data:      files, columns and readers are there; about {sum(rows.values()):,} rows ({counted})",
        f"model:     {recipe.model.backbone} {_place(recipe.model.backbone)}",
        f"llm:       {', '.join(asked)}, not asked now" if asked else "llm:       none; nothing is written",
        f"judged on: {', '.join(judged)}" if judged else "judged on: nothing: give a dataset an eval_fraction",
        f"takes:     {_time(recipe, sum(rows.values()))}",
    ]
    return "\n".join([*lines, f"next:      {command}"])


def _place(model: str) -> str:
    """Whether a model is on this machine."""
    try:
        is_here = Path(resolve(model)).exists()
    except QzhouError:
        is_here = False
    return "is on this machine" if is_here else "is a name on the hub, which was not asked"


def _rows(raw: RawInputs, dataset: Dataset) -> int:
    """The rows of a dataset, about."""
    files = raw.files[dataset.name]["rows"]
    custom = raw.readers.get(dataset.reader)
    is_one = dataset.reader == "aligned_text" or reads_together(custom)
    looked_at = files if is_one else files[:: max(1, len(files) // COUNTED_FILES)][:COUNTED_FILES]
    part = FilePart(tuple(looked_at), 0, 1 if dataset.reader == "hf" else None)
    found = sum(isinstance(row, dict) for row in islice(read_part(dataset, part, custom), COUNTED_ROWS))
    whole, seen = (max(1, sum(map(unpacked_bytes, some))) for some in (files, looked_at))
    return int(found * whole / seen)


def _time(recipe: Recipe, rows: int) -> str:
    """Minutes on this machine, or on the GPUs that the recipe names, as ``qzhou plan`` estimates them."""
    try:
        plan = plan_of(recipe, PlanOptions(rows=max(1, rows)))
    except QzhouError as error:
        return f"not known: {error}"
    stages = [one for one in plan.stages if one.wall_s >= 1]
    longest = max(stages, key=lambda one: one.wall_s)
    money = f", ${plan.usd:,.0f}" if plan.usd >= 1 else " on this machine"
    return (
        f"about {plan.wall_s / 60:,.0f} minutes{money}, most of it in {longest.name}; `qzhou plan` has the details"
    )
