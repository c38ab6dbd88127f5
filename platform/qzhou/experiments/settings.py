"""The experiment file: a recipe, seeds, variants, and the scores that are compared. Loads neither torch nor ray."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from qzhou.config.dataset import TaskKind
from qzhou.config.loading import merged, nearest, parse_section, read_toml, refuse_quoted_numbers
from qzhou.config.recipe import Recipe, overrides, parse_recipe
from qzhou.config.section import AtLeastOne, Count, Name, Section
from qzhou.errors import RecipeError

TYPES: Mapping[TaskKind, str] = {
    "retrieval": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "pair_classification": "PairClassification",
    "classification": "Classification",
    "clustering": "Clustering",
}  # what mteb calls the tasks of a dataset
OWN = ("run.", "training.seed")  # settings that the experiment itself gives to each trial
Settings = dict[str, Any]


class Score(Section):
    """What is compared: the main score of the trained model on a task, or its mean over all tasks of a type."""

    task: str = Field("", description="A dataset that is held out, or a task of mteb that the recipe names.")
    type: str = Field("", description="mteb's: Retrieval, STS, ...")

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.task or f"mean of {self.type}"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.task) == bool(self.type):
            raise ValueError("a score is of a task or of a type; name one of them")
        return self


class Variant(Section):
    """The recipe with some settings changed."""

    name: Annotated[str, Field(min_length=1)] = Field(description="In tables, plots and folders.")
    settings: Settings = Field(default_factory=dict, description="Dotted setting of the recipe -> value.")
    only_datasets: tuple[Name, ...] = Field(
        (), description="What is trained on; all datasets are judged all the same."
    )

    @property
    def folder(self) -> str:
        """The name as part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")


class Experiment(Section):
    """Variants of one recipe, each trained with every seed."""

    name: Name = Field(description="Folder of the experiment under the recipe's storage path.")
    recipe: str = Field("../quickstart.toml", description="Beside the experiment file.")
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (1, 2, 3), description="Of mined negatives and batches; what is held out does not depend on them."
    )
    scores: Annotated[tuple[Score, ...], Field(min_length=1)]
    baseline: str = Field(description="The variant that the others are compared with.")
    settings: Settings = Field(default_factory=dict, description="Of all variants, as in a variant.")
    trials_at_once: AtLeastOne | None = Field(
        None, description="Default: as many as the cluster's CPUs and GPUs carry when the experiment starts."
    )
    variants: Annotated[tuple[Variant, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if conflicts := list(_conflicts(self)):
            raise ValueError("; ".join(conflicts))
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant with one seed: a whole run."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Folder of the trial's run in the experiment's folder."""
        return self.recipe.run.name


@dataclass(frozen=True, slots=True)
class TrialGrid:
    """The trials of an experiment: every variant with every seed. Those of the first seed come first, so that an
    experiment that is stopped early has compared all variants.
    """

    experiment: Experiment
    trials: tuple[Trial, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def storage(self) -> str:
        """The folder of all trials."""
        return self.trials[0].recipe.run.storage

    def __str__(self) -> str:
        one = self.experiment
        lines = [
            f"{one.name}: {len(one.variants)} variants, seeds {', '.join(map(str, one.seeds))}, in {self.storage}"
        ]
        if shared := _dotted(one.settings) | _dotted(self.overrides):
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in shared.items()}
            lines.append(f"  all: {'; '.join(f'{key} = {text}' for key, text in texts.items())}")
        for variant in one.variants:
            changed = [f"{key} = {json.dumps(value)}" for key, value in _dotted(variant.settings).items()]
            changed += [f"trained on {', '.join(variant.only_datasets)}"] if variant.only_datasets else []
            mark = " (baseline)" if variant.name == one.baseline else ""
            lines.append(f"  {variant.name}{mark}: {'; '.join(changed) or 'the recipe as it is'}")
        return "\n".join([*lines, f"compared: {', '.join(score.label for score in one.scores)}"])


def load_experiment(
    path: str | Path, arguments: Sequence[str] = (), *, recipe: str = "", seeds: Sequence[int] = ()
) -> TrialGrid:
    """Read an experiment file and check the recipe of every variant.

    Args:
        path: The experiment file.
        arguments: Dotted overrides of the recipe, for all variants.
        recipe: Instead of the file's own, from the working directory.
        seeds: Instead of the file's own.

    Raises:
        RecipeError: The experiment, or the recipe of a variant, has an unknown key, a wrong type or settings that
            contradict each other; or an override changes what the variants differ in.
    """
    written = read_toml(path, "experiment")
    refuse_quoted_numbers(written, Experiment, place=str(path))
    content = written | ({"seeds": list(seeds)} if seeds else {})
    experiment = parse_section(Experiment, content, place=str(path))
    source = Path(recipe or Path(path).parent / experiment.recipe)
    given = overrides(arguments)
    _refuse_overrides(experiment, given)
    base = merged(read_toml(source, "recipe"), _nested(experiment.settings))
    refuse_quoted_numbers(base, Recipe, place=str(source))
    base = merged(base, given)
    found = {}
    for variant in experiment.variants:
        changes = _nested(variant.settings)
        if variant.only_datasets:
            changes = merged(changes, {"training": {"datasets": list(variant.only_datasets)}})
        place = f"{path}: variant '{variant.name}' of {source}"
        found[variant.name] = parse_recipe(merged(base, changes), place=place, folder=str(source.absolute().parent))
        _refuse_unknown_scores(experiment, found[variant.name], place)
    trials = [
        Trial(variant.name, seed, _of_trial(found[variant.name], experiment, variant, seed))
        for seed in experiment.seeds
        for variant in experiment.variants
    ]
    return TrialGrid(experiment, tuple(trials), given)


def _of_trial(recipe: Recipe, experiment: Experiment, variant: Variant, seed: int) -> Recipe:
    run = {
        "name": f"{variant.folder}-seed{seed}",
        "storage": f"{recipe.run.storage.rstrip('/')}/{experiment.name}",
        "share_stages": True,
    }
    training = recipe.training.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"run": recipe.run.model_copy(update=run), "training": training})


def _conflicts(experiment: Experiment) -> Iterator[str]:
    names = [variant.name for variant in experiment.variants]
    if experiment.baseline not in names:
        yield f"baseline: there is no variant '{experiment.baseline}'{nearest(experiment.baseline, names)}"
    yield from _folder_conflicts(experiment.variants)
    made: dict[str, str] = {}
    for variant in experiment.variants:
        changes = json.dumps([_dotted(variant.settings), variant.only_datasets], sort_keys=True)
        if other := made.get(changes):
            yield f"variants: '{other}' and '{variant.name}' change the same; leave one out"
        made[changes] = variant.name
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield f"seeds: {', '.join(map(str, experiment.seeds))} names one twice; name each once"
    settings = {"settings": experiment.settings} | {one.name: one.settings for one in experiment.variants}
    for place, content in settings.items():
        for key in _dotted(content):
            if key.startswith(OWN):
                yield f"{place}: '{key}' belongs to the experiment, which gives each trial its own; leave it out"


def _folder_conflicts(variants: Sequence[Variant]) -> Iterator[str]:
    folders: dict[str, str] = {}
    for variant in variants:
        if not variant.folder:
            yield f"variants: '{variant.name}' has no letter or digit that could name its folder"
        elif other := folders.get(variant.folder.lower()):
            yield f"variants: '{other}' and '{variant.name}' would share the folder {variant.folder}; rename one"
        folders[variant.folder.lower()] = variant.name


def _refuse_overrides(experiment: Experiment, given: Mapping[str, Any]) -> None:
    differing = {key: one.name for one in experiment.variants for key in _dotted(one.settings)}
    for one in experiment.variants:
        if one.only_datasets:
            differing["training.datasets"] = one.name
    for key in _dotted(given):
        if key in differing:
            raise RecipeError(
                f"command line: --{key} is what the variants differ in ('{differing[key]}' sets it); change the "
                "experiment file instead"
            )
        if key.startswith(OWN) and key not in {"run.storage", "run.seed"}:
            raise RecipeError(f"command line: --{key} belongs to the experiment, which gives each trial its own")


def _refuse_unknown_scores(experiment: Experiment, recipe: Recipe, place: str) -> None:
    """Refuse a score that nothing will be judged by; mteb's own tasks are not known before mteb is loaded."""
    if recipe.evaluation.tasks:
        return
    known = {
        one.name if kind == one.kinds[0] else f"{one.name}_{kind}": TYPES[kind]
        for one in recipe.datasets
        if one.eval_fraction
        for kind in one.kinds
    }
    for score in experiment.scores:
        name, names = (score.task, list(known)) if score.task else (score.type, sorted(set(known.values())))
        if name not in names:
            what = "is held out as a task" if score.task else "of the tasks is of the type"
            raise RecipeError(f"{place}: scores: none {what} '{name}'{nearest(name, names) if names else ''}")


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as tables."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner: Any = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            inner = {part: inner}
        found = merged(found, inner)
    return found


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
