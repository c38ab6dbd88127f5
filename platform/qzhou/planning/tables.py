"""A plan as people read it, and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qzhou.planning.plan import Plan, PlannedStage

MARKS = {"measured": "", "scaled": "~", "assumed": "*"}
LEGEND = "Times: no mark: measured; ~ measured on other machines, scaled; * assumed, never measured on such machines."
COLUMNS = (
    "stage",
    "rows in",
    "rows out",
    "tokens",
    "FLOPs",
    "read",
    "written",
    "start",
    "time",
    "machines",
    "$",
)
WIDTH = 150  # where there is no terminal


def as_text(plan: Plan) -> RenderableType:
    """Tables of the stages and of the assumptions, and sentences between them."""
    return Group(_stages(plan), *(Text(line) for line in _sentences(plan)), _assumptions(plan))


def shown(plan: Plan) -> None:
    """Print a plan."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    console.print(as_text(plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything in base units: seconds, bytes, FLOPs, US dollars."""
    return {
        "run": plan.name,
        "total": {"wall_s": plan.wall_s, "usd": plan.money},
        "stages": [_stage_as_json(one) for one in plan.stages],
        "serving": {
            **dataclasses.asdict(plan.serving),
            "million_tokens_s": plan.serving.million_tokens_s,
            "million_requests_s": plan.serving.million_requests_s,
            "million_requests_money": plan.serving.million_requests_money,
        },
        "datasets": [dataclasses.asdict(one) for one in plan.rows],
        "machines": {"cpu": str(plan.fleet.cpu), "gpu": str(plan.fleet.gpu)},
        "storage": {"gb": plan.storage_gb, "usd_a_month": plan.storage_money},
        "lengths": plan.lengths,
        "assumptions": [dataclasses.asdict(one) for one in plan.assumptions],
        "notes": list(plan.notes),
    }


def _stage_as_json(one: PlannedStage) -> dict[str, Any]:
    return {
        "stage": one.name,
        **({} if one.amount is None else dataclasses.asdict(one.amount)),
        "start_s": one.start_s,
        "wall_s": one.wall_s,
        "bound_by": one.bound_by,
        "machines": str(one.crew),
        "usd": one.money,
        "basis": one.basis,
    }


def _stages(plan: Plan) -> Table:
    grid = Table(title=f"plan of the run '{plan.name}'")
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name in ("stage", "machines") else "right")
    for one in plan.stages:
        grid.add_row(*_cells(one, rented=plan.fleet.rented))
    grid.add_section()
    grid.add_row(
        "total",
        *[""] * 7,
        duration(plan.wall_s),
        "",
        _dollars(plan.money, rented=plan.fleet.rented),
    )
    serving = plan.serving
    machine = f"1 {plan.fleet.gpu.gpu.name}" if plan.fleet.gpu.gpu else str(plan.fleet.gpu)
    for name, tokens, seconds, money in (
        ("serve 1M tokens", 1e6, serving.million_tokens_s, serving.money),
        (
            "serve 1M requests",
            1e6 * serving.request_tokens,
            serving.million_requests_s,
            serving.million_requests_money,
        ),
    ):
        time = duration(seconds) + MARKS[serving.basis]
        grid.add_row(
            name,
            "",
            "",
            short(tokens),
            *[""] * 4,
            time,
            machine,
            _dollars(money, rented=plan.fleet.rented),
        )
    return grid


def _cells(one: PlannedStage, *, rented: bool) -> list[str]:
    amount = one.amount
    numbers = [""] * 6
    if amount is not None:
        numbers = [
            short(amount.rows_in),
            f"{short(amount.rows_out)} {amount.out}",
            short(amount.tokens) if amount.tokens else "",
            short(amount.flops) if amount.flops else "",
            size(amount.read),
            size(amount.written),
        ]
    time = (
        duration(one.wall_s)
        + MARKS[one.basis]
        + (" (storage)" if one.bound_by == "storage" else "")
    )
    return [
        one.name,
        *numbers,
        duration(one.start_s),
        time,
        str(one.crew),
        _dollars(one.money, rented=rented),
    ]


def _sentences(plan: Plan) -> list[str]:
    slowest, share = plan.dominant("wall_s")
    found = [LEGEND, f"{slowest.name} takes {share:.0%} of the time."]
    if plan.money:
        dearest, part = plan.dominant("money")
        bought = sum(one.amount.money for one in plan.stages if one.amount is not None)
        spent = f", of which {bought:,.0f} for an LLM's tokens" if bought else ""
        found.append(f"${plan.money:,.0f} in all{spent}; {dearest.name} is {part:.0%} of it.")
    machines = {
        one.machine.name: one.machine
        for one in (plan.fleet.cpu, plan.fleet.gpu)
        if one.machine is not None
    }
    for machine in machines.values():
        found.append(
            f"{machine.name} ({machine.cloud}): list price ${machine.price:g}/h, read {machine.read}."
        )
    month = (
        f", ${plan.storage_money:,.2f} a month in an object store" if plan.storage_gb >= 1 else ""
    )
    found.append(f"What stays: {size(plan.storage_gb * 1e9)}{month}.")
    found.append(f"Lengths: {plan.lengths}.")
    return [*found, *(f"Note: {note}." for note in plan.notes)]


def _assumptions(plan: Plan) -> Table:
    grid = Table(title="what this rests on; another value: --assume NAME=VALUE,...")
    for name in ("name", "value", "unit", "kind", "source"):
        grid.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for one in plan.assumptions:
        grid.add_row(one.name, short(one.value), one.unit, one.kind, one.source)
    return grid


def _dollars(money: float, *, rented: bool) -> str:
    if not rented and not money:
        return "-"
    return f"{money:,.0f}" if money >= 100 else f"{money:.3g}"


def short(number: float) -> str:
    """Three figures, and K, M, G, T for tokens and rows; a power of ten beyond."""
    if number >= 1e15 or 0 < number < 1e-2:
        return f"{number:.3g}"
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "K")):
        if number >= power:
            return f"{number / (1e3 if letter == 'K' else power):.3g}{letter}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def size(count: float) -> str:
    """Bytes, in powers of 1,000."""
    for power, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """In the unit that suits."""
    for length, unit in ((172_800, "days"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / (86_400 if unit == 'days' else length):.1f} {unit}"
    return f"{seconds:.1f} s"
