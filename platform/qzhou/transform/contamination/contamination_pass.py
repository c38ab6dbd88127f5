"""The contamination pass: a second reading of candidates, for overlaps and the sample."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from qzhou.transform.contamination.overlap import Index, Overlap, grams_of, texts_in
from qzhou.transform.conversion import read_candidates
from qzhou.transform.deduplication.duplicates import DropReason, drop_reasons_of
from qzhou.transform.layout import Layout, Shard


def write_ngrams(layout: Layout, shard: Shard) -> None:
    """Write the n-grams of a shard's held-out examples: queries, relevant documents, texts of pairs and classes.

    A corpus's other documents are not among them: it does no harm to train on a distractor.
    """
    table = read_candidates(layout, shard)
    reasons, _ = drop_reasons_of(layout, shard, table.num_rows)
    held_out = table.filter(pa.array((reasons == 0) & table["held_out"].to_numpy()))
    texts, _ = texts_in(held_out, layout.dataset(shard.dataset).task)
    grams = np.unique(grams_of(texts, layout.recipe.transform.contamination)[0])
    (layout.work / "ngrams").write_bytes(f"{shard.name}.u8", grams.tobytes())


def read_ngrams(layout: Layout, shard: Shard) -> np.ndarray:
    """What :func:`write_ngrams` wrote; uint64."""
    return np.frombuffer((layout.work / "ngrams").read_bytes(f"{shard.name}.u8"), dtype=np.uint64)


def check_shard(layout: Layout, shard: Shard, index: Index | None) -> None:
    """Find the candidates that overlap with evaluation texts, if those are dropped; number the others for the sample.

    Writes ``<shard>.npz``: ``contaminated`` (rows) and ``sample`` (a number for each
    candidate that may be drawn).
    """
    table = read_candidates(layout, shard)
    reasons, _ = drop_reasons_of(layout, shard, table.num_rows)
    training = np.flatnonzero((reasons == 0) & ~table["held_out"].to_numpy())
    contaminated = np.empty(0, dtype=np.int64)
    if index is not None and layout.recipe.transform.contamination.action == "drop":
        hit = write_overlap(layout, shard, table.take(pa.array(training)), index)
        contaminated, training = training[hit], training[~hit]
    numbers = _sample_numbers(layout, table, training)
    with (
        (layout.work / "contamination").writing(f"{shard.name}.npz") as temporary,
        layout.folder.filesystem.open_output_stream(temporary) as stream,
    ):
        np.savez(stream, contaminated=contaminated, sample=numbers)


def write_overlap(layout: Layout, shard: Shard, table: pa.Table, index: Index) -> np.ndarray:
    """Which examples overlap with evaluation texts; writes the counts for the report."""
    overlap = Overlap(shard.dataset)
    hit = overlap.compare(table, layout.dataset(shard.dataset).task, index)
    (layout.work / "overlaps").write_json(f"{shard.name}.json", asdict(overlap))
    return hit


def sample_limits(layout: Layout) -> Mapping[str, int]:
    """Dataset with ``max_rows`` -> the largest number of a candidate in its sample; none where all are drawn.

    A pair counts twice, because it is trained on from both sides. Memory: 8 bytes a row of
    the sample.
    """
    limits = {}
    for dataset in layout.recipe.datasets:
        if dataset.max_rows is None:
            continue
        rows = max(1, dataset.max_rows // 2) if dataset.task == "pair" else dataset.max_rows
        smallest = np.empty(0, dtype=np.uint64)
        total = 0
        for shard in layout.shards_of(dataset.name):
            numbers = _read(layout, shard, "sample")
            total += len(numbers)
            smallest = np.concatenate((smallest, numbers))
            if len(smallest) > rows:
                smallest = np.partition(smallest, rows - 1)[:rows]
        if total > rows:
            limits[dataset.name] = int(smallest.max())
    return limits


def select_rows(
    layout: Layout, shard: Shard, table: pa.Table, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each candidate a :class:`DropReason` or 0, the shard of the row it repeats, and whether it is sampled out.

    ``limit`` is what :func:`sample_limits` gives for the dataset.
    """
    reasons, first = drop_reasons_of(layout, shard, table.num_rows)
    if layout.has_contamination_pass:
        contaminated = _read(layout, shard, "contaminated")
        reasons[contaminated[reasons[contaminated] == 0]] = DropReason.CONTAMINATED
    sampled_out = np.zeros(table.num_rows, dtype=bool)
    if limit is not None:
        training = np.flatnonzero((reasons == 0) & ~table["held_out"].to_numpy())
        sampled_out[training] = _sample_numbers(layout, table, training) > np.uint64(limit)
    return reasons, first, sampled_out


def sample_numbers(ids: Sequence[str], seed: int) -> np.ndarray:
    """A number for each id; a sample is the ids with the smallest ones.

    The number depends on the id alone. So a dataset that grows keeps most of its sample,
    and the order of its files does not matter.
    """
    digests = b"".join(hashlib.sha256(f"{seed} {one}".encode()).digest()[:8] for one in ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _sample_numbers(layout: Layout, table: pa.Table, rows: np.ndarray) -> np.ndarray:
    return sample_numbers(table["id"].take(pa.array(rows)).to_pylist(), layout.recipe.run.seed)


def _read(layout: Layout, shard: Shard, name: str) -> np.ndarray:
    folder = layout.work / "contamination"
    with folder.filesystem.open_input_file(f"{folder.path}/{shard.name}.npz") as stream:
        found: np.ndarray = np.load(stream)[name]
        return found
