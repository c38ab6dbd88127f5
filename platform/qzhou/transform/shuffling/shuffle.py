"""Bringing rows together before they become examples: by query, or by document.

Each function does one task on files and knows nothing of Ray.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pyarrow as pa
import xxhash

from qzhou.config.dataset import Dataset
from qzhou.data.records import Document, normalized_text
from qzhou.data.storage import Folder, batched, table_of, write_table
from qzhou.errors import DataError
from qzhou.transform.layout import Layout, Shard, ShuffleTask
from qzhou.transform.reading.columns import RejectedRow, Row, as_text, column_names, getter, row_as_json
from qzhou.transform.reading.discovery import format_of
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part
from qzhou.transform.rules.fields import GROUPED_BY, Fields, columns_of, input_columns_of
from qzhou.transform.shuffling.partitions import write_partitions

DOCUMENT_IDS = ("document_id", "negative_id")
WHOLE = re.compile(r"-?\d+\.0")
ROWS_PER_CHUNK = 10_000  # what a task holds in memory at a time
SHOWN_CHARS = 60
ROWS_PER_TASK = 2**40  # positions of a task's rows start at part * this

# ``row`` is JSON; ``rejected`` says that it is a RejectedRow, which belongs to no group.
SHUFFLED = pa.schema({"key": pa.string(), "position": pa.int64(), "rejected": pa.bool_(), "row": pa.string()})


def rows_by_example(layout: Layout, shard: Shard) -> Iterator[list[Row] | RejectedRow]:
    """The raw rows of each example of a shard, or a row that cannot be read."""
    dataset = layout.dataset(shard.dataset)
    if shard.kind in {"file", "spread"}:
        if shard.files is not None:
            rows = _read(layout, dataset, "rows", shard.files)
        else:
            rows = (_unpacked(row) for row in _partition(layout, dataset, "rows", shard.part))
        yield from (row if isinstance(row, RejectedRow) else [row] for row in rows)
    elif shard.kind == "grouped":
        yield from _groups(_batches(layout, dataset, "rows", shard.part))
    else:
        fields = Fields(dataset, layout.recipe.transform.max_chars)
        queries, rejected = _texts(layout, fields, "queries", shard.part)
        yield from rejected
        for group in _groups(_batches(layout, dataset, "join", shard.part)):
            if not isinstance(group, RejectedRow):
                group = [{**row, "query": queries.get(row["query_id"])} for row in group]
            yield group


def run_shuffle_task(layout: Layout, task: ShuffleTask) -> None:
    """Distribute a part of an input over partitions, or join one partition of documents."""
    work = _join if task.role == "join" else _spread
    work(layout, layout.dataset(task.dataset), task)


def _spread(layout: Layout, dataset: Dataset, task: ShuffleTask) -> None:
    """Write each row into the partition of its key."""
    assert task.files is not None
    names = {"files": [file.name for file in task.files.files]}
    _folder(layout, dataset.name, task.role).write_json(f"{task.part:06d}.json", names)
    rows = _read(layout, dataset, task.role, task.files)
    keys_of = _keys_of(layout, dataset, task.role)
    keyed = (one for row in rows for one in ([("", row)] if isinstance(row, RejectedRow) else keys_of(row)))
    packed = (_packed(key, position, row) for position, (key, row) in enumerate(keyed, task.part * ROWS_PER_TASK))
    for chunk, some in enumerate(batched(packed, ROWS_PER_CHUNK)):
        _write(layout, task, chunk, some)


def _keys_of(layout: Layout, dataset: Dataset, role: str) -> Callable[[Row], list[tuple[str, Row]]]:
    """A function that finds a row's key, and what is kept of the row; a row of ids gives a judgement for each."""
    if role != "rows":
        read_id = getter(input_columns_of(dataset, role)["id"])
        return lambda row: [(_id(read_id(row)), row)]
    if dataset.rule == "qrels":
        judged = Judgements(dataset)
        return lambda row: [(one["document_id"], one) for one in judged(row)]
    fields = Fields(dataset, layout.recipe.transform.max_chars)
    if dataset.name in layout.merged:
        return lambda row: [(_question(row, fields), row)]
    if dataset.rule not in GROUPED_BY:
        return lambda row: [("", row)]
    name = GROUPED_BY[dataset.rule]
    return lambda row: [(normalized_text(fields.text(row, name)), row)]


class Judgements:
    """The judgements in a raw row of qrels: one, or one for each id where a column holds a list.

    Documents of ``negative_id`` have the dataset's ``negative_grade``, and those of
    ``document_id`` then its ``positive_grade``, unless ``columns.grade`` names a column.
    """

    def __init__(self, dataset: Dataset) -> None:
        columns = columns_of(dataset)
        self._read = {name: getter(column) for name, column in columns.items()}
        self._dataset, self._has_negatives = dataset, "negative_id" in columns
        self._of_ids = {root for name in DOCUMENT_IDS if name in columns for root in column_names(columns[name])}

    def __call__(self, row: Row) -> list[Row]:
        """Each with ``raw``, ``query_id``, ``document_id`` and ``grade``; ``raw`` has one id in place of a list."""
        query, grade = _id(self._read["query_id"](row)), self._dataset.positive_grade
        if not self._has_negatives or "grade" in self._dataset.columns:
            grade = self._read["grade"](row)
        found = [("document_id", one, grade) for one in _ids(self._read["document_id"](row))]
        if self._has_negatives:
            grade = self._dataset.negative_grade
            found += [("negative_id", one, grade) for one in _ids(self._read["negative_id"](row))]
        if len(found) > 1:
            around = {name: value for name, value in row.items() if name not in self._of_ids}
            raws = [{**around, name: one} for name, one, _ in found]
        else:
            raws, found = [row], found or [("document_id", "", grade)]
        return [
            {"raw": raw, "query_id": query, "document_id": document, "grade": grade}
            for raw, (_, document, grade) in zip(raws, found, strict=True)
        ]


def _ids(value: Any) -> list[str]:
    """Each id of a cell; a blank one, or an object in place of an id, is "", which no document has."""
    cells = value if isinstance(value, list | tuple) else [value]
    return [_id(one) for one in cells if one is not None]


def _question(row: Row, fields: Fields) -> str:
    """What rows have in common whose negatives come together: query, positives and instruction."""
    texts = [fields.text(row, "query"), *sorted(fields.texts(row, "positive"))]
    texts += [fields.text(row, "instruction")] if fields.has("instruction") else []
    return "\n".join(map(normalized_text, texts))


def _id(value: Any) -> str:
    # Arrow cannot hold a lone surrogate.
    text = as_text(value).strip().encode("utf-8", "replace").decode()
    # a column of whole numbers that had gaps once was written as 1.0
    return text[:-2] if WHOLE.fullmatch(text) else text


def _join(layout: Layout, dataset: Dataset, task: ShuffleTask) -> None:
    """Write one partition of the corpus; send its qrels, with document texts, to the partitions of the queries."""
    fields = Fields(dataset, layout.recipe.transform.max_chars)
    texts, rejected = _texts(layout, fields, "corpus", task.part)
    (layout.work / "cut" / dataset.name).write_json(f"{task.part:06d}.json", fields.cut)
    documents = [Document(id=key, text=text) for key, text in texts.items() if text]
    for part, some in enumerate(batched(documents, ROWS_PER_CHUNK)):
        name = f"part-{task.part:06d}-{part:04d}.parquet"
        write_table(layout.folder / "corpora" / dataset.name, name, table_of(some, Document))
    packed = [_packed("", position, one) for position, one in enumerate(rejected)]
    for row in _partition(layout, dataset, "rows", task.part):
        if not row["rejected"]:
            content = json.loads(row["row"]) | {"document": texts.get(row["key"])}
            row = _packed(content["query_id"], row["position"], content)
        packed.append(row)
    _write(layout, task, 0, packed)


def _texts(layout: Layout, fields: Fields, role: str, partition: int) -> tuple[dict[str, str], list[RejectedRow]]:
    """Id -> cleaned text of the documents or queries of one partition; and the blank and the repeated ones.

    Raises:
        DataError: Two files, or two rows of one, have different texts with the same id.
    """
    read = getter(input_columns_of(fields.dataset, role)["text"])
    texts: dict[str, str] = {}
    part_of: dict[str, int] = {}
    rejected: list[RejectedRow] = []
    for packed in _partition(layout, fields.dataset, role, partition):
        row = _unpacked(packed)
        if isinstance(row, RejectedRow):
            rejected.append(row)
            continue
        key = packed["key"]
        text, part = fields.clean(read(row)), packed["position"] // ROWS_PER_TASK
        known = texts.get(key)
        if not text:
            texts.setdefault(key, "")
            rejected.append(RejectedRow("blank_text", f"{role}: '{key}' has no text", packed["row"]))
        elif known and known != text:
            raise _two_texts(layout, fields.dataset.name, role, (key, known, text), (part_of[key], part))
        elif known:
            rejected.append(
                RejectedRow("repeated_id", f"{role}: '{key}' came before, the same text", packed["row"])
            )
        else:
            texts[key], part_of[key] = text, part
    return texts, rejected


def _two_texts(
    layout: Layout, dataset: str, role: str, found: tuple[str, str, str], parts: tuple[int, int]
) -> DataError:
    """The error about an id with two texts, which names the files that tasks of a shuffle read."""
    key, first, second = found
    folder = _folder(layout, dataset, role)
    files = dict.fromkeys(name for part in parts for name in folder.read_json(f"{part:06d}.json")["files"])
    return DataError(
        f"dataset '{dataset}': {role}: the id '{key}' has two texts, '{first[:SHOWN_CHARS]}' and "
        f"'{second[:SHOWN_CHARS]}', in {', '.join(files)}. Judgements could mean either: read the collections as two "
        "datasets, or give their documents ids of their own."
    )


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Row] | RejectedRow]:
    """Rows with the same key, in the order in which the first of each group was read."""
    table = pa.Table.from_batches(list(batches), schema=SHUFFLED)
    table = table.sort_by([("key", "ascending"), ("position", "ascending")])
    keys, positions, rejected = (table[name].to_pylist() for name in ("key", "position", "rejected"))
    # A rejected row has a group of its own.
    neighbours = groupby(range(len(keys)), key=lambda row: (keys[row], rejected[row] and row))
    groups = [list(rows) for _, rows in neighbours]
    for rows in sorted(groups, key=lambda rows: positions[rows[0]]):
        contents = [json.loads(table["row"][row].as_py()) for row in rows]
        yield RejectedRow(**contents[0]) if rejected[rows[0]] else contents


def _read(layout: Layout, dataset: Dataset, role: str, files: FilePart) -> Iterator[Row | RejectedRow]:
    """The rows of raw files; what is wrong with them is said with the dataset's name."""
    form = format_of(dataset, role)
    try:
        yield from read_part(form, files, layout.readers.get(form.reader), layout.recipe.model.backbone)
    except DataError as error:
        raise DataError(f"dataset '{dataset.name}': {error}") from None


def shuffled(dataset: str, role: str) -> str:
    """The folder of ``work`` for the rows of an input."""
    return f"shuffled/{dataset}/{role}"


def _folder(layout: Layout, dataset: str, role: str) -> Folder:
    return layout.work / shuffled(dataset, role)


def _batches(layout: Layout, dataset: Dataset, role: str, partition: int) -> Iterator[pa.RecordBatch]:
    """One partition of what was shuffled, by all tasks."""
    return layout.partition(shuffled(dataset.name, role), partition)


def _partition(layout: Layout, dataset: Dataset, role: str, partition: int) -> Iterator[dict[str, Any]]:
    """The same as packed rows."""
    for batch in _batches(layout, dataset, role, partition):
        yield from batch.to_pylist()


def _write(layout: Layout, task: ShuffleTask, chunk: int, packed: list[dict[str, Any]]) -> None:
    """Write rows by the hash of their keys; those without one go where their chunk goes."""
    table = pa.Table.from_pylist(packed, schema=SHUFFLED)
    partitions = layout.partitions[task.dataset]
    keys = (row["key"].encode("utf-8", "surrogatepass") for row in packed)
    numbers = [(xxhash.xxh3_64_intdigest(key) if key else chunk) % partitions for key in keys]
    folder = _folder(layout, task.dataset, task.role)
    write_partitions(folder, f"{task.part:06d}-{chunk:05d}.arrow", table, numbers, partitions)


def _packed(key: str, position: int, row: Mapping[str, Any] | RejectedRow) -> dict[str, Any]:
    rejected = isinstance(row, RejectedRow)
    text = row_as_json(asdict(row) if isinstance(row, RejectedRow) else row)
    key = key.encode("utf-8", "replace").decode()
    return {"key": key, "position": position, "rejected": rejected, "row": text}


def _unpacked(packed: Mapping[str, Any]) -> Row | RejectedRow:
    content: Row = json.loads(packed["row"])
    return RejectedRow(**content) if packed["rejected"] else content
