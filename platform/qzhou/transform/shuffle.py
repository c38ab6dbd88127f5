"""Bringing rows together before they become examples: by query, by document, by package.

Each function does one piece of work on files, knows nothing of Ray, and leaves one file whose existence says that the
piece is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, groupby, islice
from typing import Any

import pyarrow as pa
import xxhash

from qzhou.config.dataset import Dataset
from qzhou.data.records import Document, normalized_text
from qzhou.data.storage import Folder, table_of, write_table
from qzhou.transform.cleaning import clean_text
from qzhou.transform.columns import Row, getter
from qzhou.transform.fields import GROUPED_BY, Fields, columns_of, input_columns_of
from qzhou.transform.lines import Refused
from qzhou.transform.partitions import read_partition, write_partitions
from qzhou.transform.plan import PARSED_PARTS, Piece, Plan, Shard, format_of, packages_key
from qzhou.transform.python_docs import collector_paused, docstrings, pairs
from qzhou.transform.readers import read_split
from qzhou.transform.splits import held_out

ROWS_PER_CHUNK = 10_000  # what a task holds in memory at a time
ROWS_PER_PIECE = 2**40  # positions of a piece's rows start at part * this

# ``row`` is JSON; ``refused`` says that it is a refusal, which belongs to no group.
SHUFFLED = pa.schema(
    [("key", pa.string()), ("position", pa.int64()), ("refused", pa.bool_()), ("row", pa.string())]
)


def shuffle_piece(plan: Plan, piece: Piece) -> None:
    """Do one piece of a round; nothing happens if it is done already."""
    if piece.role == "packages":
        _parse_packages(plan, piece)
    elif piece.role == "pairs":
        _pair_up(plan, plan.dataset(piece.dataset))
    elif piece.role == "join":
        _join(plan, plan.dataset(piece.dataset), piece)
    else:
        _spread(plan, plan.dataset(piece.dataset), piece)


def is_done(plan: Plan, piece: Piece) -> bool:
    if piece.role == "packages":
        return _parsed(plan, piece.dataset).exists(f"{piece.name}.arrow")
    if piece.role == "pairs":
        return _paired(plan, piece.dataset).exists(f"{PARSED_PARTS - 1:06d}.arrow")
    return _folder(plan, piece.dataset, piece.role).exists(f"{piece.name}.json")


def units(plan: Plan, shard: Shard) -> Iterator[list[Row] | Refused]:
    """The rows that make one example each, or the refusal of one that cannot be read."""
    dataset = plan.dataset(shard.dataset)
    if shard.kind == "grouped":
        yield from _groups(_batches(plan, dataset, "rows", shard.part))
    elif shard.kind == "joined":
        queries, refused = _texts(plan, dataset, "queries", shard.part)
        yield from refused
        for group in _groups(_batches(plan, dataset, "join", shard.part)):
            if isinstance(group, Refused):
                yield group
            else:
                yield [{**row, "query": queries.get(row["query_id"])} for row in group]
    else:
        yield from (
            row if isinstance(row, Refused) else [row] for row in _single_rows(plan, dataset, shard)
        )


def _single_rows(plan: Plan, dataset: Dataset, shard: Shard) -> Iterator[Row | Refused]:
    """The rows of a shard whose rule takes one at a time."""
    if shard.kind == "split":
        assert shard.split is not None
        return read_split(dataset.name, dataset, shard.split, plan.own.get(dataset.reader))
    if shard.kind == "spread":
        return _unpacked(_batches(plan, dataset, "rows", shard.part))
    folder = (
        _paired(plan, dataset.name)
        if dataset.view == "pairs"
        else _parsed(plan, packages_key(dataset))
    )
    return _unpacked(read_partition(folder, [f"{shard.part:06d}.arrow"], 0))


def _batches(plan: Plan, dataset: Dataset, role: str, partition: int) -> Iterator[pa.RecordBatch]:
    """One partition of what was shuffled, all pieces of it."""
    folder = _folder(plan, dataset.name, role)
    return read_partition(folder, folder.files(".arrow"), partition)


def _folder(plan: Plan, dataset: str, role: str) -> Folder:
    return plan.work / "shuffled" / dataset / role


def _parsed(plan: Plan, key: str) -> Folder:
    return plan.work / "parsed" / key


def _paired(plan: Plan, dataset: str) -> Folder:
    return plan.work / "paired" / dataset


def _spread(plan: Plan, dataset: Dataset, piece: Piece) -> None:
    """Rows to the partitions of their keys."""
    form = format_of(dataset, piece.role)
    assert piece.split is not None
    rows = read_split(dataset.name, form, piece.split, plan.own.get(form.reader))
    key_of = _key_of(plan, dataset, piece.role)
    position = piece.part * ROWS_PER_PIECE
    for chunk in count():
        packed = []
        for row in islice(rows, ROWS_PER_CHUNK):
            key, content = ("", row) if isinstance(row, Refused) else key_of(row)
            packed.append(_packed(key, position, content))
            position += 1
        if not packed:
            break
        _write(plan, dataset, piece, chunk, pa.Table.from_pylist(packed, schema=SHUFFLED))
    _done(plan, dataset, piece)


def _done(plan: Plan, dataset: Dataset, piece: Piece) -> None:
    """Leave the mark that a piece is done."""
    _folder(plan, dataset.name, piece.role).write_json(f"{piece.name}.json", {})


def _key_of(plan: Plan, dataset: Dataset, role: str) -> Callable[[Row], tuple[str, Row]]:
    """What finds a row's key, and what of the row goes on."""
    if role != "rows":
        identify = getter(input_columns_of(dataset, role)["id"])
        return lambda row: (_id(identify(row)), row)
    if dataset.rule == "qrels":
        read = {name: getter(column) for name, column in columns_of(dataset).items()}

        def judgement(row: Row) -> tuple[str, Row]:
            query, document = _id(read["query_id"](row)), _id(read["document_id"](row))
            return document, {
                "raw": row,
                "query_id": query,
                "document_id": document,
                "grade": read["grade"](row),
            }

        return judgement
    if dataset.rule not in GROUPED_BY:
        return lambda row: ("", row)
    fields, name = Fields(dataset, plan.recipe.transform.max_chars), GROUPED_BY[dataset.rule]
    return lambda row: (normalized_text(fields.text(row, name)), row)


def _id(value: Any) -> str:
    # a lone surrogate would not come back
    return str(value).strip().encode("utf-8", "replace").decode()


def _join(plan: Plan, dataset: Dataset, piece: Piece) -> None:
    """One partition of the corpus; its judgements go, with the texts of their documents, to those of the queries."""
    texts, refused = _texts(plan, dataset, "corpus", piece.part)
    documents = [Document(id=key, text=text) for key, text in texts.items() if text]
    for part, start in enumerate(range(0, len(documents), ROWS_PER_CHUNK)):
        some = table_of(documents[start : start + ROWS_PER_CHUNK], Document)
        write_table(
            plan.folder / "corpora" / dataset.name, f"part-{piece.name}-{part:04d}.parquet", some
        )
    packed = [_packed("", position, one) for position, one in enumerate(refused)]
    for row in _shuffled(plan, dataset, "rows", piece.part):
        if not row["refused"]:
            content = json.loads(row["row"])
            row = _packed(
                content["query_id"], row["position"], {**content, "document": texts.get(row["key"])}
            )
        packed.append(row)
    _write(plan, dataset, piece, 0, pa.Table.from_pylist(packed, schema=SHUFFLED))
    _done(plan, dataset, piece)


def _texts(
    plan: Plan, dataset: Dataset, role: str, partition: int
) -> tuple[dict[str, str], list[Refused]]:
    """Id -> cleaned text of the documents or queries of one partition; and those that are blank or come again."""
    read, max_chars = (
        getter(input_columns_of(dataset, role)["text"]),
        plan.recipe.transform.max_chars,
    )
    texts: dict[str, str] = {}
    refused: list[Refused] = []
    for row in _shuffled(plan, dataset, role, partition):
        key, content = row["key"], json.loads(row["row"])
        if row["refused"]:
            refused.append(Refused(**content))
            continue
        text = clean_text(str(read(content) or ""), max_chars)
        if not text:
            refused.append(Refused("blank_text", f"{role}: '{key}' has no text", row["row"]))
        elif texts.get(key):
            refused.append(
                Refused(
                    "repeated_id", f"{role}: '{key}' came before, and that text counts", row["row"]
                )
            )
        if not texts.get(key):
            texts[key] = text
    return texts, refused


def _shuffled(plan: Plan, dataset: Dataset, role: str, partition: int) -> Iterator[dict[str, Any]]:
    for batch in _batches(plan, dataset, role, partition):
        yield from batch.to_pylist()


def _write(plan: Plan, dataset: Dataset, piece: Piece, chunk: int, table: pa.Table) -> None:
    """Rows by the hash of their keys; those without one go where their chunk goes."""
    partitions = plan.partitions[dataset.name]
    numbers = [
        (xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")) if key else chunk)
        % partitions
        for key in table["key"].to_pylist()
    ]
    name = f"{piece.name}-{chunk:05d}.arrow"
    write_partitions(_folder(plan, dataset.name, piece.role), name, table, numbers, partitions)


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Row] | Refused]:
    """Rows with the same key, in the order in which the first of each group was read."""
    table = pa.Table.from_batches(list(batches), schema=SHUFFLED).sort_by(
        [("key", "ascending"), ("position", "ascending")]
    )
    keys, positions, refused = (table[name].to_pylist() for name in ("key", "position", "refused"))
    groups: list[tuple[int, list[int]]] = []
    for _, members in groupby(
        range(len(keys)), key=lambda index: (keys[index], refused[index] and index)
    ):
        rows = list(members)
        groups.append((positions[rows[0]], rows))
    for _, rows in sorted(groups):
        contents = [json.loads(table["row"][index].as_py()) for index in rows]
        yield Refused(**contents[0]) if refused[rows[0]] else contents


def _parse_packages(plan: Plan, piece: Piece) -> None:
    with collector_paused():
        rows = [row for file in piece.sources for row in docstrings(file)]
    _write_parsed(_parsed(plan, piece.dataset), piece.name, rows)


def _pair_up(plan: Plan, dataset: Dataset) -> None:
    """Pairs of docstrings; drawing partners needs all summaries at once, so this is one task."""
    names = [f"{part:06d}.arrow" for part in range(PARSED_PARTS)]
    rows = list(_unpacked(read_partition(_parsed(plan, packages_key(dataset)), names, 0)))
    refused = [row for row in rows if isinstance(row, Refused)]
    documented = [row for row in rows if not isinstance(row, Refused)]
    drawn: list[Row | Refused] = [
        *refused,
        *pairs(documented, partial(held_out, fraction=dataset.eval_fraction)),
    ]
    size = -(-len(drawn) // PARSED_PARTS)
    for part in range(PARSED_PARTS):
        _write_parsed(
            _paired(plan, dataset.name), f"{part:06d}", drawn[part * size : (part + 1) * size]
        )


def _write_parsed(folder: Folder, name: str, rows: Sequence[Row | Refused]) -> None:
    table = pa.Table.from_pylist(
        [_packed("", position, row) for position, row in enumerate(rows)], schema=SHUFFLED
    )
    write_partitions(folder, f"{name}.arrow", table, [0] * len(rows), 1)


def _packed(key: str, position: int, row: Mapping[str, Any] | Refused) -> dict[str, Any]:
    refused = isinstance(row, Refused)
    content = (
        {"reason": row.reason, "detail": row.detail, "content": row.content}
        if isinstance(row, Refused)
        else row
    )
    # a lone surrogate survives as an escape, which Arrow can hold
    text = json.dumps(content, ensure_ascii=False, default=str)
    if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
        text = json.dumps(content, default=str)
    return {
        "key": key.encode("utf-8", "replace").decode(),
        "position": position,
        "refused": refused,
        "row": text,
    }


def _unpacked(batches: Iterable[pa.RecordBatch]) -> Iterator[Row | Refused]:
    for batch in batches:
        for refused, text in zip(
            batch["refused"].to_pylist(), batch["row"].to_pylist(), strict=True
        ):
            content = json.loads(text)
            yield Refused(**content) if refused else content
