"""How the run was made: stages with inputs, outputs and times, versions, the recipe."""

import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Folded, Heading, Panels, Source, Text, missing
from qzhou.evaluation.report.tables import Table, Value, numbers, texts
from qzhou.run.files import STAGES, RunFiles

PACKAGES = ("qzhou", "torch", "ray", "transformers", "sentence-transformers", "deepspeed", "mteb")


def blocks(files: RunFiles) -> Iterator[Block]:
    """The manifests, the installed packages and the recipe."""
    yield Heading("Stages")
    if files.manifests:
        yield Panels([_times(files)])
        yield _lineage(files)
    unfinished = [stage for stage in STAGES if stage not in files.manifests]
    if unfinished:
        yield Text(f"Not finished: {', '.join(unfinished)}.")
    yield Heading("Versions")
    yield Text("Installed where this page was written.")
    rows = [["python", platform.python_version()], *([name, _version(name)] for name in PACKAGES)]
    yield Table("Versions", texts("package", "version"), rows)
    yield Heading("Recipe")
    if files.recipe:
        source = Source(json.dumps(files.recipe, indent=2, ensure_ascii=False))
        yield Folded("The resolved recipe: every setting", [source])
    else:
        yield missing("recipe.json")


def _times(files: RunFiles) -> plots.Plot:
    minutes = plots.Bar("minutes", plots.BLUE, [one.wall_s / 60 for one in files.manifests.values()])
    return plots.bars("wall time by stage", list(files.manifests), [minutes], x="minutes", stacked=True)


def _lineage(files: RunFiles) -> Table:
    columns = [*texts("stage"), *numbers("tenths", "wall time, s"), *texts("made", style="prose")]
    columns += [*texts("finished"), *texts("fingerprint", "inputs", "code version", style="code")]
    rows: list[list[Value]] = []
    for stage, one in files.manifests.items():
        made = ", ".join(f"{number:,} {name}" for name, number in one.outputs.items())
        inputs = []
        for name, fingerprint in one.inputs.items():
            note = " (another since)" if files.is_outdated(name, fingerprint) else ""
            inputs.append(f"{name} {fingerprint}{note}")
        read = "\n".join(inputs)
        rows.append([stage, one.wall_s, made, one.finished_at, one.fingerprint, read, one.code_version])
    return Table("Stages, what they read and what they made", columns, rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
