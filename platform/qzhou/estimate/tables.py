"""A plan as people read it, and as JSON."""

import dataclasses
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qzhou.estimate.plan import GB, Plan
from qzhou.estimate.workload import Workload

MARKS = {"measured": "", "scaled": "~", "assumed": "*"}
LEGEND = (
    "Times: no mark: measured; ~ measured on other machines, scaled; * assumed, never measured on such machines."
)
COLUMNS = (
    "stage", "rows in", "rows out", "tokens", "FLOPs", "read", "written", "start", "time", "machines", "$",
)  # fmt: skip


def as_text(plan: Plan) -> RenderableType:
    """Tables of the stages and of the assumptions, and sentences between them."""
    return Group(_stages(plan), *(Text(line) for line in _sentences(plan)), _assumptions(plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything in base units: seconds, bytes, FLOPs, US dollars."""
    return {
        "run": plan.name,
        "total": {"wall_s": plan.wall_s, "usd": plan.usd},
        "stages": [_stage_as_json(one) for one in plan.stages],
        "serving": [_stage_as_json(one) for one in plan.serving],
        "datasets": [dataclasses.asdict(one) for one in plan.rows],
        "machines": {"cpu": str(plan.cluster.cpu), "gpu": str(plan.cluster.gpu)},
        "storage": {"gb": plan.storage_gb, "usd_a_month": plan.storage_usd},
        "lengths": plan.lengths,
        "assumptions": [dataclasses.asdict(one) for one in plan.assumptions],
        "notes": list(plan.notes),
    }


def _stage_as_json(one: Workload) -> dict[str, Any]:
    bound_by = "storage" if one.waits_for_storage else "work"
    computed = {"machines": str(one.machines), "wall_s": one.wall_s, "bound_by": bound_by, "usd": one.usd}
    return dataclasses.asdict(one) | computed


def _stages(plan: Plan) -> Table:
    grid = Table(title=f"plan of the run '{plan.name}'")
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name in ("stage", "machines") else "right")
    for one in plan.stages:
        grid.add_row(*_cells(one, plan))
    grid.add_section()
    grid.add_row("total", *[""] * 7, duration(plan.wall_s), "", _dollars(plan.usd, plan))
    for one in plan.serving:
        grid.add_row(*_cells(one, plan))
    return grid


def _cells(one: Workload, plan: Plan) -> list[str]:
    time = duration(one.wall_s) + (MARKS[one.basis] if one.wall_s else "")
    is_stage = bool(one.unit)
    return [
        one.name,
        short(one.rows_in) if is_stage else "",
        f"{short(one.rows_out)} {one.unit}" if is_stage else "",
        short(one.tokens) if one.tokens else "",
        short(one.flops) if one.flops else "",
        size(one.read_bytes) if is_stage else "",
        size(one.written_bytes) if is_stage else "",
        duration(one.start_s) if one.start_s or is_stage else "",
        time + (" (storage)" if one.waits_for_storage else ""),
        str(one.machines),
        _dollars(one.usd, plan),
    ]


def _sentences(plan: Plan) -> list[str]:
    slowest = max(plan.stages, key=lambda one: one.wall_s)
    dearest = max(plan.stages, key=lambda one: one.usd)
    found = [LEGEND, f"{slowest.name} takes {slowest.wall_s / plan.wall_s:.0%} of the time."]
    if plan.usd:
        llm_usd = sum(one.llm_usd for one in plan.stages)
        spent = f", of which {llm_usd:,.0f} for an LLM's tokens" if llm_usd else ""
        found.append(f"${plan.usd:,.0f} in all{spent}; {dearest.name} is {dearest.usd / plan.usd:.0%} of it.")
    for one in dict.fromkeys(group.machine for group in (plan.cluster.cpu, plan.cluster.gpu)):
        if one:
            found.append(f"{one.name} ({one.cloud}): list price ${one.price:g}/h, read {one.read}.")
    month = f", ${plan.storage_usd:,.2f} a month in an object store" if plan.storage_gb >= 1 else ""
    found.append(f"What stays: {size(plan.storage_gb * GB)}{month}.")
    found.append(f"Lengths: {plan.lengths}.")
    return [*found, *(f"Note: {note}." for note in plan.notes)]


def _assumptions(plan: Plan) -> Table:
    grid = Table(title="what this rests on; another value: --assume NAME=VALUE,...")
    for name in ("name", "value", "unit", "kind", "source"):
        grid.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for one in plan.assumptions:
        grid.add_row(one.name, short(one.value), one.unit, one.kind, one.source)
    return grid


def _dollars(usd: float, plan: Plan) -> str:
    """Three figures, whole from 100 on; a dash where nothing is paid for."""
    if not plan.cluster.rented and not usd:
        return "-"
    return f"{usd:,.0f}" if usd >= 100 else f"{usd:.3g}"


def short(number: float) -> str:
    """Three figures, and K, M, G, T for tokens and rows; a power of ten beyond."""
    if number >= 1e15 or 0 < number < 1e-2:
        return f"{number:.3g}"
    for lowest, power, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if number >= lowest:
            return f"{number / power:.3g}{letter}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def size(count: float) -> str:
    """Bytes, in powers of 1,000."""
    for power, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """In days from two days on, else in hours, minutes or seconds."""
    for lowest, unit_s, unit in ((172_800, 86_400, "days"), (3600, 3600, "h"), (60, 60, "min")):
        if seconds >= lowest:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 or not seconds else f"{seconds:.2g} s"
