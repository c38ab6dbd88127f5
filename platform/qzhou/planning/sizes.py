"""How many rows each dataset has on its way: raw, kept, held out, written by an LLM, trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Task
from qzhou.errors import RecipeError
from qzhou.planning.assumptions import Assumptions
from qzhou.planning.target import Target


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRows:
    """One dataset. Figures are expectations, and need not be whole.

    Attributes:
        raw: Rows that the transform reads.
        kept: Training examples that it writes.
        held_out: Examples that it holds out.
        requests: To an LLM.
        new: Examples that an LLM writes; negatives for examples that are there add none.
    """

    name: str
    task: Task
    raw: float
    kept: float
    held_out: float
    requests: float = 0.0
    new: float = 0.0

    @property
    def trained(self) -> float:
        return self.kept + self.new


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a finished run's transform made of a dataset: ``available`` are its examples before ``max_rows``."""

    raw: int
    available: float
    kept: float
    held_out: float


def rows_of(
    recipe: Recipe, target: Target, assumed: Assumptions, found: Mapping[str, Found] | None = None
) -> list[DatasetRows]:
    """The rows of every dataset of a recipe.

    Args:
        found: What a finished run made of datasets of the same names.

    Raises:
        RecipeError: How many raw rows a dataset has is said nowhere, or ``--examples`` asks for more than there can be.
    """
    rows = _transformed(recipe, target, assumed, found or {})
    rows = _synthesized(recipe, target, assumed, rows)
    return rows if target.examples is None else _as_many_as(target.examples, rows, recipe)


def _transformed(
    recipe: Recipe, target: Target, assumed: Assumptions, found: Mapping[str, Found]
) -> list[DatasetRows]:
    known = {
        one.name: found.get(one.name) or _from_recipe(one, target, assumed)
        for one in recipe.datasets
    }
    if nowhere := [name for name, one in known.items() if one is None and target.rows is None]:
        raise RecipeError(
            f"how many raw rows '{nowhere[0]}' has is not known: give --rows for all datasets together, or --measured "
            "with the folder of a run that has transformed it"
        )
    share = 1 / len(known)
    raw = {name: one.raw if one else 0.0 for name, one in known.items()}
    total = sum(raw.values())
    if target.rows is not None:  # those of which nothing is known are taken as equally large
        everyone = total and all(known.values())
        raw = {
            name: target.rows * (one / total if everyone else share) for name, one in raw.items()
        }
    return [
        _one(dataset, raw[dataset.name], known[dataset.name], assumed)
        for dataset in recipe.datasets
    ]


def _from_recipe(dataset: Dataset, target: Target, assumed: Assumptions) -> Found | None:
    """``max_rows`` says how many examples there will be at most; without ``--rows`` that many are taken to be there."""
    if dataset.max_rows is None or target.rows is not None:
        return None
    raw = round(dataset.max_rows / assumed["kept_share"])
    held_out = assumed["held_out_rows"] if dataset.eval_fraction else 0.0
    return Found(
        raw=raw, available=float(dataset.max_rows), kept=float(dataset.max_rows), held_out=held_out
    )


def _one(dataset: Dataset, raw: float, found: Found | None, assumed: Assumptions) -> DatasetRows:
    if found is None:
        available = raw * assumed["kept_share"] * (1 - dataset.eval_fraction)
        held_out = min(raw, assumed["held_out_rows"]) if dataset.eval_fraction else 0.0
    else:
        growth = raw / found.raw if found.raw else 0.0
        available, held_out = found.available * growth, found.held_out * growth
    kept = available if dataset.max_rows is None else min(available, dataset.max_rows)
    kept = kept if dataset.trains and dataset.rule != "documents" else 0.0
    return DatasetRows(name=dataset.name, task=dataset.task, raw=raw, kept=kept, held_out=held_out)


def _synthesized(
    recipe: Recipe, target: Target, assumed: Assumptions, rows: Sequence[DatasetRows]
) -> list[DatasetRows]:
    settings = recipe.synthesis
    asked = [requests_of(settings, one.name, one.task, one.kept) for one in rows]
    if target.synthetic is not None:
        asked = _shared(target.synthetic, asked, [one.kept for one in rows])
    result = []
    for one, requests in zip(rows, asked, strict=True):
        new = (
            sum(requests.values())
            - requests.get("hard_negative", 0.0)
            - requests.get("query_configuration", 0.0)
        )
        new *= assumed["synthesis_yield"] if new else 0.0
        result.append(dataclasses.replace(one, requests=sum(requests.values()), new=new))
    return result


def requests_of(settings: SynthesisSection, name: str, task: Task, rows: float) -> dict[str, float]:
    """First requests about a dataset by technique, as :func:`qzhou.synthesis.plan.planned` makes them.

    A query takes two, of which the first only says how to ask.
    """
    wanted = settings.is_on and (not settings.datasets or name in settings.datasets)
    if not wanted or not 0 < rows <= settings.max_dataset_rows:
        return {}
    found = {"paraphrase": min(rows, settings.paraphrase_rows) * settings.paraphrases_per_row}
    if task == "retrieval":
        found["augmentation"] = min(rows, settings.augment_rows) * settings.augmentations_per_row
        found["hard_negative"] = (
            min(rows, settings.hard_negative_rows) * settings.hard_negatives_per_row
        )
        queries = min(rows, settings.query_rows) * settings.queries_per_row
        found |= {"query_configuration": queries, "query": queries}
    return {technique: count for technique, count in found.items() if count}


def _shared(
    total: int, asked: Sequence[Mapping[str, float]], kept: Sequence[float]
) -> list[dict[str, float]]:
    """So many requests in all: as the recipe shares them, or where it asks for none, new examples of every dataset."""
    recipes = sum(sum(one.values()) for one in asked)
    if recipes:
        return [{name: count * total / recipes for name, count in one.items()} for one in asked]
    return [{"paraphrase": total * rows / sum(kept)} if rows else {} for rows in kept]


def _as_many_as(examples: int, rows: Sequence[DatasetRows], recipe: Recipe) -> list[DatasetRows]:
    """Kept examples up to what was asked for, in the proportions that they have."""
    new, kept = sum(one.new for one in rows), sum(one.kept for one in rows)
    if not new < examples <= new + sum(one.raw for one in rows) or not kept:
        raise RecipeError(
            f"command line: --examples is {examples:,}, but {sum(one.raw for one in rows):,.0f} raw rows and "
            f"{new:,.0f} examples written by an LLM for the recipe '{recipe.run.name}' cannot give that many; change "
            "--rows, --examples or --synthetic"
        )
    share = (examples - new) / kept
    return [dataclasses.replace(one, kept=one.kept * share) for one in rows]
