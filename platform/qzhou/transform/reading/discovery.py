"""The raw inputs of a recipe: their files, the columns in them, and custom readers."""

import ast
import difflib
import fnmatch
import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType

from qzhou.config.dataset import Dataset, Format
from qzhou.config.recipe import Recipe
from qzhou.data.documents.extract import EXTRACTORS, is_document
from qzhou.data.records import digest
from qzhou.errors import DataError, QzhouError
from qzhou.transform.reading.columns import RejectedRow, Row, column_names, getter, path_lost
from qzhou.transform.reading.encodings import detect_encodings
from qzhou.transform.reading.files import InputFile, input_files, local_file, unpacked_name
from qzhou.transform.reading.hub import commit_of
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import CustomReader, read_part, reads_together
from qzhou.transform.rules.fields import INPUT_COLUMNS, columns_of, has_negatives, input_columns_of

INPUTS = ("rows", "corpus", "queries")
# Files of each input that are opened before the work starts, to see whether their columns are there.
CHECKED_FILES = 32
CHECKED_ROWS = 100
SHOWN_CHARS = 60

Inputs = Mapping[str, Mapping[str, Sequence[InputFile]]]  # dataset -> one of INPUTS -> files


@dataclass(frozen=True)
class RawInputs:
    """What a transform reads.

    Attributes:
        files: Dataset -> one of INPUTS -> files.
        readers: ``module:function`` -> the function.
        modules: The modules of those functions by name; tasks get them by value.
        merged: Datasets whose rows with the same query and positives become one example (``merge_rows``).
        without_negatives: Triplets -> those of their files that have none.
        no_documents: Dataset of the reader documents -> ending of a file's name -> files that are left out.
    """

    files: dict[str, dict[str, list[InputFile]]] = field(default_factory=dict)
    readers: dict[str, CustomReader] = field(default_factory=dict)
    modules: dict[str, ModuleType] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    without_negatives: dict[str, list[str]] = field(default_factory=dict)
    no_documents: dict[str, Counter[str]] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, str]:
        """Dataset -> digest of its files' versions; "readers" -> digest of the code of custom readers."""
        found = {
            dataset: digest({role: [[one.name, one.size, one.changed] for one in inputs[role]] for role in inputs})
            for dataset, inputs in self.files.items()
        }
        if self.modules:
            files = {name: Path(str(module.__file__)) for name, module in self.modules.items()}
            found["readers"] = digest({name: file.read_text("utf-8") for name, file in files.items()})
        return found

    def encodings(self, dataset: str) -> Counter[str]:
        """Detected encoding -> files of a dataset, where the recipe says ``detect``."""
        files = [file for inputs in self.files[dataset].values() for file in inputs]
        return Counter(file.encoding for file in files if file.encoding)


def find_inputs(recipe: Recipe) -> RawInputs:
    """The files and readers of all datasets of a recipe, after a look at their columns.

    Raises:
        DataError: A file, module or column is missing; names each dataset's first problem.
        RecipeError: ``columns`` names a field that the dataset's rule does not have.
    """
    found = RawInputs()
    problems = []
    for dataset in recipe.datasets:
        try:
            for form in (dataset, dataset.corpus, dataset.queries):
                if form is not None and ":" in form.reader and form.reader not in found.readers:
                    _import_reader(found, recipe.folder, form.reader)
            found.files[dataset.name] = _inputs(dataset, found)
            _look_at_negatives(dataset, found)
        except DataError as error:
            problems.append(f"dataset '{dataset.name}': {error}")
    if problems:
        raise DataError("\n       ".join(problems))
    return found


def format_of(dataset: Dataset, role: str) -> Format:
    """The format of one of INPUTS."""
    found = dataset if role == "rows" else getattr(dataset, role)
    assert isinstance(found, Format)
    return found


def check_columns(place: str, wanted: Iterable[str], rows: Iterable[Row | RejectedRow]) -> None:
    """Refuse a file whose first rows lack a column that the recipe names.

    Raises:
        DataError: Names the file (``place``), the column, and the nearest existing one.
    """
    present: dict[str, None] = {}
    looked_at = list(islice(rows, CHECKED_ROWS))
    _refuse_a_document(place, looked_at)
    seen = [row for row in looked_at if isinstance(row, dict)]
    for row in seen:
        present |= dict.fromkeys(row)
    wanted = list(wanted)
    for one in wanted:
        if _holds_lists_as_text(seen, one):
            raise DataError(
                f"{place}: column '{one}' holds lists written as text ({str(seen[0][one])[:SHOWN_CHARS]}), which would "
                "be learned as they are. Write the data as JSON lines or Parquet, where a list is a list."
            )
        if lost := path_lost(seen, one):
            name, known = lost
            hint = f"; there are {', '.join(known)}" if known else ""
            raise DataError(f"{place}: the path '{one}' leads nowhere, since no row has '{name}' there{hint}.")
    needed = [root for one in wanted if one not in present for root in column_names(one)]
    missing = [root for root in needed if root not in present and not fnmatch.filter(present, root)]
    if not present or not missing:
        return
    close = difflib.get_close_matches(missing[0], list(present), n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    if list(present) == ["value"] and isinstance(seen[0]["value"], list):
        hint = ": its lines are JSON lists. Set reader = 'json' where the file is one list of objects."
    raise DataError(
        f"{place} has no column '{missing[0]}'{hint} It has: {', '.join(present)}. "
        "Set 'columns' (field of the rule -> column) or 'split_by' accordingly."
    )


def _refuse_a_document(place: str, rows: Sequence[Row | RejectedRow]) -> None:
    """Refuse one JSON document over many lines that is read as a document a line.

    Raises:
        DataError: Names the reader for it.
    """
    first = rows[0] if rows else None
    if isinstance(first, RejectedRow) and first.reason == "not_json" and first.content.strip() in ("[", "{"):
        raise DataError(
            f"{place} is one JSON document over many lines: set reader = 'json', and 'records' to where its rows are."
        )


def _holds_lists_as_text(rows: Sequence[Row], column: str) -> bool:
    """Whether every cell of a column is the text of a list of texts, as pandas writes lists into CSV."""
    cells = [str(row[column]).strip() for row in rows if isinstance(row.get(column), str) and row[column].strip()]
    if not cells or not all(cell.startswith("[") and cell.endswith("]") for cell in cells):
        return False
    try:
        lists = [ast.literal_eval(cell) for cell in cells]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in lists)


def _import_reader(found: RawInputs, folder: str, reader: str) -> None:
    """Import the module of a custom reader, from beside the recipe or from the path."""
    name, _, function = reader.partition(":")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - anything may go wrong in foreign code
        raise DataError(
            f"the module '{name}' of its reader cannot be imported: {type(error).__name__}: {error}. "
            f"It is looked for beside the recipe ({folder}) and on PYTHONPATH."
        ) from None
    finally:
        sys.path.remove(folder)
    if not callable(getattr(module, function, None)):
        public = {one: value for one, value in vars(module).items() if not one.startswith("_")}
        known = ", ".join(one for one, value in public.items() if callable(value)) or "none"
        raise DataError(f"reader '{reader}': {module.__file__} has no function '{function}'. It has: {known}.")
    found.modules[name] = module
    found.readers[reader] = getattr(module, function)


def _inputs(dataset: Dataset, found: RawInputs) -> dict[str, list[InputFile]]:
    """One of INPUTS -> files, whose columns are those that the recipe names."""
    inputs = {}
    for role in INPUTS if dataset.rule == "qrels" else INPUTS[:1]:
        form = format_of(dataset, role)
        wanted = _wanted(dataset) if role == "rows" else _wanted_of(dataset, role)
        files = input_files(form) if form.paths else _files_of_reader(form, found)
        if form.reader == "documents":
            files = _documents_among(files, dataset, found)
        if form.reader == "hf":
            files = [replace(file, changed=commit_of(file.uri)) for file in files]
        inputs[role] = detect_encodings(form, files)
        _check_files(form, inputs[role], wanted, found.readers.get(form.reader))
    return inputs


def _documents_among(files: Sequence[InputFile], dataset: Dataset, found: RawInputs) -> list[InputFile]:
    """The files that are documents by their names; the others are counted."""
    names = {file: unpacked_name(file) for file in files}
    others = Counter(
        Path(name).suffix.lower() or "without ending" for name in names.values() if not is_document(name)
    )
    documents = [file for file, name in names.items() if is_document(name)]
    if not documents:
        held = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        raise DataError(
            f"there is no document in {', '.join(dataset.paths)}: it holds {held}, and documents are files of "
            f"{', '.join(sorted(EXTRACTORS))}."
        )
    if others:
        found.no_documents[dataset.name] = others
    return documents


def _look_at_negatives(dataset: Dataset, found: RawInputs) -> None:
    """Whether rows are brought together by query and positives: as the recipe says, or where a row has one negative."""
    if not has_negatives(dataset):
        return
    read, files = getter(columns_of(dataset)["negative"]), found.files[dataset.name]["rows"]
    custom, negatives, without = found.readers.get(dataset.reader), [], []
    for part in _checked_parts(dataset, files, custom):
        rows = islice(read_part(dataset, part, custom), CHECKED_ROWS)
        cells = [one for row in rows if isinstance(row, dict) and (one := read(row)) is not None]
        # None keeps its place in a list
        some = [[text for text in one if text] if isinstance(one, list) else one for one in cells]
        without += [] if any(some) else [part.files[0].name]
        negatives += some
    if without:
        found.without_negatives[dataset.name] = without
    is_one_a_row = bool(negatives) and not any(isinstance(one, list) and len(one) != 1 for one in negatives)
    if dataset.merge_rows or (dataset.merge_rows is None and is_one_a_row):
        found.merged.add(dataset.name)


def _files_of_reader(form: Format, found: RawInputs) -> list[InputFile]:
    """Local files that a custom reader finds itself, listed by ``files`` of its module."""
    list_files = getattr(found.modules[form.reader.partition(":")[0]], "files", None)
    if list_files is None:
        raise DataError(
            f"reader '{form.reader}' needs 'paths', or a function 'files' in its module that lists the files."
        )
    try:
        return [local_file(Path(path)) for path in list_files(**form.reader_options)]
    except QzhouError:
        raise
    except Exception as error:  # noqa: BLE001 - anything may go wrong in foreign code
        raise DataError(f"reader '{form.reader}' found no files: {type(error).__name__}: {error}") from None


def _check_files(
    form: Format, files: Sequence[InputFile], wanted: Sequence[str], custom: CustomReader | None
) -> None:
    """Refuse files that lack a column, the lists to be exploded included."""
    lists = form.model_copy(update={"explode": ()})
    for part in _checked_parts(form, files, custom):
        check_columns(part.files[0].name, [*wanted, *form.explode], read_part(lists, part, custom))


def _checked_parts(form: Format, files: Sequence[InputFile], custom: CustomReader | None) -> list[FilePart]:
    """What is opened of a dataset before the work starts."""
    if form.reader == "aligned_text":
        return [FilePart(tuple(files))]
    if reads_together(custom):
        return [FilePart(tuple(files[:CHECKED_FILES]))]
    return [FilePart((file,), 0, 1 if form.reader == "hf" else None) for file in files[:CHECKED_FILES]]


def _wanted_of(dataset: Dataset, role: str) -> list[str]:
    """The column expressions of a corpus or of queries, which may have no title."""
    columns = input_columns_of(dataset, role)
    defaults = INPUT_COLUMNS[role]
    return [columns["id"], "text" if columns["text"] == defaults["text"] else columns["text"]]


def _wanted(dataset: Dataset) -> list[str]:
    """The column expressions that the rule and the split read."""
    columns = columns_of(dataset)
    if dataset.rule == "triplets" and "negative" not in dataset.columns:
        columns.pop("negative")  # pairs have none
    if dataset.rule == "qrels" and "negative_id" in columns and "grade" not in dataset.columns:
        columns.pop("grade")  # the ids' columns say it
    if dataset.rule == "reading_comprehension" and not dataset.context_in_query:
        columns.pop("answer")  # not used
    split_by = [dataset.split_by] if dataset.split_by else []
    return sorted({*columns.values(), *split_by})
