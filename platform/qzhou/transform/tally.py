"""Counting what becomes of rows: read = kept + dropped, by reason, with a few examples of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from qzhou.data.records import Drop

EXAMPLES = 2  # of each reason; the rest stand in dropped/
SHOWN_CHARS = 200


@dataclass(slots=True)
class Tally:
    """What became of the rows of a dataset, or of a part of it.

    Attributes:
        dataset: Its name.
        read: Raw rows.
        kept: Raw rows whose example is trained on, from one side or both.
        held_out: Raw rows whose example is held out.
        sampled_out: Raw rows that ``max_rows`` leaves out.
        dropped: Reason -> raw rows.
        parts: Reason -> parts of rows that were kept otherwise.
        examples: Reason -> some (detail, record).
        languages: ISO 639-1 code -> texts of a sample.
        lengths: Field -> characters rounded up to a power of two -> texts that are trained on.
        written: Kind of record -> how many were written.
    """

    dataset: str
    read: int = 0
    kept: int = 0
    held_out: int = 0
    sampled_out: int = 0
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
        shown = self.examples.setdefault(refused.reason, [])
        if len(shown) < EXAMPLES:
            shown.append([refused.detail[:SHOWN_CHARS], refused.record[:SHOWN_CHARS]])

    def add(self, other: Tally) -> None:
        """Take in the counts of another part."""
        self.read += other.read
        self.kept += other.kept
        self.held_out += other.held_out
        self.sampled_out += other.sampled_out
        for mine, theirs in (
            (self.dropped, other.dropped),
            (self.parts, other.parts),
            (self.written, other.written),
        ):
            mine.update(theirs)
        self.languages.update(other.languages)
        for name, counts in other.lengths.items():
            self.lengths.setdefault(name, Counter()).update(counts)
        for reason, shown in other.examples.items():
            mine_shown = self.examples.setdefault(reason, [])
            mine_shown += shown[: EXAMPLES - len(mine_shown)]

    @property
    def dropped_rows(self) -> int:
        return self.dropped.total()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Tally:
        """From what :meth:`plain` gave."""
        counters = {
            name: Counter(content[name]) for name in ("dropped", "parts", "languages", "written")
        }
        lengths = {name: Counter(counts) for name, counts in content["lengths"].items()}
        return cls(**{**content, **counters, "lengths": lengths})
