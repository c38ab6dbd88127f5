"""What the diagnosis found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qzhou.evaluation.report.blocks import Block, Notice, Section, Text
from qzhou.evaluation.report.files import Found


def section(found: Found) -> Section:
    """From ``evaluate/diagnosis.json``."""
    return Section("diagnosis", "Diagnosis", list(_blocks(found)))


def _blocks(found: Found) -> Iterator[Block]:
    if found.diagnosis is None:
        yield Text("Signs of trouble were not looked for: evaluate/diagnosis.json is not there.")
        return
    findings, unchecked = found.diagnosis.get("findings", []), found.diagnosis.get("unchecked", [])
    if not findings:
        yield Text("Nothing was found.")
    for one in findings:
        yield Notice(one["sign"], one["says"], _written(one.get("evidence")), _written(one.get("setting")))
    if unchecked:
        signs = "; ".join(f"{one['sign']} ({one['why']})" for one in unchecked)
        yield Text(f"Could not be looked for: {signs}.")


def _written(value: Any, between: str = "\n") -> str:
    """A text, or one made of what a list or a mapping holds."""
    if isinstance(value, Mapping):
        return between.join(f"{name}: {one}" for name, one in value.items())
    if isinstance(value, list):
        return between.join(_written(one, ", ") for one in value)
    return "" if value is None else str(value)
