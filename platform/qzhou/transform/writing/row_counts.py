"""Counts of what becomes of rows: read = kept + held out + sampled out + dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from qzhou.data.records import Drop

EXAMPLES = 2  # of each reason; the rest are in dropped/
EXAMPLE_CHARS = 200


@dataclass(slots=True)
class RowCounts:
    """What became of the rows of a dataset, or of a part of it.

    Attributes:
        dataset: Its name.
        read: Raw rows.
        kept: Raw rows whose example is trained on, from one side or both.
        held_out: Raw rows whose example is held out.
        sampled_out: Raw rows that ``max_rows`` or ``max_rows_per_label`` leaves out.
        cut: Texts that ``transform.max_chars`` has cut.
        dropped: Reason -> raw rows.
        parts: Reason -> parts of rows that were kept otherwise.
        examples: Reason -> some (detail, record).
        languages: ISO 639-1 code -> texts of a sample.
        lengths: Field -> characters rounded up to a power of two -> training texts.
        written: Kind of record -> how many were written.
    """

    dataset: str
    read: int = 0
    kept: int = 0
    held_out: int = 0
    sampled_out: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[str]] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)

    def drop(self, refused: Drop) -> None:
        """Count a row, or a part of one, that is dropped."""
        counts = self.parts if refused.part else self.dropped
        counts[refused.reason] += 1
        examples = self.examples.setdefault(refused.reason, [])
        if len(examples) < EXAMPLES:
            examples.append([refused.detail[:EXAMPLE_CHARS], refused.record[:EXAMPLE_CHARS]])

    def add(self, other: RowCounts) -> None:
        """Add the counts of another part."""
        for name in ("read", "kept", "held_out", "sampled_out", "cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "parts", "languages", "written"):
            getattr(self, name).update(getattr(other, name))
        for name, counts in other.lengths.items():
            self.lengths.setdefault(name, Counter()).update(counts)
        for reason, examples in other.examples.items():
            own = self.examples.setdefault(reason, [])
            own += examples[: EXAMPLES - len(own)]

    @property
    def dropped_rows(self) -> int:
        """Raw rows that were dropped for any reason."""
        return self.dropped.total()

    def plain(self) -> dict[str, Any]:
        """The counts as JSON holds them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, content: dict[str, Any]) -> RowCounts:
        """The counts from what :meth:`plain` gave."""
        counters = {name: Counter(content[name]) for name in ("dropped", "parts", "languages", "written")}
        lengths = {name: Counter(counts) for name, counts in content["lengths"].items()}
        return cls(**{**content, **counters, "lengths": lengths})
