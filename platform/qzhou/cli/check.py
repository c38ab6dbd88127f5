"""``--check``: everything that a run would stumble over in its first minutes, and what it would take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.errors import DataError, QzhouError
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import plan_of
from qzhou.run.models import resolve
from qzhou.transform.preview import preview_of
from qzhou.transform.reading.columns import Row
from qzhou.transform.reading.discovery import RawInputs, find_inputs
from qzhou.transform.reading.files import unpacked_bytes
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part, reads_together
from qzhou.transform.rules.fields import GROUPED_BY

COUNTED_ROWS = 20_000  # of a dataset; the rest is estimated by bytes
COUNTED_FILES = 24
CONVERTED_ROWS = 400  # of them


def checked(recipe: Recipe, command: str) -> str:
    """What was found; files, columns and readers are opened, and models were before.

    Raises:
        DataError: A file, column or reader is missing; names each dataset's first problem.
    """
    raw = find_inputs(recipe)
    found = {one.name: _looked_at(raw, one) for one in recipe.datasets}
    rows = {name: one.total for name, one in found.items()}
    counted = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    judged = [one.name for one in recipe.datasets if one.eval_fraction] + list(recipe.evaluation.tasks)
    synthesis = recipe.synthesis
    asked = [one for model in synthesis.pool for one in model.endpoints] if synthesis.is_on else []
    lines = [
        f"data:      files, columns and readers are there; about {sum(rows.values()):,} rows ({counted})",
        *(f"examples:  {line}" for one in recipe.datasets if (line := _converted(recipe, one, found[one.name]))),
        f"model:     {recipe.model.backbone} {_place(recipe.model.backbone)}",
        f"llm:       {', '.join(asked)}, not asked now" if asked else "llm:       none; nothing is written",
        f"judged on: {', '.join(judged)}" if judged else "judged on: nothing: give a dataset an eval_fraction",
        f"takes:     {_time(recipe, sum(rows.values()))}",
    ]
    return "\n".join([*lines, f"next:      {command}"])


def _place(model: str) -> str:
    return "is on this machine" if _is_here(model) else "is a name on the hub, which was not asked"


def _is_here(model: str) -> bool:
    """Whether a model is on this machine."""
    try:
        return Path(resolve(model)).exists()
    except QzhouError:
        return False


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """Some rows of a dataset, the reasons why others cannot be read, and about how many there are."""

    rows: list[Row]
    rejected: Counter[str]
    total: int
    is_all: bool


def _looked_at(raw: RawInputs, dataset: Dataset) -> _LookedAt:
    files = raw.files[dataset.name]["rows"]
    custom = raw.readers.get(dataset.reader)
    is_one = dataset.reader == "aligned_text" or reads_together(custom)
    looked_at = files if is_one else files[:: max(1, len(files) // COUNTED_FILES)][:COUNTED_FILES]
    part = FilePart(tuple(looked_at), 0, 1 if dataset.reader == "hf" else None)
    # the rows of one example mostly stand together, and so the first ones are taken
    sample = _Sample(first=dataset.rule in GROUPED_BY)
    for row in islice(read_part(dataset, part, custom), COUNTED_ROWS):
        sample.add(row)
    rows = [row for row in sample.rows if isinstance(row, dict)]
    rejected = Counter(row.reason for row in sample.rows if not isinstance(row, dict))
    whole, seen = (max(1, sum(map(unpacked_bytes, some))) for some in (files, looked_at))
    # of the hub, one part of one dataset is read
    is_all = dataset.reader != "hf" and len(looked_at) == len(files) and sample.count == len(sample.rows)
    return _LookedAt(rows, rejected, int(sample.readable * whole / seen), is_all)


class _Sample:
    """Up to CONVERTED_ROWS of a stream of rows: the first ones, or some from its beginning to its end."""

    def __init__(self, *, first: bool) -> None:
        self._is_first, self._stride, self._kept = first, 1, list[Any]()
        self.count = self.readable = 0

    def add(self, row: Any) -> None:
        if self.count % self._stride == 0 and not (self._is_first and self.count >= CONVERTED_ROWS):
            self._kept.append(row)
            if len(self._kept) >= 2 * CONVERTED_ROWS:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self.count += 1
        self.readable += isinstance(row, dict)

    @property
    def rows(self) -> list[Any]:
        kept, number = len(self._kept), min(len(self._kept), CONVERTED_ROWS)
        return [self._kept[place * kept // number] for place in range(number)]


def _converted(recipe: Recipe, dataset: Dataset, found: _LookedAt) -> str:
    """What becomes of the rows; empty for judgements, whose texts lie elsewhere.

    Raises:
        DataError: They are all rows, and none becomes an example.
    """
    if dataset.rule == "qrels":
        return ""
    more = ""
    if dataset.max_tokens and not _is_here(recipe.model.backbone):
        more = "; tokens were not counted, since the model is not here"
        dataset = dataset.model_copy(update={"max_tokens": None})
    made = preview_of(dataset, found.rows, found.rejected, model=recipe.model, max_chars=recipe.transform.max_chars)
    reasons = f"; dropped: {made.reasons}" if made.dropped else ""
    if not made.kept and found.is_all:
        raise DataError(f"dataset '{dataset.name}': none of its {made.read:,} rows becomes an example{reasons}")
    return (
        f"{dataset.name}: of {made.read:,} rows that were looked at, {made.kept:,} become examples{reasons}{more}"
    )


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
