"""The raw data behind a recipe: files with the columns it names, Python packages, and readers of the user's own."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from qzhou.config.dataset import Dataset, Format
from qzhou.config.recipe import Recipe
from qzhou.data.records import digest
from qzhou.errors import DataError
from qzhou.transform.convert import split_column
from qzhou.transform.fields import columns_of, input_columns_of
from qzhou.transform.inputs import InputFile, Split, input_files
from qzhou.transform.lines import with_encodings
from qzhou.transform.plan import INPUTS, format_of
from qzhou.transform.python_docs import DOCSTRING_COLUMNS, PAIR_COLUMNS, SourceFile, source_files
from qzhou.transform.readers import OwnReader, check_columns, read_split

# of each input are opened before the work starts, to see whether their columns are there
CHECKED_FILES = 32


@dataclass(frozen=True)
class RawData:
    """What a transform reads.

    Attributes:
        inputs: Dataset -> input -> files; empty for Python packages.
        sources: Packages -> Python files.
        own: ``module:function`` -> the function.
        modules: Where those functions stand; tasks get them by value.
    """

    inputs: dict[str, dict[str, list[InputFile]]] = field(default_factory=dict)
    sources: dict[tuple[str, ...], Sequence[SourceFile]] = field(default_factory=dict)
    own: dict[str, OwnReader] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """What changes when a file, a package or the code of a reader changes: dataset (or "readers") -> digest."""
        found = {name: digest(_versions(files)) for name, files in self.inputs.items() if files}
        found |= {
            one.name: digest(_source_versions(self.sources[one.packages]))
            for one in recipe.datasets
            if one.packages
        }
        if self.modules:
            code = {
                name: Path(str(module.__file__)).read_text("utf-8")
                for name, module in self.modules.items()
            }
            found["readers"] = digest(code)
        return found

    def encodings(self, dataset: str) -> Counter[str]:
        """Encoding that was found -> files of a dataset, where the recipe says ``detect``."""
        files = [file for role in self.inputs[dataset].values() for file in role]
        return Counter(file.encoding for file in files if file.encoding)


def raw_data(recipe: Recipe) -> RawData:
    """Find everything that a recipe reads, and look into it.

    Raises:
        DataError: A file, package, module or column is missing; names the first problem of every dataset.
        RecipeError: ``columns`` names a field that the dataset's rule does not have.
    """
    found, problems = RawData(), []
    for dataset in recipe.datasets:
        try:
            _find(found, recipe, dataset)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n       ".join(problems))
    return found


def _find(found: RawData, recipe: Recipe, dataset: Dataset) -> None:
    for form in (dataset, dataset.corpus, dataset.queries):
        if form is not None and ":" in form.reader and form.reader not in found.own:
            _find_reader(found, recipe, dataset, form.reader)
    found.inputs[dataset.name] = _inputs(dataset, found.own)
    if dataset.reader == "python_docs":
        found.sources[dataset.packages] = _sources(dataset)


def _find_reader(found: RawData, recipe: Recipe, dataset: Dataset, reader: str) -> None:
    """Import the module of a reader, from beside the recipe or from the path."""
    name, _, function = reader.partition(":")
    sys.path.insert(0, recipe.folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # anything may go wrong in foreign code
        raise DataError(
            f"dataset '{dataset.name}': the module '{name}' of its reader cannot be imported: "
            f"{type(error).__name__}: {error}. It is looked for beside the recipe ({recipe.folder}) and on PYTHONPATH."
        ) from None
    finally:
        sys.path.remove(recipe.folder)
    if not callable(getattr(module, function, None)):
        known = [
            one
            for one, value in vars(module).items()
            if callable(value) and not one.startswith("_")
        ]
        raise DataError(
            f"dataset '{dataset.name}': reader '{reader}': {module.__file__} has no function "
            f"'{function}'. It has: {', '.join(known) or 'none'}."
        )
    found.modules[name] = module
    found.own[reader] = getattr(module, function)


def _inputs(dataset: Dataset, own: Mapping[str, OwnReader]) -> dict[str, list[InputFile]]:
    """Input -> raw files, whose columns are those that the recipe names; empty for Python packages."""
    if dataset.reader == "python_docs":
        present = dict.fromkeys(PAIR_COLUMNS if dataset.view == "pairs" else DOCSTRING_COLUMNS)
        check_columns(
            dataset.name, f"python_docs, view '{dataset.view}',", _wanted(dataset), [present]
        )
        return {}
    found = {}
    for role in INPUTS if dataset.rule == "qrels" else INPUTS[:1]:
        form = format_of(dataset, role)
        wanted = (
            _wanted(dataset) if role == "rows" else list(input_columns_of(dataset, role).values())
        )
        files = input_files(dataset.name, form)
        try:
            found[role] = with_encodings(form, files)
        except DataError as error:
            raise DataError(f"dataset '{dataset.name}': {error}") from None
        _check_files(dataset.name, form, found[role], wanted, own)
    return found


def _check_files(
    dataset: str,
    form: Format,
    files: Sequence[InputFile],
    wanted: Sequence[str],
    own: Mapping[str, OwnReader],
) -> None:
    """Refuse files that lack a column, the lists to be exploded included."""
    lists = form.model_copy(update={"explode": ()})
    together = [tuple(files)] if form.reader == "aligned_text" else [(file,) for file in files]
    for some in together[:CHECKED_FILES]:
        split = Split(some, 0, 1) if form.reader == "hf" else Split(some)
        rows = read_split(dataset, lists, split, own.get(form.reader))
        check_columns(dataset, some[0].name, [*wanted, *form.explode], rows)


def _wanted(dataset: Dataset) -> list[str]:
    columns = columns_of(dataset)
    if dataset.rule == "reading_comprehension" and not dataset.context_in_query:
        columns.pop("answer")  # not used
    column = split_column(dataset)
    return sorted({*columns.values(), *([column] if column else [])})


def _sources(dataset: Dataset) -> Sequence[SourceFile]:
    try:
        return source_files(dataset.packages)
    except DataError as error:
        raise DataError(f"dataset '{dataset.name}': {error}") from None


def _versions(inputs: Mapping[str, Sequence[InputFile]]) -> Any:
    return {
        role: [[file.name, file.size, file.changed] for file in files]
        for role, files in inputs.items()
    }


def _source_versions(sources: Sequence[SourceFile]) -> Any:
    stats = [(source.path, Path(source.path).stat()) for source in sources]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
