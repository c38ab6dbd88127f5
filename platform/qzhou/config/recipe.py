"""The typed recipe: one TOML file is a whole run.

Every job reads the same file and uses its section. Unknown keys are refused with the
nearest known name, settings that contradict each other are refused at load, and loading
imports neither torch nor ray, so that ``--dry-run`` answers at once. Secrets never stand in
a recipe: they come from the environment variables that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from qzhou.config.cluster import ClusterSection
from qzhou.config.dataset import Dataset
from qzhou.config.describe import setting_names
from qzhou.config.evaluation import EvaluationSection
from qzhou.config.loading import merged, nearest, parse_section, read_toml, refuse_quoted_numbers
from qzhou.config.mining import MiningSection
from qzhou.config.model import ModelSection
from qzhou.config.run import RunSection
from qzhou.config.section import Section
from qzhou.config.serving import ServingSection
from qzhou.config.synthesis import SynthesisSection
from qzhou.config.training import RETRIEVAL_SHARE, StageSection, TrainingSection
from qzhou.config.transform import TransformSection
from qzhou.errors import DataError, RecipeError

RERANKER_TEMPERATURE = 0.2  # of scores from 0 to 1
CHUNK_SHARE = 0.8  # of what the model reads of a document


class Recipe(Section):
    """A whole run."""

    run: RunSection
    model: ModelSection
    datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)]
    cluster: ClusterSection = ClusterSection()
    transform: TransformSection = TransformSection()
    synthesis: SynthesisSection = SynthesisSection()
    mining: MiningSection = MiningSection()
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    serving: ServingSection = ServingSection()
    _folder: str = PrivateAttr("")

    @property
    def folder(self) -> str:
        """Where the recipe file lies: readers of one's own are found beside it."""
        return self._folder or str(Path.cwd())

    def in_folder(self, folder: str) -> Recipe:
        """This recipe with the folder of its file; empty: the working directory."""
        self._folder = folder
        return self

    def dataset(self, name: str) -> Dataset:
        """A dataset by its name.

        Raises:
            DataError: A stage before this one had it, and the recipe does not.
        """
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        known = ", ".join(dataset.name for dataset in self.datasets)
        raise DataError(
            f"the run has examples of a dataset '{name}', and the recipe only has {known}: run `qzhou transform` "
            "and the stages after it with this recipe, or give the run another name"
        )

    @property
    def trained_datasets(self) -> tuple[Dataset, ...]:
        """The datasets that are trained on, in order."""
        named = self.training.datasets
        return tuple(one for one in self.datasets if one.trains and (not named or one.name in named))

    @property
    def trains_with_instructions(self) -> bool:
        """Whether some of what is trained on carries an instruction: then the model reads those of new tasks, too."""
        return any(one.instruction.strip() for one in self.trained_datasets)

    @property
    def training_seed(self) -> int:
        """What the batches and the draw of mined negatives follow from."""
        return self.run.seed if self.training.seed is None else self.training.seed

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> prefix, as the model folder carries it: one per dataset, and ``query`` and ``document``.

        ``query`` and ``document`` are the prefixes of retrieval where all retrieval datasets
        share one; else there is none, since it would be another one's.
        """
        retrieval = [dataset.prompt for dataset in self.datasets if dataset.task == "retrieval"]
        queries = {prompt.query_prefix for prompt in retrieval}
        documents = {prompt.document_prefix for prompt in retrieval if not prompt.symmetric}
        named = {dataset.name: dataset.prompt.query_prefix for dataset in self.datasets}
        sides = {"query": queries or {""}, "document": documents or {""}}
        return named | {side: found.pop() for side, found in sides.items() if len(found) == 1}

    @model_validator(mode="after")
    def _settings_agree(self) -> Recipe:
        if conflicts := list(_conflicts(self)):
            raise ValueError("; ".join(conflicts))
        return self


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """A sentence for each pair of settings that conflict: both values and the way out."""
    yield from _dataset_conflicts(recipe.datasets)
    fewest, most = recipe.cluster.min_encode_workers, recipe.cluster.encode_workers
    if fewest is not None and fewest > most:
        yield f"cluster.min_encode_workers ({fewest}) is above cluster.encode_workers ({most}); lower it"
    yield from _mining_conflicts(recipe.mining)
    yield from _training_conflicts(recipe)
    yield from _synthesis_conflicts(recipe)
    yield from _evaluation_conflicts(recipe)


def _dataset_conflicts(datasets: Sequence[Dataset]) -> Iterator[str]:
    names = [dataset.name for dataset in datasets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"datasets: the name '{name}' is used {names.count(name)} times; give each dataset its own"


def _mining_conflicts(mining: MiningSection) -> Iterator[str]:
    if len(set(mining.teachers)) < len(mining.teachers):
        twice = next(name for name in mining.teachers if mining.teachers.count(name) > 1)
        yield f"mining.teacher and mining.extra_teachers name '{twice}' twice; name each teacher once"
    if mining.extra_teachers and mining.combine == "union" and mining.sampling == "softmax":
        yield (
            "mining.sampling is 'softmax', and mining.combine 'union' would weigh cosines of different teachers, which "
            "cannot be compared; draw 'uniform' or 'top', or combine 'each'"
        )
    if mining.index_parameters and mining.index == "Flat":
        yield (
            f"mining.index_parameters is '{mining.index_parameters}', and mining.index is 'Flat', which is exact and "
            "has none; name an index that has, like 'IVF4096,Flat', or leave the parameters out"
        )
    if mining.rank_to < mining.rank_from:
        yield f"mining.rank_to ({mining.rank_to}) is below mining.rank_from ({mining.rank_from}); raise rank_to"
    if 0 < mining.later_rank_to <= mining.rank_to:
        yield (
            f"mining.later_rank_to ({mining.later_rank_to}) is not above mining.rank_to ({mining.rank_to}), where the "
            "window ends; raise it, or set 0 for none"
        )
    yield from _reranker_conflicts(mining)
    window = mining.rank_to - mining.rank_from + 1
    if mining.min_score is not None and mining.max_score is not None and mining.min_score >= mining.max_score:
        yield (
            f"mining.min_score ({mining.min_score:g}) is not below mining.max_score ({mining.max_score:g}), so no "
            "document could qualify; lower the one or raise the other"
        )
    if mining.negatives_per_query > window:
        yield (
            f"mining.negatives_per_query ({mining.negatives_per_query}) is above the {window} ranks of the window "
            f"mining.rank_from ({mining.rank_from}) to mining.rank_to ({mining.rank_to}), so no query could fill its "
            "quota; raise rank_to or ask for fewer negatives"
        )


def _reranker_conflicts(mining: MiningSection) -> Iterator[str]:
    if mining.later_rank_to and mining.reranker:
        yield (
            f"mining.later_rank_to is {mining.later_rank_to}, and mining.reranker scores the documents of the window "
            "alone; raise rank_to instead, or leave one of them out"
        )
    if mining.relabel_from is not None and not mining.reranker:
        yield (
            f"mining.relabel_from is {mining.relabel_from:g}, and there is no mining.reranker, by whose scores it "
            "goes; name one, or leave it out"
        )


def _training_conflicts(recipe: Recipe) -> Iterator[str]:
    mining, training = recipe.mining, recipe.training
    if training.negatives_per_query > mining.negatives_per_query:
        yield (
            f"training.negatives_per_query ({training.negatives_per_query}) is above mining.negatives_per_query "
            f"({mining.negatives_per_query}), so no query could have that many; mine more or train with fewer"
        )
    if not training.stage2.steps:
        yield "training.stage2.steps is 0, and stage 2 makes the model; give it at least 1"
    for stage_name in training.stages:
        stage: StageSection = getattr(training, stage_name)
        if stage.warmup_steps > stage.steps:
            yield (
                f"training.{stage_name}.warmup_steps ({stage.warmup_steps}) is above training.{stage_name}.steps "
                f"({stage.steps}), so the learning rate would never reach its peak; shorten the warm-up"
            )
        if stage.batch_size < 2 * training.workers:
            yield (
                f"training.{stage_name}.batch_size ({stage.batch_size}) gives training.workers ({training.workers}) "
                "fewer than two examples each; raise the batch or lower the workers"
            )
    yield from _trained_conflicts(recipe)
    if training.distillation.is_listwise:
        yield from _listwise_conflicts(recipe)


def _listwise_conflicts(recipe: Recipe) -> Iterator[str]:
    mining = recipe.mining
    if not any(dataset.task == "retrieval" for dataset in recipe.trained_datasets):
        yield (
            "training.distillation.kind is 'listwise', which is for queries and their negatives, and no trained "
            "dataset is retrieval; take it out"
        )
    if not recipe.training.negatives_per_query:
        yield (
            "training.distillation.kind is 'listwise', and training.negatives_per_query is 0: a list needs a negative "
            "beside the positive; raise it"
        )
    if mining.extra_teachers and not mining.reranker:
        yield (
            "training.distillation.kind is 'listwise', and mining has several teachers, whose cosines cannot be "
            "compared; name a mining.reranker, or one teacher"
        )


def _trained_conflicts(recipe: Recipe) -> Iterator[str]:
    training, known = recipe.training, [dataset.name for dataset in recipe.datasets]
    for name in training.datasets:
        if name not in known:
            yield f"training.datasets: there is no dataset '{name}'{nearest(name, known)}"
    tasks = {dataset.task for dataset in recipe.trained_datasets}
    if tasks and "retrieval" not in tasks:
        yield from _conflicts_without_retrieval(training)
    elif "stage1" not in training.model_fields_set:
        yield (
            "training.stage1 is missing; it trains on retrieval alone, before stage 2 trains on everything. Give its "
            "steps and learning_rate; steps = 0 trains in stage 2 only"
        )
    if training.stage1.retrieval_share < 1.0:
        yield (
            f"training.stage1.retrieval_share is {training.stage1.retrieval_share}, and stage 1 trains on retrieval "
            "alone; leave it out, or set that of stage 2"
        )
    if tasks == {"retrieval"} and training.stage2.retrieval_share < 1.0:
        yield (
            f"training.stage2.retrieval_share is {training.stage2.retrieval_share}, but every dataset that is trained "
            "on is retrieval; set it to 1.0 or add pair or classification datasets"
        )


def _conflicts_without_retrieval(training: TrainingSection) -> Iterator[str]:
    if training.stage1.steps:
        yield (
            f"training.stage1.steps is {training.stage1.steps}, and stage 1 trains on retrieval alone, of which no "
            "trained dataset is; leave training.stage1 out, or add a retrieval dataset"
        )
    share = training.stage2.retrieval_share
    if share and "retrieval_share" in training.stage2.model_fields_set:
        yield (
            f"training.stage2.retrieval_share is {share}, and no trained dataset is retrieval; leave it out, or add one"
        )


def _synthesis_conflicts(recipe: Recipe) -> Iterator[str]:
    names = [dataset.name for dataset in recipe.datasets]
    bare = [dataset for dataset in recipe.datasets if dataset.rule == "documents"]
    writes = recipe.synthesis.is_on and recipe.synthesis.query_rows
    # beside others it may be there to be searched
    alone = not any(dataset.trains for dataset in recipe.datasets if dataset not in bare)
    for dataset in [] if writes else bare:
        if alone or dataset.eval_fraction:
            yield (
                f"datasets: '{dataset.name}' has documents and no queries, and synthesis.query_rows is "
                f"{recipe.synthesis.query_rows} (endpoint '{recipe.synthesis.endpoint}'); name an endpoint that writes "
                "queries for them and how many, or take "
                + ("the dataset out" if alone else f"its eval_fraction ({dataset.eval_fraction:g}) out")
            )
            return
    wanted = ("paraphrase_rows", "augment_rows", "hard_negative_rows", "query_rows")
    if recipe.synthesis.is_on and not any(getattr(recipe.synthesis, name) for name in wanted):
        yield f"synthesis: an endpoint is named, and {', '.join(wanted)} are all 0; say how much it writes"
    for name in recipe.synthesis.datasets:
        if name not in names:
            yield f"synthesis.datasets: there is no dataset '{name}'; known: {', '.join(names)}"


def _evaluation_conflicts(recipe: Recipe) -> Iterator[str]:
    names = {dataset.name for dataset in recipe.datasets}
    for name in recipe.evaluation.instructions:
        if name in names:
            yield (
                f"evaluation.instructions: '{name}' is a dataset, which is judged with the instruction that it is "
                "trained with; set datasets.instruction"
            )
        elif not recipe.evaluation.tasks:
            yield f"evaluation.instructions: '{name}' is no task that is judged: evaluation.tasks is empty"


class _CommandLine(BaseSettings, Recipe):  # type: ignore[misc]  # both set model_config
    """The recipe as pydantic-settings wants it, to make a flag of every dotted key."""


def load_recipe(path: str | Path, arguments: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply dotted overrides, as in ``["--run.seed", "20"]``.

    Raises:
        RecipeError: The file is missing or no TOML, a key is unknown, a type is wrong, or
            settings contradict each other. The message names the file, the key and the way
            out.
    """
    written = read_toml(path, "recipe")
    refuse_quoted_numbers(written, Recipe, place=str(path))
    content = merged(written, overrides(arguments))
    return parse_recipe(content, place=str(path), folder=str(Path(path).absolute().parent))


def parse_recipe(content: Mapping[str, Any], *, place: str, folder: str = "") -> Recipe:
    """Validate a recipe given as nested mappings; ``place`` names it in errors.

    It lies in ``folder``; default: the working directory.
    """
    recipe = _with_chunks(_with_share(parse_section(Recipe, content, place=place)))
    return _with_teacher_temperature(recipe).in_folder(folder)


def _with_chunks(recipe: Recipe) -> Recipe:
    """Documents are cut to what the model reads; a part of it is left for the headings above a chunk."""
    tokens = max(1, int(CHUNK_SHARE * recipe.model.max_document_tokens))
    datasets = [
        one.model_copy(update={"chunk_tokens": tokens})
        if one.reader == "documents" and one.chunk_tokens is None
        else one
        for one in recipe.datasets
    ]
    return recipe.model_copy(update={"datasets": tuple(datasets)})


def _with_share(recipe: Recipe) -> Recipe:
    """Stage 2 trains on everything that is there, unless the recipe says what share of it is retrieval."""
    training = recipe.training
    tasks = {dataset.task for dataset in recipe.trained_datasets}
    if tasks == {"retrieval"} or "retrieval_share" in training.stage2.model_fields_set:
        return recipe
    share = RETRIEVAL_SHARE if "retrieval" in tasks else 0.0
    stage2 = training.stage2.model_copy(update={"retrieval_share": share})
    return recipe.model_copy(update={"training": training.model_copy(update={"stage2": stage2})})


def _with_teacher_temperature(recipe: Recipe) -> Recipe:
    """Scores of a reranker are no cosines, and lie further apart."""
    training, own = recipe.training, recipe.training.distillation
    if not own.is_listwise or own.teacher_temperature is not None:
        return recipe
    update = {"teacher_temperature": RERANKER_TEMPERATURE if recipe.mining.reranker else own.temperature}
    distillation = own.model_copy(update=update)
    return recipe.model_copy(update={"training": training.model_copy(update={"distillation": distillation})})


def overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Nested settings of the dotted flags of a command line.

    Raises:
        RecipeError: A flag is no setting of a recipe; names the nearest that is one.
    """
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            _CommandLine,
            cli_prog_name="qzhou",
            cli_parse_args=list(arguments),
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_exit_on_error=False,
        )
    except SettingsError as error:
        _refuse_unknown_flags(arguments)
        raise RecipeError(f"command line: {error}") from None
    return dict(source())


def _refuse_unknown_flags(arguments: Sequence[str]) -> None:
    known = setting_names(Recipe)
    for argument in arguments:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and key not in known:
            # Where the table is right, only its settings are worth naming.
            beside = [name for name in known if name.startswith(f"{key.rpartition('.')[0]}.")]
            raise RecipeError(f"command line: --{key}: no such setting{nearest(key, beside or known)}")
