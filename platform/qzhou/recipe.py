"""The typed recipe: one TOML file is a whole run.

Every job reads the same file and uses its section. Unknown keys are refused with the nearest known
name, settings that contradict each other are refused at load, and loading imports neither torch
nor ray, so that ``--dry-run`` answers at once. Secrets never stand in a recipe: they come from the
environment variables that it names.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from qzhou.dataset import AtLeastOne, Cosine, Count, Dataset, Fraction, Name, Positive, Section
from qzhou.errors import DataError, RecipeError
from qzhou.learning import StageSection, TrainingSection
from qzhou.llm import SynthesisSection


class RunSection(Section):
    """Which run this is and where it is kept."""

    name: Name = Field(description="Folder of the run under the storage path.")
    storage: str = Field("runs", description="Local path or URI (s3://, gs://); shared by all nodes of a cluster.")
    seed: Count = Field(0, description="Every random choice of the run follows from it.")


class ModelSection(Section):
    """The encoder that is trained."""

    backbone: str = Field(description="Local path, hub id, or package:<import name>/<folder>.")
    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="A decoder is made bidirectional by config.is_causal = false."
    )
    pooling: Literal["mean", "last", "cls"] = Field("mean", description="How token vectors become one vector.")
    max_query_tokens: AtLeastOne = Field(256, description="Longer queries are truncated, prompt included.")
    max_document_tokens: AtLeastOne = Field(1536, description="Longer documents are truncated.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the hardware computes in it (GPU, AMX, AVX-512 BF16), else float32."
    )
    encoding_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        None, description="Type in which texts are encoded for mining, evaluation and serving; default: as dtype."
    )
    compiled: bool = Field(False, description="torch.compile for encoding; pays on a GPU, needs a C++ compiler.")
    saved_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type of the weights in the model folder."
    )

    @property
    def encodes_in(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """The type in which texts are encoded, whichever setting names it."""
        return self.encoding_dtype or self.dtype


class ClusterSection(Section):
    """What the stages ask of the cluster."""

    gpu: bool = Field(False, description="Training workers and encoders take one GPU each.")
    encoders: AtLeastOne = Field(2, description="Encoder actors that mine or evaluate at the same time.")
    min_encoders: AtLeastOne | None = Field(
        None, description="With so many mining begins, and takes more as nodes come; default: all at once."
    )


class ContaminationSection(Section):
    """Training texts compared with the texts of the evaluation tasks: the held-out data, and mteb's by name."""

    action: Literal["report", "drop", "off"] = Field("report", description="What becomes of rows that overlap.")
    tasks: tuple[str, ...] = Field((), description="mteb tasks or benchmarks besides the recipe's own held-out data.")
    ngram_words: AtLeastOne = Field(13, description="Words in a row that count as overlap.")
    ngram_chars: AtLeastOne = Field(20, description="The same for texts in Chinese characters or kana.")
    max_index_ngrams: AtLeastOne = Field(
        50_000_000, description="Above this, a hash picks the n-grams that are kept: memory stays at 10 bytes each."
    )


class TransformSection(Section):
    """Raw rows to examples."""

    max_chars: AtLeastOne = Field(20_000, description="Longer texts are cut here, at a word.")
    deduplicate: bool = Field(True, description="Drop exact repeats, compared as normalised (query, positive).")
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1.0)] | None = Field(
        None,
        description="Drop rows whose texts, side by side, have at least about this Jaccard similarity; default: off.",
    )
    contamination: ContaminationSection = ContaminationSection()


class MiningSection(Section):
    """A teacher's embeddings and exact search find hard negatives."""

    teacher: str = Field(
        "",
        description="Encoder that mines: named like a backbone, or 'https://host/v1#model'; '': the backbone itself.",
    )
    teacher_api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable with the key of an URL.")
    further_teachers: tuple[str, ...] = Field((), description="Encoders that mine beside it, named alike.")
    teacher_prompts: Literal["recipe", "model"] = Field(
        "recipe", description="What a teacher reads before texts; model: the prompts that its folder declares, if any."
    )
    combine: Literal["union", "each"] = Field(
        "union", description="Several teachers: union draws from all that they name; each lets them take turns."
    )
    reranker: str = Field(
        "", description="Cross-encoder, named like a backbone, whose scores (0 to 1) replace the teacher's cosines."
    )
    index: str = Field("Flat", description="FAISS factory string; 'Flat' is exact, 'IVF4096,Flat' faster and not.")
    index_parameters: str = Field("", description="Of an approximate search, as FAISS reads them: 'nprobe=32'.")
    index_from_documents: Count = Field(
        100_000, description="A smaller corpus is searched exactly, whatever the index: it would not pay."
    )
    index_memory_gb: Positive = Field(
        4.0, description="An approximate index over more vectors is sharded over more actors; 'Flat' streams them."
    )
    rank_from: AtLeastOne = Field(10, description="First rank of the window, counted from 1 without the positives.")
    rank_to: AtLeastOne = Field(30, description="Last rank of the window (paper: 'top-10 to top-30').")
    positive_ratio: float | None = Field(
        0.95, description="A negative scores below this share of its positive's score, 1 at most; 'off': no such limit."
    )
    margin: Cosine | None = Field(None, description="A negative scores at least this much below its positive.")
    min_score: Cosine | None = Field(None, description="Candidates below it are too easy.")
    max_score: Cosine | None = Field(None, description="Candidates above it are too close, whatever the positive.")
    max_positive_cosine: Cosine = Field(
        0.98, description="Candidates nearer than this to a positive say the same, and are no negatives."
    )
    consistency_top_k: AtLeastOne | None = Field(
        None, description="Pairs are dropped whose positives are not among the teacher's first k (KaLM: 50)."
    )
    sampling: Literal["uniform", "softmax", "top"] = Field(
        "uniform", description="How negatives are drawn from what qualifies; top: the hardest."
    )
    sampling_temperature: Positive = Field(0.05, description="softmax: divides the scores.")
    negatives_per_query: Count = Field(4, description="Negatives kept; fewer where fewer qualify, never filled up.")
    llm_negative_fraction: Fraction = Field(0.3, description="Share of them that may be LLM-written, where there are.")

    @field_validator("positive_ratio", mode="before")
    @classmethod
    def _none_where_off(cls, ratio: object) -> object:
        return None if ratio == "off" else ratio  # TOML has no null

    @field_validator("positive_ratio")
    @classmethod
    def _share(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0.0 < ratio <= 1.0:
            raise ValueError(f"{ratio:g} is no share of a score; take one above 0 and up to 1, or 'off' for no limit")
        return ratio

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.teacher, *self.further_teachers)


class EvaluationSection(Section):
    """Held-out examples judged by mteb."""

    max_queries: AtLeastOne = Field(1000, description="Retrieval: held-out queries, a seeded sample.")
    max_documents: AtLeastOne = Field(100_000, description="Retrieval: corpus size; relevant documents always stay.")
    max_rows: AtLeastOne = Field(2000, description="Classification and pair tasks: held-out rows, a seeded sample.")
    bm25: bool = Field(True, description="Add the lexical baseline to retrieval tasks.")


class ServingSection(Section):
    """The endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="HTTP port.")
    replicas: AtLeastOne = Field(1, description="Model replicas.")
    max_batch_tokens: AtLeastOne = Field(16_384, description="Padded tokens that one forward pass may hold.")
    batch_wait_ms: Annotated[float, Field(ge=0.0)] = Field(5.0, description="How long a request waits for company.")
    max_inputs: AtLeastOne = Field(2048, description="Texts per request; more is refused with 400.")
    api_keys_env: str = Field("QZHOU_API_KEYS", description="Variable with comma-separated keys; unset: no key asked.")


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

    def dataset(self, name: str) -> Dataset:
        """A dataset by its name.

        Raises:
            DataError: A stage before this one had it, and the recipe does not.
        """
        found = [dataset for dataset in self.datasets if dataset.name == name]
        if not found:
            known = ", ".join(dataset.name for dataset in self.datasets)
            raise DataError(
                f"the run has examples of a dataset '{name}', and the recipe only has {known}: run jobs/transform.py "
                "and the stages after it with this recipe, or give the run another name"
            )
        return found[0]

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> prefix, as the model folder carries it: one per dataset, and ``query`` and ``document``.

        ``query`` is the prefix of retrieval where all retrieval datasets share one, else empty.
        """
        shared = {dataset.prompt.query_prefix for dataset in self.datasets if dataset.task == "retrieval"}
        named = {dataset.name: dataset.prompt.query_prefix for dataset in self.datasets}
        return named | {"query": shared.pop() if len(shared) == 1 else "", "document": ""}

    @model_validator(mode="after")
    def _settings_agree(self) -> Recipe:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ValueError("; ".join(conflicts))
        return self


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """One sentence for each pair of settings that cannot both hold: both values and the way out."""
    yield from _dataset_conflicts(recipe.datasets)
    if (least := recipe.cluster.min_encoders) is not None and least > recipe.cluster.encoders:
        yield f"cluster.min_encoders ({least}) is above cluster.encoders ({recipe.cluster.encoders}); lower it"
    yield from _mining_conflicts(recipe.mining)
    yield from _training_conflicts(recipe)
    yield from _synthesis_conflicts(recipe)


def _dataset_conflicts(datasets: Sequence[Dataset]) -> Iterator[str]:
    names = [dataset.name for dataset in datasets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"datasets: the name '{name}' is used {names.count(name)} times; give each dataset its own"
    if all(dataset.task != "retrieval" for dataset in datasets):
        yield "datasets: stage 1 trains on retrieval alone; add a dataset with the rule title_body or question_answer"


def _mining_conflicts(mining: MiningSection) -> Iterator[str]:
    if len(set(mining.teachers)) < len(mining.teachers):
        twice = next(name for name in mining.teachers if mining.teachers.count(name) > 1)
        yield f"mining.teacher and mining.further_teachers name '{twice}' twice; name each teacher once"
    if mining.further_teachers and mining.combine == "union" and mining.sampling == "softmax":
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


def _training_conflicts(recipe: Recipe) -> Iterator[str]:
    mining, training = recipe.mining, recipe.training
    if training.negatives_per_query > mining.negatives_per_query:
        yield (
            f"training.negatives_per_query ({training.negatives_per_query}) is above mining.negatives_per_query "
            f"({mining.negatives_per_query}), so no query could have that many; mine more or train with fewer"
        )
    for stage_name in ("stage1", "stage2"):
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
    only_retrieval = all(dataset.task == "retrieval" for dataset in recipe.datasets)
    if only_retrieval and training.stage2.retrieval_share < 1.0:
        yield (
            f"training.stage2.retrieval_share is {training.stage2.retrieval_share}, but every dataset is retrieval; "
            "set it to 1.0 or add pair or classification datasets"
        )


def _synthesis_conflicts(recipe: Recipe) -> Iterator[str]:
    names = [dataset.name for dataset in recipe.datasets]
    bare = [dataset.name for dataset in recipe.datasets if dataset.rule == "documents"]
    if bare and not (recipe.synthesis.is_on and recipe.synthesis.query_rows):
        yield (
            f"datasets: '{bare[0]}' has documents and no queries, and synthesis.query_rows is "
            f"{recipe.synthesis.query_rows} (endpoint '{recipe.synthesis.endpoint}'); name an endpoint that writes "
            "queries for them and how many, or take the dataset out"
        )
    wanted = ("paraphrase_rows", "augment_rows", "hard_negative_rows", "query_rows")
    if recipe.synthesis.is_on and not any(getattr(recipe.synthesis, name) for name in wanted):
        yield f"synthesis: an endpoint is named, and {', '.join(wanted)} are all 0; say how much it writes"
    for name in recipe.synthesis.datasets:
        if name not in names:
            yield f"synthesis.datasets: there is no dataset '{name}'; known: {', '.join(names)}"


class _CommandLine(BaseSettings, Recipe):  # type: ignore[misc]  # both set model_config
    """The recipe as pydantic-settings wants it, to make a flag of every dotted key."""


def load_recipe(path: str | Path, arguments: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply overrides.

    Args:
        path: The recipe file.
        arguments: Dotted overrides as on a command line, e.g. ``["--training.stage1.steps", "20"]``.

    Raises:
        RecipeError: The file is missing or not TOML, a key is unknown, a value has the wrong type, or
            settings contradict each other. The message names the file, the key and the way out.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"{path}: no such recipe file. The recipes of this project are in recipes/.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from None
    recipe = parse_recipe(_merged(content, _overrides(arguments)), place=str(path))
    recipe._folder = str(Path(path).absolute().parent)
    return recipe


def parse_recipe(content: Mapping[str, Any], *, place: str) -> Recipe:
    """Validate a recipe given as nested mappings; ``place`` names it in errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        # a dataset that is refused counts as missing, which is no second mistake
        told = [one for one in problems if one["type"] != "too_short" or len(problems) == 1]
        raise RecipeError("\n       ".join(f"{place}: {_explain(problem)}" for problem in told)) from None


def _overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Nested mapping of the dotted flags; ``--help`` prints them all and exits."""
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            _CommandLine,
            cli_prog_name="job",
            cli_parse_args=list(arguments),
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_exit_on_error=False,
        )
    except SettingsError as error:
        unknown = [argument for argument in arguments if argument.startswith("--") and argument[2:] not in _flags()]
        if not unknown:
            raise RecipeError(f"command line: {error}") from None
        key = unknown[0][2:].split("=")[0]
        raise RecipeError(f"command line: --{key}: no such setting{_nearest(key, _flags())}") from None
    return dict(source())


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged


def _explain(problem: Any) -> str:
    """One line for one pydantic error: dotted key, what is wrong, what would be right."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such setting{_nearest(str(location[-1]), _keys_beside(location))}"
    if problem["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f". Known: {', '.join(known)}"


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    """The keys that the table at ``location`` knows."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, str):
            section = _section_type(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _section_type(inner))), None)


def _flags(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe that can be overridden on the command line."""
    flags = []
    for name, setting in section.model_fields.items():
        if isinstance(setting.annotation, type) and issubclass(setting.annotation, Section):
            flags += _flags(setting.annotation, f"{prefix}{name}.")
        else:
            flags.append(prefix + name)
    return flags
