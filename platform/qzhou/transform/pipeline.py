"""The transform stage: Ray Data reads, parses and applies the rules; the driver judges and writes."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from qzhou.cluster import session
from qzhou.errors import DataError
from qzhou.recipe import Dataset, Recipe
from qzhou.records import (
    EXAMPLE_TYPES,
    TASKS,
    Document,
    Drop,
    Example,
    Manifest,
    PairExample,
    RetrievalExample,
    stable_id,
)
from qzhou.runs import Run, file_fingerprint
from qzhou.storage import Folder, write_records
from qzhou.transform.judging import DETAILS, HELD_OUT, SAMPLED_OUT, TRAINING, Mark, is_drop, verdicts
from qzhou.transform.outcomes import judgeable, split_column
from qzhou.transform.python_docs import (
    DOCSTRING_COLUMNS,
    PAIR_COLUMNS,
    SourceFile,
    collector_paused,
    docstrings,
    pairs,
    source_files,
)
from qzhou.transform.readers import Refused, check_columns, input_files, read_rows
from qzhou.transform.rules import columns_of, drop, swapped
from qzhou.transform.splits import held_out

BLOCKS = 16  # enough for all cores to finish together, few enough that starting tasks does not count
ROWS_PER_TABLE = 2000
OUTPUT_FOLDERS = ("examples", "corpora", "held_out", "dropped")

REFUSED_COLUMNS = tuple(field.name for field in dataclasses.fields(Refused))
RAW_DOCSTRING = pa.schema([(name, pa.string()) for name in (*DOCSTRING_COLUMNS, *REFUSED_COLUMNS)])

Sources = Mapping[str, Sequence[str] | Sequence[SourceFile]]
Blocks = Sequence[Any]  # references to tables of outcomes.JUDGEABLE in the object store


def transform(recipe: Recipe) -> Manifest:
    """Turn the raw datasets of a recipe into examples, corpora and held-out examples.

    Writes ``examples/<task>/<dataset>``, ``held_out/<task>/<dataset>``, ``corpora/<dataset>`` (the
    distinct positives of the retrieval examples) and ``dropped`` into the run's folder ``transform``.

    Raises:
        DataError: A file, package or column is missing, a dataset is empty, or nothing of it survives
            the rules. What was dropped is written even then.
        RecipeError: ``columns`` names a field that the dataset's rule does not have.
    """
    sources = {dataset.name: _sources(dataset) for dataset in recipe.datasets}
    return Run.open(recipe).stage(
        "transform",
        partial(_work, recipe, sources),
        settings={
            "datasets": [dataset.model_dump(exclude={"instruction", "symmetric"}) for dataset in recipe.datasets],
            "transform": recipe.transform.model_dump(),
            "seed": recipe.run.seed,
        },
        inputs={name: file_fingerprint([_path(source) for source in found]) for name, found in sources.items()},
        rooms=("transform",),
    )


def _sources(dataset: Dataset) -> Sequence[str] | Sequence[SourceFile]:
    """The raw files of a dataset, whose columns are those that the recipe names."""
    wanted = {*columns_of(dataset).values(), split_column(dataset)} - {None}
    if dataset.reader == "python_docs":
        present = dict.fromkeys(PAIR_COLUMNS if dataset.view == "pairs" else DOCSTRING_COLUMNS)
        check_columns(dataset.name, f"python_docs, view '{dataset.view}',", sorted(map(str, wanted)), [present])
        try:
            return source_files(dataset.packages)
        except DataError as error:
            raise DataError(f"dataset '{dataset.name}': {error}") from None
    files = input_files(dataset.name, dataset.paths)
    for path in files:
        rows = read_rows(dataset.reader, path, header=_has_header(dataset))
        check_columns(dataset.name, path, sorted(map(str, wanted)), rows)
    return files


def _has_header(dataset: Dataset) -> bool:
    """Columns named by number ask for a CSV file without a header."""
    return not all(column.isdecimal() for column in columns_of(dataset).values())


def _path(source: str | SourceFile) -> str:
    return source if isinstance(source, str) else source.path


def _work(recipe: Recipe, sources: Sources, folder: Folder) -> dict[str, int]:
    for name in OUTPUT_FOLDERS:
        (folder / name).delete()
    with session():
        blocks = _apply_rules(recipe, sources)
        judged = verdicts(
            recipe.datasets,
            {name: partial(_marks, found) for name, found in blocks.items()},
            deduplicate=recipe.transform.deduplicate,
            seed=recipe.run.seed,
        )
        dropped = write_records(folder / "dropped", _drops(recipe.datasets, blocks, judged), Drop)
        _refuse_lost_datasets(recipe.datasets, blocks, judged)
        counts = Counter({f"{task} examples": 0 for task in TASKS})
        for dataset in recipe.datasets:
            counts.update(_write(folder, dataset, blocks[dataset.name], judged[dataset.name]))
    return {**counts, "dropped rows": dropped}


def _apply_rules(recipe: Recipe, sources: Sources) -> dict[str, Blocks]:
    """Dataset name -> its judgeable rows in the object store. Packages that datasets share are parsed once."""
    users = Counter(dataset.packages for dataset in recipe.datasets if dataset.reader == "python_docs")
    parsed: dict[tuple[str, ...], Any] = {}
    blocks = {}
    for dataset in recipe.datasets:
        found = sources[dataset.name]
        print(f"transform: reading {dataset.name} ({len(found):,} files)", flush=True)
        if dataset.reader == "python_docs":
            if dataset.packages not in parsed:
                raw = _parse_sources(found)
                parsed[dataset.packages] = raw.materialize() if users[dataset.packages] > 1 else raw
            rows = parsed[dataset.packages]
            if dataset.view == "pairs":
                rows = _pair_up(rows, dataset)
            apply: Any = _apply_to_rows
        else:
            rows = ray.data.from_items([{"path": path} for path in found], override_num_blocks=len(found))
            apply = _apply_to_files
        settings = {"dataset": dataset, "max_chars": recipe.transform.max_chars}
        made = rows.map_batches(apply, batch_size=None, batch_format="pyarrow", fn_kwargs=settings)
        blocks[dataset.name] = made.to_arrow_refs()
    return blocks


def _parse_sources(files: Sequence[Any]) -> Any:
    """Ray dataset of RAW_DOCSTRING rows."""
    items = [dataclasses.asdict(file) for file in files]
    blocks = min(BLOCKS, len(items))
    return ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _parse, batch_size=None, batch_format="pyarrow"
    )


def _parse(files: pa.Table) -> pa.Table:
    with collector_paused():
        rows = [row for file in files.to_pylist() for row in docstrings(SourceFile(**file))]
    plain = [dataclasses.asdict(row) if isinstance(row, Refused) else row for row in rows]
    return pa.Table.from_pylist([_encodable(row) for row in plain], schema=RAW_DOCSTRING)


def _encodable(row: Mapping[str, str]) -> Mapping[str, str]:
    """A docstring may hold escaped lone surrogates, which Arrow cannot."""
    if all(value.isascii() for value in row.values()):
        return row
    return {name: value.encode("utf-8", "replace").decode("utf-8") for name, value in row.items()}


def _pair_up(rows: Any, dataset: Dataset) -> Any:
    """Ray dataset of pairs; drawing partners needs all summaries at once, so it happens here on the driver."""
    tables = [ray.get(block) for block in rows.to_arrow_refs()]
    whole = pa.concat_tables([RAW_DOCSTRING.empty_table(), *(table for table in tables if table.num_rows)])
    read = pc.is_null(whole["reason"])
    documented = whole.filter(read).drop_columns(["body"]).to_pylist()
    refused = whole.filter(pc.invert(read)).select(REFUSED_COLUMNS)
    drawn = pa.Table.from_pylist(list(pairs(documented, partial(held_out, fraction=dataset.held_out_fraction))))
    drawn = pa.concat_tables([refused, drawn], promote_options="default")
    size = max(1, -(-drawn.num_rows // BLOCKS))
    return ray.data.from_arrow([drawn.slice(start, size) for start in range(0, max(1, drawn.num_rows), size)])


def _apply_to_rows(rows: pa.Table, dataset: Dataset, max_chars: int) -> pa.Table:
    return judgeable((_unpacked(row) for row in rows.to_pylist()), dataset, max_chars)


def _unpacked(row: dict[str, Any]) -> dict[str, Any] | Refused:
    return Refused(**{name: row[name] for name in REFUSED_COLUMNS}) if row.get("reason") else row


def _apply_to_files(files: pa.Table, dataset: Dataset, max_chars: int) -> Iterator[pa.Table]:
    for path in files["path"].to_pylist():
        rows = read_rows(dataset.reader, path, header=_has_header(dataset))
        while chunk := list(itertools.islice(rows, ROWS_PER_TABLE)):
            yield judgeable(chunk, dataset, max_chars)


def _marks(blocks: Blocks) -> Iterator[Mark]:
    for block in blocks:
        table = ray.get(block)
        if table.num_rows:  # an empty block has no columns
            yield from map(Mark, *(table[column].to_pylist() for column in Mark._fields))


def _records(blocks: Blocks, judged: Sequence[str], wanted: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(verdict, record) of the rows whose verdict is wanted; no other record is unpickled."""
    chosen, start = set(wanted), 0
    for block in blocks:
        table = ray.get(block)
        rows = judged[start : start + table.num_rows]
        start += table.num_rows
        for index, verdict in enumerate(rows):
            if verdict in chosen:
                yield verdict, pickle.loads(table["record"][index].as_py())


def _drops(
    datasets: Sequence[Dataset], blocks: Mapping[str, Blocks], judged: Mapping[str, Sequence[str]]
) -> Iterator[Drop]:
    for dataset in datasets:
        reasons = {verdict for verdict in set(judged[dataset.name]) if is_drop(verdict)}
        for verdict, record in _records(blocks[dataset.name], judged[dataset.name], reasons):
            if isinstance(record, Drop):
                yield record
            else:
                yield drop(dataset.name, verdict, DETAILS[verdict], dataclasses.asdict(record))


def _refuse_lost_datasets(
    datasets: Sequence[Dataset], blocks: Mapping[str, Blocks], judged: Mapping[str, Sequence[str]]
) -> None:
    """Stop where a dataset leaves nothing to train on, unless all of it was to be held out."""
    for dataset in datasets:
        counts = Counter(judged[dataset.name])
        if not counts:
            raise DataError(f"dataset '{dataset.name}' is empty: its files hold no rows. Check 'paths' or 'packages'.")
        if counts[TRAINING] or (counts[HELD_OUT] and dataset.held_out_fraction == 1.0):
            continue
        commonest = [(reason, rows) for reason, rows in counts.most_common() if is_drop(reason)][:5]
        lines = [f"    {rows:,} {reason}: {_example_of(reason, dataset, blocks, judged)}" for reason, rows in commonest]
        raise DataError(
            f"dataset '{dataset.name}': none of its {counts.total():,} rows can be trained on "
            f"({counts[HELD_OUT]:,} are held out). The commonest reasons, with an example each:\n"
            + "\n".join(lines)
            + f"\nLook at rule ('{dataset.rule}'), columns ({columns_of(dataset)}), min_positive_chars "
            f"({dataset.min_positive_chars}) and held_out_fraction ({dataset.held_out_fraction}) of this dataset; "
            "all refused rows are in transform/dropped."
        )


def _example_of(
    reason: str, dataset: Dataset, blocks: Mapping[str, Blocks], judged: Mapping[str, Sequence[str]]
) -> str:
    dropped = next(
        _drops([dataset], blocks, {dataset.name: [v if v == reason else SAMPLED_OUT for v in judged[dataset.name]]})
    )
    return f"{dropped.detail} | {dropped.record[:160]}"


def _write(folder: Folder, dataset: Dataset, blocks: Blocks, judged: Sequence[str]) -> Counter[str]:
    """Write a dataset's examples, held-out examples and corpus; say in one line what became of its rows."""
    record_type: type[Any] = EXAMPLE_TYPES[dataset.task]
    training = (record for _, record in _records(blocks, judged, [TRAINING]))
    held = (record for _, record in _records(blocks, judged, [HELD_OUT]))
    kept = write_records(folder / "examples" / dataset.task / dataset.name, _both_ways(training), record_type)
    held_rows = write_records(folder / "held_out" / dataset.task / dataset.name, held, record_type)
    if dataset.task == "retrieval":
        again = (record for _, record in _records(blocks, judged, [TRAINING]))
        write_records(folder / "corpora" / dataset.name, _documents(dataset.name, again), Document)
    counts = Counter(judged)
    reasons = [f"{rows:,} {reason}" for reason, rows in counts.most_common() if is_drop(reason)]
    dropped = f"; dropped {', '.join(reasons[:5])}" if reasons else ""
    left = f", {counts[SAMPLED_OUT]:,} beyond max_rows" if counts[SAMPLED_OUT] else ""
    print(f"transform: {dataset.name}: {kept:,} kept, {held_rows:,} held out{left}{dropped}", flush=True)
    return Counter({f"{dataset.task} examples": kept, "held-out examples": held_rows})


def _both_ways(examples: Iterable[Example]) -> Iterator[Example]:
    """Pairs are followed by themselves with their sides exchanged (QZhou-Embedding, section 3.2)."""
    for example in examples:
        yield example
        if isinstance(example, PairExample):
            yield swapped(example)


def _documents(dataset: str, examples: Iterable[RetrievalExample]) -> Iterator[Document]:
    for text in dict.fromkeys(positive for example in examples for positive in example.positives):
        yield Document(id=stable_id(dataset, text), text=text)
