"""How many rows each dataset has: raw, kept, held out, written by an LLM, trained on."""

import dataclasses
from collections.abc import Mapping, Sequence

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Task
from qzhou.errors import RecipeError
from qzhou.estimate.assumptions import Assumptions
from qzhou.estimate.options import PlanOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRows:
    """The rows of one dataset. They are expectations, and need not be whole.

    Attributes:
        raw: Rows that the transform reads.
        kept: Training examples that the transform writes.
        held_out: Examples that are held out for evaluation.
        requests: To an LLM.
        new: Examples that an LLM writes; negatives for existing examples add none.
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
        """Examples that are trained on."""
        return self.kept + self.new


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformedRows:
    """What the transform of a finished run made of a dataset; ``available``: examples before its ``max_rows``."""

    raw: int
    available: float
    held_out: float


def rows_of(
    recipe: Recipe, options: PlanOptions, assumed: Assumptions, measured: Mapping[str, TransformedRows] = {}
) -> list[DatasetRows]:
    """The rows of a recipe's datasets, in a finished run's proportions if one was measured.

    Raises:
        RecipeError: The raw rows of a dataset are not known, or ``--examples`` asks for more than there can be.
    """
    rows = _transformed(recipe, options, assumed, measured)
    rows = _synthesized(recipe, options, assumed, rows)
    return rows if options.examples is None else _as_many_as(options.examples, rows, recipe)


def _transformed(
    recipe: Recipe, options: PlanOptions, assumed: Assumptions, measured: Mapping[str, TransformedRows]
) -> list[DatasetRows]:
    known = {one.name: measured.get(one.name) or _by_max_rows(one, options, assumed) for one in recipe.datasets}
    raw = {name: one.raw if one else 0.0 for name, one in known.items()}
    unknown = [name for name, one in known.items() if one is None]
    total = sum(raw.values())
    if options.rows is None and unknown:
        raise RecipeError(
            f"how many raw rows '{unknown[0]}' has is not known: give --rows for all datasets together, or --measured "
            "with the folder of a run that has transformed it"
        )
    if options.rows is not None and total and not unknown:
        raw = {name: options.rows * one / total for name, one in raw.items()}
    elif options.rows is not None:  # then all datasets count as equally large
        raw = dict.fromkeys(raw, options.rows / len(raw))
    return [_one(one, raw[one.name], known[one.name], assumed) for one in recipe.datasets]


def _by_max_rows(dataset: Dataset, options: PlanOptions, assumed: Assumptions) -> TransformedRows | None:
    """Rows that a dataset's ``max_rows`` needs; None if unset, or ``--rows`` is given."""
    if dataset.max_rows is None or options.rows is not None:
        return None
    return TransformedRows(
        raw=round(dataset.max_rows / assumed["kept_share"]),
        available=float(dataset.max_rows),
        held_out=assumed["held_out_rows"] if dataset.eval_fraction else 0.0,
    )


def _one(dataset: Dataset, raw: float, known: TransformedRows | None, assumed: Assumptions) -> DatasetRows:
    if known is None:
        kept = raw * assumed["kept_share"] * (1 - dataset.eval_fraction)
        held_out = min(raw, assumed["held_out_rows"]) if dataset.eval_fraction else 0.0
    else:
        growth = raw / known.raw if known.raw else 0.0
        kept, held_out = known.available * growth, known.held_out * growth
    if dataset.max_rows is not None:
        kept = min(kept, dataset.max_rows)
    if not dataset.trains or dataset.rule == "documents":
        kept = 0.0
    return DatasetRows(name=dataset.name, task=dataset.task, raw=raw, kept=kept, held_out=held_out)


def _synthesized(
    recipe: Recipe, options: PlanOptions, assumed: Assumptions, rows: Sequence[DatasetRows]
) -> list[DatasetRows]:
    requests = [requests_of(recipe.synthesis, one.name, one.task, one.kept) for one in rows]
    if options.synthetic is not None:
        requests = _shared(options.synthetic, requests, [one.kept for one in rows])
    result = []
    for one, by_technique in zip(rows, requests, strict=True):
        total = sum(by_technique.values())
        new = total - by_technique.get("hard_negative", 0.0)  # negatives add no example
        new *= assumed["synthesis_yield"] if new else 0.0
        result.append(dataclasses.replace(one, requests=total, new=new))
    return result


def requests_of(settings: SynthesisSection, name: str, task: Task, rows: float) -> dict[str, float]:
    """Technique -> first requests about a dataset, as many as synthesis sends."""
    is_chosen = settings.is_on and (not settings.datasets or name in settings.datasets)
    if not is_chosen or not 0 < rows <= settings.max_dataset_rows:
        return {}
    found = {"paraphrase": min(rows, settings.paraphrase_rows) * settings.paraphrases_per_row}
    if task == "retrieval":
        queries = min(rows, settings.query_rows) * settings.queries_per_row
        negatives = min(rows, settings.hard_negative_rows) * settings.hard_negatives_per_row
        found |= {
            "augmentation": min(rows, settings.augment_rows) * settings.augmentations_per_row,
            "hard_negative": negatives,
            "query": queries,
        }
    return {technique: count for technique, count in found.items() if count}


def _shared(total: int, requests: Sequence[Mapping[str, float]], kept: Sequence[float]) -> list[dict[str, float]]:
    """So many requests, in the recipe's proportions; else paraphrases of every dataset."""
    by_recipe = sum(sum(one.values()) for one in requests)
    if by_recipe:
        growth = total / by_recipe
        return [{name: count * growth for name, count in one.items()} for one in requests]
    return [{"paraphrase": total * rows / sum(kept)} if rows else {} for rows in kept]


def _as_many_as(examples: int, rows: Sequence[DatasetRows], recipe: Recipe) -> list[DatasetRows]:
    """So many examples in all, in the proportions that the datasets have."""
    new, kept = sum(one.new for one in rows), sum(one.kept for one in rows)
    raw = sum(one.raw for one in rows)
    if not new < examples <= new + raw or not kept:
        raise RecipeError(
            f"command line: --examples is {examples:,}, but {raw:,.0f} raw rows and "
            f"{new:,.0f} examples written by an LLM for the recipe '{recipe.run.name}' cannot give that many; change "
            "--rows, --examples or --synthetic"
        )
    share = (examples - new) / kept
    return [dataclasses.replace(one, kept=one.kept * share) for one in rows]
