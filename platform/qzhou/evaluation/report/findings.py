"""What the diagnosis found."""

from __future__ import annotations

from collections.abc import Iterator

from qzhou.evaluation.report.blocks import Block, Heading, Notice, Section, Text
from qzhou.evaluation.report.files import Found
from qzhou.evaluation.report.tables import Column, Table


def section(found: Found) -> Section:
    """From ``evaluation/diagnosis.json``."""
    return Section("diagnosis", "Diagnosis", [*outdated(found), *_blocks(found)])


def outdated(found: Found) -> Iterator[Block]:
    """A word of warning where what was judged is there no more."""
    if changed := found.changed_since("evaluation"):
        stages = " and ".join(changed)
        yield Text(
            f"This is of an earlier making of {stages}, which ran again since: jobs/evaluate.py judges what is there."
        )


def _blocks(found: Found) -> Iterator[Block]:
    if found.diagnosis is None:
        yield Text("Signs of trouble were not looked for: evaluation/diagnosis.json is not there.")
        return
    findings, unchecked = found.diagnosis.get("findings", []), found.diagnosis.get("unchecked", [])
    if not findings:
        yield Text("Nothing was found.")
    for one in findings:
        yield Notice(one["sign"], one["says"], one["evidence"], one["setting"])
    if unchecked:
        yield Heading("Not looked for")
        rows = [[one["sign"], one["why"]] for one in unchecked]
        yield Table(
            "Signs that were not looked for", [Column("sign"), Column("why", style="prose")], rows
        )
