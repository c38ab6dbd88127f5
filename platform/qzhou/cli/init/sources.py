"""From paths to datasets of a recipe: which files belong together, how they are read, and what they become."""

from __future__ import annotations

import glob
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from qzhou.cli.init.samples import (
    SHAPES_OF_LINES,
    NotUnderstood,
    Sample,
    aligned_sample,
    hub_sample,
    line_count,
    sample_of,
)
from qzhou.cli.init.shapes import Shape, shape_of
from qzhou.config.dataset import Dataset, Format
from qzhou.data.documents.extract import is_document
from qzhou.data.records import Example
from qzhou.errors import DataError
from qzhou.transform.preview import preview_of
from qzhou.transform.reading.columns import Row
from qzhou.transform.reading.files import InputFile, input_files, local_file, unpacked_name
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part

HUB = "hf://"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}(:[\w.-]+)?")
DATA_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"}
ABOUT = re.compile(r"^(readme|license|licence|copying|changelog|authors|contributing)\b", re.IGNORECASE)
UNWRITABLE = re.compile(r"[${}]")
HELD_OUT = re.compile(r"(^|[^a-z])(test|dev|val|valid|validation|eval|trial)([^a-z]|$)", re.IGNORECASE)
TRAIN = re.compile(r"(^|[^a-z])train", re.IGNORECASE)
MOST_FILES = 64  # of a folder that are opened
EVAL_FRACTION = 0.1
FEWEST_KEPT = 0.1  # of the sample's rows; below, the guess is wrong
LOOKED_AT = 24  # documents
MOST_CHUNKS = 5_000  # of them
DOCUMENTS_HELD_OUT = 0.15
SHORTEST_CHUNK = 60  # characters


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset of the recipe.

    Attributes:
        dataset: The keys of its table, ``paths`` included.
        evidence: What speaks for them.
        files: That it reads.
        size: Bytes of them.
        examples: Some of what its first rows become.
        kept, read: Of the rows that were looked at.
        rows: In all files, about.
        dropped: Reason -> rows.
    """

    dataset: Mapping[str, Any]
    evidence: Sequence[str]
    files: Sequence[str]
    size: int = 0
    examples: Sequence[Example] = ()
    kept: int = 0
    read: int = 0
    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)


class Looked(NamedTuple):
    """A file that was looked at: where it is, how a recipe names it, its rows and what they become."""

    file: Path
    address: str
    sample: Sample
    shape: Shape


def sources_of(path: str, given: Mapping[str, str]) -> tuple[list[Source], list[str]]:
    """The datasets that a path holds, and a line about each file that is none.

    Args:
        path: A file or a folder.
        given: Field of a rule -> column, as a person has named them.

    Raises:
        NotUnderstood: Nothing of it can be used; says why.
    """
    if path.startswith(HUB):
        return [_of_hub(path, given)], []
    place = Path(path)
    _refuse_missing(path)
    if place.is_file():
        files = [place]
    else:
        files = sorted(one for one in place.rglob("*") if one.is_file() and not _is_hidden(one.relative_to(place)))
    if not files:
        raise NotUnderstood(f"'{path}' is an empty folder")
    if UNWRITABLE.search(str(place)):
        raise NotUnderstood(f"'{path}' has one of $ {{ }} in its name, which mean something in a recipe: rename it")
    if place.is_dir():
        if collection := _collection(place, files):
            return collection, []
        if _are_documents(files):
            return [_documents(path, place, files)], []
    found, refused = _of_files(place, files, given)
    if not found and not given and place.is_file() and _is_document(place):
        return [_documents(path, place, files)], []
    if not found:
        raise NotUnderstood("\n  ".join([f"nothing of '{path}' can be used:", *refused]))
    return found, refused


def _refuse_missing(path: str) -> None:
    if not path or not Path(path).exists():
        hub = f"; a dataset of the hub is named {HUB}{path}" if HUB_NAME.fullmatch(path) else ""
        raise NotUnderstood(f"'{path}' is not there, seen from {Path.cwd()}{hub}")


def _of_hub(path: str, given: Mapping[str, str]) -> Source:
    """A dataset of the hub; its split ``train`` where none is named."""
    uri = path if ":" in path.removeprefix(HUB) else f"{path}:train"
    sample = hub_sample(uri)
    shape = shape_of(sample.rows, given)
    name = dataset_name(uri.removeprefix(HUB).partition(":")[0].rpartition("/")[2])
    own = {"name": name, "rule": shape.rule, "paths": [uri], **sample.settings}
    dataset = {**own, "columns": dict(shape.columns), **shape.more, "eval_fraction": EVAL_FRACTION}
    source = Source(dataset, [*sample.evidence, shape.why], [uri], rows=sample.total)
    return previewed(source, sample.rows, sample.rejected)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffix(path: Path) -> str:
    return PurePosixPath(unpacked_name(InputFile(str(path)))).suffix.lower()


def _is_document(path: Path) -> bool:
    return is_document(unpacked_name(InputFile(str(path))))


def _are_documents(files: Sequence[Path]) -> bool:
    """Whether a folder holds documents and no data."""
    documents = [one for one in files if _is_document(one)]
    if all(ABOUT.match(one.name) for one in files):
        return bool(documents)
    proper = [one for one in documents if not ABOUT.match(one.name)]
    data = [one for one in files if _suffix(one) in {*DATA_SUFFIXES, ".xml"} and not ABOUT.match(one.name)]
    if not data:
        return bool(proper) and not any(map(_is_table, proper))
    return len(proper) > 2 * len(data) and any(_suffix(one) not in {".txt", ".text"} for one in proper)


def _is_table(path: Path) -> bool:
    """Whether a text file holds columns, or a label before each line."""
    if _suffix(path) not in {".txt", ".text"}:
        return False
    try:
        shape_of(sample_of(local_file(path)).rows, {})
    except NotUnderstood:
        return False
    return True


def _documents(path: str, place: Path, files: Sequence[Path]) -> Source:
    documents = [one for one in files if _is_document(one)]
    kinds = Counter(one.suffix.lower() for one in documents)
    pattern = glob.escape(path.rstrip("/") or "/")
    dataset = {"name": _name(place), "reader": "documents", "rule": "documents", "paths": [pattern]}
    evidence = [
        f"{len(documents)} documents ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})"
    ]
    others = Counter(one.suffix.lower() or "without ending" for one in files if not _is_document(one))
    if others:
        held = ", ".join(f"{count} {kind}" for kind, count in others.most_common(6))
        evidence.append(f"{others.total()} other files are left out ({held})")
    return Source(dataset, evidence, [str(one) for one in documents], sum(one.stat().st_size for one in documents))


def headings_of(source: Source, tokens: int) -> Source:
    """The dataset that asks for chunks of documents by their headings and first sentences, with what becomes of some.

    Args:
        source: The documents.
        tokens: Of a chunk.
    """
    own = source.dataset
    reads = {name: value for name, value in own.items() if name not in {"name", "rule", "columns", "eval_fraction"}}
    if own["reader"] != "documents":
        reads |= {"chunk_column": own["columns"]["text"], "split_by": "document"}
    own_keys = {name: value for name, value in reads.items() if name in Format.model_fields}
    form = Format.model_validate(own_keys | {"chunk_tokens": tokens})
    dataset = {
        "name": f"{own['name']}_headings",
        "reader": own["reader"],
        "rule": "title_body",
        **reads,
        **({} if own["reader"] == "documents" else {"chunk_tokens": tokens}),
        "columns": {"query": "query", "positive": "body"},
        "min_positive_chars": SHORTEST_CHUNK,
        "eval_fraction": DOCUMENTS_HELD_OUT,
    }
    step = max(1, len(source.files) // LOOKED_AT)
    looked_at = [local_file(Path(one)) for one in source.files[::step][:LOOKED_AT]]
    rows: list[Row] = []
    rejected = Counter[str]()
    for row in islice(read_part(form, FilePart(tuple(looked_at))), MOST_CHUNKS):
        if isinstance(row, dict):
            rows.append(row)
        else:
            rejected[row.reason] += 1
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise NotUnderstood(
            f"none of the first {len(looked_at)} documents of '{own['paths'][0]}' holds text ({why})"
        )
    documents = len({row["document"] for row in rows if "document" in row})
    total = source.rows or len(source.files)
    evidence = ["headings, and first sentences where there are none"]
    made = previewed(Source(dataset, evidence, source.files), rows, rejected)
    return replace(made, rows=len(rows) * total // max(1, documents))


def _collection(place: Path, files: Sequence[Path]) -> list[Source]:
    """A folder of BEIR: corpus, queries and qrels by split."""
    by_name = {one.name.split(".")[0]: one for one in files if ".jsonl" in one.name and one.parent == place}
    qrels = sorted(one for one in files if one.parent.name == "qrels" and one.suffix == ".tsv")
    if not {"corpus", "queries"} <= by_name.keys() or not qrels:
        return []
    first = qrels[0].read_text("utf-8").splitlines()[0].split("\t")
    has_names = "query-id" in first
    splits = {one.stem: one for one in qrels}
    sources = []
    for split, file in splits.items():
        trains = split == "train" or len(splits) == 1
        shown = _name(place) if trains else f"{_name(place)}_{split}"
        dataset: dict[str, Any] = {
            "name": shown,
            "reader": "csv",
            "rule": "qrels",
            "paths": [glob.escape(str(file))],
            "queries": {"reader": "jsonl", "paths": [glob.escape(str(by_name["queries"]))]},
            "corpus": {"reader": "jsonl", "paths": [glob.escape(str(by_name["corpus"]))]},
            "eval_fraction": 1.0 if not trains else 0.2,
        }
        if not has_names:
            dataset["columns"] = {"query_id": "0", "document_id": "1", "grade": "2"}
        size = sum(one.stat().st_size for one in (file, *by_name.values()))
        evidence = ["corpus, queries and qrels, as BEIR has them"]
        sources.append(Source(dataset, evidence, [str(file)], size))
    return sources


def _of_files(place: Path, files: Sequence[Path], given: Mapping[str, str]) -> tuple[list[Source], list[str]]:
    """Files by how they are read and what they become; those of one kind are one dataset."""
    groups: dict[tuple[str, str], list[Looked]] = defaultdict(list)
    refused: list[str] = []
    left: list[Path] = []
    data = [one for one in files if not ABOUT.match(one.name)]
    if len(data) > MOST_FILES:
        refused.append(f"{len(data) - MOST_FILES} further files were not opened")
    for file in data[:MOST_FILES]:
        try:
            for one in input_files(Format(reader="text", paths=(glob.escape(str(file)),))):  # members of an archive
                sample = sample_of(one)
                shape = shape_of(sample.rows, given)
                reads = {name: value for name, value in sample.settings.items() if name != "encoding"}
                key = repr((reads, shape.rule, shape.columns))
                address = one.name if one.member else glob.escape(str(file))
                groups[str(file.parent), key].append(Looked(file, address, sample, shape))
        except (NotUnderstood, DataError) as error:
            refused.append(str(error).replace(f"{place}/", ""))
            left += [file] if SHAPES_OF_LINES in str(error) else []
    sources = []
    for group in groups.values():
        try:
            sources += list(_split(place, group))
        except NotUnderstood as error:
            refused.append(str(error).replace(f"{place}/", ""))
    if not sources:
        sources = list(_aligned(place, left, given))
        refused = [] if sources else refused
    return distinct(sources), refused


def _split(place: Path, group: Sequence[Looked]) -> Iterator[Source]:
    """A dataset of the files to train on, and one of those that their names keep for evaluation."""
    kept_apart = [one for one in group if HELD_OUT.search(one.file.name) and not TRAIN.search(one.file.name)]
    training = [one for one in group if one not in kept_apart]
    if not training:
        training, kept_apart = list(group), []
    for chosen, fraction in ((training, EVAL_FRACTION if not kept_apart else 0.0), (kept_apart, 1.0)):
        if chosen:
            first = chosen[0]
            is_alone = (len(group) == 1 or place.is_file()) and not HELD_OUT.fullmatch(_name(first.file))
            name = _name(first.file if is_alone else first.file.parent)
            yield _source(f"{name}_test" if fraction == 1.0 else name, chosen, fraction)


def _source(name: str, chosen: Sequence[Looked], fraction: float) -> Source:
    sample, shape = chosen[0].sample, chosen[0].shape
    settings = dict(sample.settings)
    if len({one.sample.settings.get("encoding", "") for one in chosen}) > 1:
        settings["encoding"] = "detect"
    dataset = {
        "name": name,
        "rule": shape.rule,
        "paths": [one.address for one in chosen],
        **settings,
        "columns": dict(shape.columns),
        **shape.more,
        **({"eval_fraction": fraction} if fraction else {}),
    }
    files = list(dict.fromkeys(one.file for one in chosen))
    source = Source(
        dataset,
        [*sample.evidence, shape.why],
        list(map(str, files)),
        sum(one.stat().st_size for one in files),
        rows=sum(one.sample.total for one in chosen),
    )
    return previewed(source, sample.rows, sample.rejected)


def previewed(source: Source, rows: Sequence[Row], rejected: Mapping[str, int] = MappingProxyType({})) -> Source:
    """The same with what its first rows become; ``rejected`` could not be read.

    Raises:
        NotUnderstood: Most of them become nothing, so the guess is wrong.
    """
    dataset = Dataset.model_validate(source.dataset)
    found = preview_of(dataset, rows, rejected)
    if found.kept < FEWEST_KEPT * len(rows):
        raise NotUnderstood(
            f"{source.files[0]}: as {dataset.rule} {len(rows) - found.kept} of {len(rows)} rows are dropped "
            f"({found.reasons})"
        )
    return replace(source, examples=found.examples, kept=found.kept, read=found.read, dropped=found.dropped)


def _aligned(place: Path, files: Sequence[Path], given: Mapping[str, str]) -> Iterator[Source]:
    """Files of one folder whose lines belong together: as many in each, and names that begin alike."""
    counts: dict[tuple[Path, str, int], list[Path]] = defaultdict(list)
    for file in files:
        counts[file.parent, file.name.split(".")[0], line_count(local_file(file))].append(file)
    for (folder, _, lines), group in counts.items():
        if len(group) < 2 or lines < 2:
            continue
        inputs = [local_file(one) for one in group]
        sample = aligned_sample(inputs)
        shape = shape_of(sample.rows, given)
        if shape.rule == "documents":
            continue
        name = _name(folder if place.is_dir() else place)
        looked = [Looked(one, glob.escape(str(one)), sample, shape) for one in group]
        yield replace(_source(name, looked, EVAL_FRACTION), rows=sample.total)


def _name(path: Path) -> str:
    """A dataset's name made of a file's or folder's."""
    return dataset_name(path.name.split(".")[0] if path.is_file() else path.resolve().name)


def dataset_name(text: str) -> str:
    """Words that may stand as a dataset's name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "data"


def distinct(sources: Sequence[Source]) -> list[Source]:
    """The same, no two of one name."""
    seen: Counter[str] = Counter()
    found = []
    for one in sources:
        name = one.dataset["name"]
        seen[name] += 1
        found.append(
            one if seen[name] == 1 else replace(one, dataset={**one.dataset, "name": f"{name}_{seen[name]}"})
        )
    return found
