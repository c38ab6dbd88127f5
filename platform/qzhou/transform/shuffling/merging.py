"""Fewer and larger reads for a large shuffle: files of many small batches become files of few large ones.

S files of P partitions are S x P reads, which grow with the square of the data. A pass
reads neighbouring files whole, and writes each range of partitions into a file of its own:

    pass 0   all files, partitions 0 to P       -> some ranges of partitions, each in fewer files
    pass 1   the files of a range of them       -> narrower ranges
    ...

until a read is large enough. So the number of reads grows with the bytes and, slowly, with
the number of passes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise

import numpy as np
import pyarrow as pa

from qzhou.transform.layout import Layout
from qzhou.transform.shuffling.partitions import PartitionRange, write_batches


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """When files are merged, and how.

    Attributes:
        few_reads: So many reads of single partitions are nothing.
        read_bytes: Further ones should be so large on average.
        task_bytes: Of files that a task reads.
        fan_out: Files that a task writes, at the most.
    """

    few_reads: int = 2**15
    read_bytes: int = 2**20
    task_bytes: int = 2**27
    fan_out: int = 64


LIMITS = MergeLimits()


@dataclass(frozen=True, slots=True)
class Merge:
    """A task: files that it reads whole, and the partitions at which it cuts what it writes.

    Attributes:
        number: Among the tasks of its range.
        names: Files, in order.
        cuts: The first partition of the files, the first partition of each further file that is written, and the
            partition behind the last.
    """

    number: int
    names: tuple[str, ...]
    cuts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its mark."""
        return f"{self.cuts[0]:06d}-{self.number:06d}"

    def written(self) -> Iterator[tuple[str, int, int]]:
        """Each file that it writes: name, first partition, the partition behind the last."""
        for first, after in pairwise(self.cuts):
            yield f"{first:06d}-{self.number:06d}.arrow", first, after


# Given the name of a step, its tasks by name and the work, does the work on each task that is not done.
Each = Callable[[str, Mapping[str, Merge], Callable[[Layout, Merge], None]], None]


def merged(
    layout: Layout,
    place: str,
    partitions: int,
    each: Each,
    names: Iterable[str] | None = None,
    limits: MergeLimits = LIMITS,
) -> Layout:
    """The layout with the files that the partitions of a shuffle are read from: as they are, or merged.

    Args:
        layout: Whose tasks have written the files.
        place: Their folder in ``work``; files that are written get folders below it.
        partitions: Of each file.
        each: Runs the tasks of a pass.
        names: The files, in the order of their rows; default: all that are there, by name.
        limits: When and how files are merged.
    """
    folder = layout.work / place
    sizes = folder.sizes(".arrow")
    ranges = [PartitionRange(0, partitions, {name: sizes[name] for name in (sizes if names is None else names)})]
    for number in count():
        plan = next_pass(ranges, partitions, limits)
        if not any(plan):
            break
        target = f"merged-{number}"
        step = f"merge-{place.replace('/', '-')}-{number}"
        each(step, {task.name: task for own in plan for task in own}, partial(merge, place, target))
        sizes = {f"{target}/{name}": size for name, size in (folder / target).sizes(".arrow").items()}
        ranges = after_pass(ranges, plan, sizes, target)
    return replace(layout, partitioned={**layout.partitioned, place: tuple(ranges)})


def next_pass(ranges: Sequence[PartitionRange], partitions: int, limits: MergeLimits) -> list[list[Merge]]:
    """The tasks that make the reads of each range fewer; none where they are few enough."""
    return [_merges_of(one, partitions, limits) for one in ranges]


def after_pass(
    ranges: Sequence[PartitionRange], plan: Sequence[Sequence[Merge]], sizes: Mapping[str, int], place: str
) -> list[PartitionRange]:
    """The ranges that a pass has made of ``ranges``; ``sizes`` are those of the files that it wrote to ``place``."""
    found: list[PartitionRange] = []
    for one, tasks in zip(ranges, plan, strict=True):
        if not tasks:
            found.append(one)
            continue
        for written in zip(*(task.written() for task in tasks), strict=True):
            _, first, after = written[0]
            names = [f"{place}/{name}" for name, _, _ in written]
            found.append(PartitionRange(first, after, {name: sizes[name] for name in names}))
    return found


def merge(place: str, target: str, layout: Layout, task: Merge) -> None:
    """Read the files of a task and write its ranges of partitions to ``target`` below ``place``."""
    folder = layout.work / place
    files = [pa.ipc.open_file(pa.BufferReader(folder.read_bytes(name))) for name in task.names]
    for name, first, after in task.written():
        partitions = range(first - task.cuts[0], after - task.cuts[0])
        tables = (pa.Table.from_batches([file.get_batch(one) for file in files]) for one in partitions)
        write_batches(folder / target, name, tables)


def _merges_of(one: PartitionRange, partitions: int, limits: MergeLimits) -> list[Merge]:
    width = one.after - one.first
    few = limits.few_reads * width / partitions + one.size / limits.read_bytes
    if len(one.files) == 1 or len(one.files) * width <= few:
        return []
    groups = list(_groups(one.files, limits.task_bytes))
    ways = min(width, limits.fan_out, -(-one.size // limits.task_bytes))
    if ways == 1 and len(groups) == len(one.files):
        return []
    cuts = tuple(np.linspace(one.first, one.after, ways + 1).astype(int).tolist())
    return [Merge(number, names, cuts) for number, names in enumerate(groups)]


def _groups(files: Mapping[str, int], most_bytes: int) -> Iterator[tuple[str, ...]]:
    """Neighbouring files that are together no larger than ``most_bytes``, or one file."""
    group: list[str] = []
    total = 0
    for name, size in files.items():
        if group and total + size > most_bytes:
            yield tuple(group)
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield tuple(group)
