"""New records beside the texts of the evaluation: the same n-grams that the transform compares raw rows with. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qzhou.config.transform import ContaminationSection
from qzhou.data.overlap import Index, Overlap, overlap_rows
from qzhou.data.records import EXAMPLE_TYPES, Negative, Task
from qzhou.data.storage import table_of
from qzhou.synthesis.generation import SynthesisResult, SyntheticRecord, dropped_record, without_held_out


@dataclass(slots=True)
class OverlapFilter:
    """Counts the new examples that overlap with evaluation texts, and drops them where the recipe says so.

    Attributes:
        settings: Of the transform, whose index it uses.
        index: None where nothing is compared.
        held_out: Normalised texts that evaluations ask with or ask for.
    """

    settings: ContaminationSection
    index: Index | None
    held_out: frozenset[str] = frozenset()
    overlaps: dict[str, Overlap] = field(default_factory=dict)

    def filtered(self, result: SynthesisResult, tasks: Mapping[str, Task]) -> SynthesisResult:
        """The records without those to be dropped; ``tasks`` are by dataset. Written negatives are not compared.

        A record with a held-out text, its negatives included, is dropped in any case.
        """
        result = without_held_out(result, self.held_out)
        if self.index is None or self.settings.action == "off":
            return result
        new: dict[str, list[SyntheticRecord]] = defaultdict(list)
        for one in result.records:
            if not isinstance(one.record, Negative):
                new[one.request.dataset].append(one)
        copies = set[int]()
        for name, ones in new.items():
            task = tasks[name]
            table = table_of([one.record for one in ones], EXAMPLE_TYPES[task])
            hit = self.overlaps.setdefault(name, Overlap(name)).compare(table, task, self.index)
            copies |= {id(one) for one, is_hit in zip(ones, hit.tolist(), strict=True) if is_hit}
        if self.settings.action != "drop":
            return result
        kept = SynthesisResult(dropped=list(result.dropped))
        for one in result.records:
            if id(one) in copies:
                detail = "it shares an n-gram with a text of the evaluation (transform.contamination)"
                kept.dropped.append(dropped_record(one, "contaminated", detail))
            else:
                kept.records.append(one)
        return kept

    def rows(self) -> list[dict[str, Any]]:
        """A row per dataset and evaluation task that overlap, as in the report of the transform."""
        return overlap_rows(self.overlaps)
