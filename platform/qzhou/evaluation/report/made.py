"""How it was made: stages with what they read and left, their time, versions, the recipe."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from qzhou.evaluation.report.blocks import (
    Block,
    Folded,
    Heading,
    Panels,
    Section,
    Source,
    Text,
    missing,
)
from qzhou.evaluation.report.files import STAGES, Content, Found
from qzhou.evaluation.report.plots import Bar, Plot, bars
from qzhou.evaluation.report.tables import Column, Table, Value, tenths

PACKAGES = ("qzhou", "torch", "ray", "transformers", "sentence-transformers", "deepspeed", "mteb")


def section(found: Found) -> Section:
    """From the manifests, ``recipe.json`` and what is installed."""
    return Section("made", "How it was made", list(_blocks(found)))


def _blocks(found: Found) -> Iterator[Block]:
    yield Heading("Stages")
    if found.manifests:
        yield Panels([_times(found.manifests)])
        yield _lineage(found.manifests)
    unfinished = [stage for stage in STAGES if stage not in found.manifests]
    if unfinished:
        yield Text(f"Not finished: {', '.join(unfinished)}.")
    yield Heading("Versions")
    yield Text("Installed where this page was written.")
    rows = [["python", platform.python_version()], *([name, _version(name)] for name in PACKAGES)]
    yield Table("Versions", [Column("package"), Column("version")], rows)
    yield Heading("Recipe")
    if found.recipe:
        whole = json.dumps(found.recipe, indent=2, ensure_ascii=False)
        yield Folded("The resolved recipe: every setting", [Source(whole)])
    else:
        yield missing("recipe.json")


def _times(manifests: Content) -> Plot:
    minutes = Bar("minutes", "#4c86d8", [one["wall_s"] / 60 for one in manifests.values()])
    return bars("wall time by stage", list(manifests), [minutes], x="minutes", stacked=True)


def _lineage(manifests: Content) -> Table:
    columns = [
        Column("stage"),
        Column("wall time, s", tenths),
        Column("made", style="prose"),
        Column("finished"),
    ]
    columns += [Column(title, style="code") for title in ("fingerprint", "inputs", "code version")]
    rows: list[list[Value]] = [
        [
            stage, one["wall_s"], _outputs(one["outputs"]), one["finished_at"], one["fingerprint"],
            "\n".join(_inputs(one["inputs"], manifests)), one["code_version"],
        ]
        for stage, one in manifests.items()
    ]  # fmt: skip
    return Table("Stages, what they read and what they made", columns, rows)


def _outputs(outputs: Content) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in outputs.items())


def _inputs(inputs: Content, manifests: Content) -> Iterator[str]:
    """Each input with its fingerprint, and whether the stage that made it has been run again since."""
    for name, fingerprint in inputs.items():
        stage = f"training/{name}" if f"training/{name}" in STAGES else name
        now = manifests.get(stage, {}).get("fingerprint", fingerprint)
        yield f"{name} {fingerprint}" + ("" if now == fingerprint else " (another since)")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
