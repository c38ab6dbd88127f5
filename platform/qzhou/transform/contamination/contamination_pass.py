"""The contamination pass: a second reading of candidates, for overlaps and the sample."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import xxhash

from qzhou.data.overlap import Index, Overlap, grams_of, texts_in
from qzhou.transform.conversion import read_candidates
from qzhou.transform.deduplication.duplicates import DropReason, drop_reasons_of
from qzhou.transform.layout import Layout, Shard

SampleLimits = dict[int, int]  # what a sample is drawn from -> the largest number of a candidate in it


def write_ngrams(layout: Layout, shard: Shard) -> None:
    """Write the n-grams of a shard's held-out examples: queries, relevant documents, texts of pairs and classes.

    A corpus's other documents are not among them: it does no harm to train on a distractor.
    """
    table = read_candidates(layout, shard)
    reasons, _ = drop_reasons_of(layout, shard, table["place"].to_numpy())
    held_out = table.filter(pa.array((reasons == 0) & table["held_out"].to_numpy()))
    texts, _ = texts_in(held_out, layout.dataset(shard.dataset).task)
    grams = np.unique(grams_of(texts, layout.recipe.transform.contamination.sizes)[0])
    (layout.work / "ngrams").write_bytes(f"{shard.name}.u8", grams.tobytes())


def read_ngrams(layout: Layout, shard: Shard) -> np.ndarray:
    """What :func:`write_ngrams` wrote; uint64."""
    return np.frombuffer((layout.work / "ngrams").read_bytes(f"{shard.name}.u8"), dtype=np.uint64)


def check_shard(layout: Layout, shard: Shard, index: Index | None) -> None:
    """Find the candidates that overlap with evaluation texts, if those are dropped; number the others for the sample.

    Writes ``<shard>.npz``: ``contaminated`` (rows), and for each candidate that may be drawn
    ``sample``, a number, and ``group``, what the sample is drawn from.
    """
    table = read_candidates(layout, shard)
    reasons, _ = drop_reasons_of(layout, shard, table["place"].to_numpy())
    training = np.flatnonzero((reasons == 0) & ~table["held_out"].to_numpy())
    contaminated = np.empty(0, dtype=np.int64)
    if index is not None and layout.recipe.transform.contamination.action == "drop":
        hit = write_overlap(layout, shard, shard.name, table.take(pa.array(training)), index)
        contaminated, training = training[hit], training[~hit]
    numbers, groups = _sample_numbers(layout, shard, table, training)
    content = io.BytesIO()
    np.savez(content, contaminated=contaminated, sample=numbers, group=groups)
    (layout.work / "contamination").write_bytes(f"{shard.name}.npz", content.getvalue())


def write_overlap(layout: Layout, shard: Shard, name: str, table: pa.Table, index: Index) -> np.ndarray:
    """Which examples overlap with evaluation texts; writes the counts for the report, under a name."""
    overlap = Overlap(shard.dataset)
    hit = overlap.compare(table, layout.dataset(shard.dataset).task, index)
    (layout.work / "overlaps").write_json(f"{name}.json", asdict(overlap))
    return hit


def sample_limits(layout: Layout) -> dict[str, SampleLimits]:
    """Dataset with ``max_rows`` or ``max_rows_per_label`` -> the limits of its sample.

    A pair counts twice, because it is trained on from both sides. Memory: 32 bytes a row of
    the sample.
    """
    limits = {}
    for dataset in layout.recipe.datasets:
        rows = dataset.max_rows_per_label or dataset.max_rows
        if rows is None:
            continue
        if dataset.task == "pair":
            rows = max(1, rows // 2)
        groups, numbers = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
        drawn = 0
        shards = layout.shards_of(dataset.name)
        for shard in shards:
            groups = np.concatenate((groups, _read(layout, shard, "group")))
            numbers = np.concatenate((numbers, _read(layout, shard, "sample")))
            if len(numbers) > 2 * drawn or shard is shards[-1]:  # sorts as many rows as are read, about twice
                kept = smallest(groups, numbers, rows)
                groups, numbers, drawn = groups[kept], numbers[kept], len(kept)
        largest: SampleLimits = {}
        for group, number in zip(groups.tolist(), numbers.tolist(), strict=True):
            largest[group] = max(number, largest.get(group, 0))
        limits[dataset.name] = largest
    return limits


def smallest(groups: np.ndarray, numbers: np.ndarray, rows: int) -> np.ndarray:
    """Positions of the ``rows`` smallest numbers of each group."""
    order = np.lexsort((numbers, groups))
    ranked = groups[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)])
    rank = np.arange(len(ranked)) - np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    positions: np.ndarray = order[rank < rows]
    return positions


def select_rows(
    layout: Layout, shard: Shard, table: pa.Table, limits: SampleLimits | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each candidate a :class:`DropReason` or 0, the shard of the row it repeats, and whether it is sampled out.

    ``limits`` are what :func:`sample_limits` gives for the dataset.
    """
    reasons, first = drop_reasons_of(layout, shard, table["place"].to_numpy())
    if layout.has_contamination_pass:
        contaminated = _read(layout, shard, "contaminated")
        reasons[contaminated[reasons[contaminated] == 0]] = DropReason.CONTAMINATED
    sampled_out = np.zeros(table.num_rows, dtype=bool)
    if limits is not None:
        training = np.flatnonzero((reasons == 0) & ~table["held_out"].to_numpy())
        numbers, groups = _sample_numbers(layout, shard, table, training)
        sampled_out[training] = numbers > np.array([limits[group] for group in groups.tolist()], dtype=np.uint64)
    return reasons, first, sampled_out


def sample_numbers(ids: Sequence[str], seed: int) -> np.ndarray:
    """A number for each id; a sample is the ids with the smallest ones.

    The number depends on the id alone. So a dataset that grows keeps most of its sample,
    and the order of its files does not matter.
    """
    digests = b"".join(hashlib.sha256(f"{seed} {one}".encode()).digest()[:8] for one in ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _sample_numbers(
    layout: Layout, shard: Shard, table: pa.Table, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row for the sample, and its group: its label's digest, or 0 where labels do not count."""
    taken = table.take(pa.array(rows))
    ids = taken["id"].to_pylist()
    if not layout.drops_repeats_of(layout.dataset(shard.dataset)):
        # equal rows, which stay, are drawn each for itself
        ids = [f"{one} {shard.name} {row}" for one, row in zip(ids, rows.tolist(), strict=True)]
    numbers, groups = sample_numbers(ids, layout.recipe.run.seed), np.zeros(len(rows), np.uint64)
    if layout.dataset(shard.dataset).max_rows_per_label is not None:
        digests = [xxhash.xxh3_64_intdigest(label.encode()) for label in taken["label"].to_pylist()]
        groups = np.array(digests, dtype=np.uint64)
    return numbers, groups


def _read(layout: Layout, shard: Shard, name: str) -> np.ndarray:
    folder = layout.work / "contamination"
    with folder.filesystem.open_input_file(f"{folder.path}/{shard.name}.npz") as stream:
        found: np.ndarray = np.load(stream)[name]
        return found
