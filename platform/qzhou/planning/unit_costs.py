"""What each part of a stage costs on some machines: a start, and seconds for each unit of its amount.

From the table (:func:`table_costs`), or from a finished run (:mod:`qzhou.planning.measured`) where that was made by
machines that can be compared (:func:`costs_on`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from qzhou.config.recipe import Recipe
from qzhou.costs.hardware import Gpu
from qzhou.planning.amounts import PARTS, Workload
from qzhou.planning.assumptions import Assumptions
from qzhou.planning.target import Crew, Fleet

Basis = Literal["measured", "scaled", "assumed"]
ON_CPUS = ("transform.rows", "synthesis.requests", "mining.search")  # whatever GPUs there are


@dataclasses.dataclass(frozen=True, slots=True)
class UnitCost:
    """Of one part, on all machines that work on it together.

    Attributes:
        start_s: Whatever there is to do.
        per_unit_s: For each unit of its amount.
        basis: ``scaled`` is measured on other machines.
    """

    start_s: float
    per_unit_s: float
    basis: Basis

    def seconds(self, amount: float) -> float:
        """0 where there is nothing to do."""
        return self.start_s + self.per_unit_s * amount if amount else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Unit costs of a finished run, and the machine it had.

    Attributes:
        gpu: Each worker's; None: CPUs.
        gpus: That trained at the same time.
    """

    parts: Mapping[str, UnitCost]
    cpus: int
    gpu: Gpu | None = None
    gpus: int = 0


def table_costs(
    recipe: Recipe, work: Workload, fleet: Fleet, assumed: Assumptions
) -> dict[str, UnitCost]:
    """Unit costs by the table, scaled to machines by their peaks; on GPUs nothing was measured, so all is assumed."""
    start = assumed["worker_start_s"]
    load = work.shape.parameters * 2 / assumed["load_bytes_per_s"] if fleet.rented else 0.0
    cpu, gpu = fleet.cpu, fleet.gpu
    encode, train = (
        _seconds_a_flop(gpu, assumed, kind) for kind in ("encode_utilisation", "train_utilisation")
    )
    row_s = work.row_bytes / (assumed["transform_bytes_per_cpu_s"] * _effective(cpu, assumed))
    judged = (
        assumed["judged_task_s"]
        * work.stages["evaluation"].rows_out
        / max(1, min(gpu.gpus, work.tasks))
    )
    bases: Mapping[str, tuple[float, float]] = {
        "transform.rows": (assumed["stage_start_s"], row_s),
        "synthesis.requests": (
            assumed["stage_start_s"],
            _seconds_a_request(recipe, work, assumed),
        ),
        "synthesis.score": (start, encode),
        "mining.encode": (start + load, encode),
        "mining.search": (
            assumed["stage_start_s"],
            1 / _effective(dataclasses.replace(gpu, gpu=None), assumed),
        ),
        "training/stage1.steps": (start + load, train),
        "training/stage2.steps": (start + load, train),
        "model.export": (start + load, 0.0),
        "evaluation.judge": (start + load + judged, encode),
    }
    return {part: UnitCost(*bases[part], basis="assumed") for part in PARTS}


def costs_on(
    fleet: Fleet,
    table: Mapping[str, UnitCost],
    measured: MeasuredCosts | None,
    assumed: Assumptions,
    *,
    cpus_told: bool,
) -> dict[str, UnitCost]:
    """The measured costs where they tell something of these machines, else the table's.

    - On the machine that was measured (no GPU asked for, CPUs as they were): as measured.
    - Work on CPUs on more of them: measured seconds shared by them, at ``scaling``.
    - Work on GPUs: the share of the peak that the measured GPU reached, on the peak of the other.
    - A run on CPUs tells nothing of GPUs: the table.
    """
    if measured is None:
        return dict(table)
    found = dict(table)
    for part, cost in measured.parts.items():
        crew = fleet.cpu if part.startswith(("transform", "synthesis")) else fleet.gpu
        if not fleet.rented and measured.gpu is None:
            scales = cpus_told and part != "synthesis.requests"
            speed = crew.cpus / measured.cpus if scales else 1.0
        elif part in ON_CPUS:
            speed = (
                1.0 if part == "synthesis.requests" else _effective(crew, assumed) / measured.cpus
            )
        elif measured.gpu is not None and fleet.gpu.gpu is not None:
            speed = fleet.gpu.gpus * fleet.gpu.gpu.flops / (measured.gpus * measured.gpu.flops)
        else:
            continue
        start = (
            cost.start_s
            if part == "model.export" or not fleet.rented
            else max(cost.start_s, table[part].start_s)
        )
        found[part] = UnitCost(
            start, cost.per_unit_s / speed, "measured" if speed == 1 else "scaled"
        )
    return found


def _effective(crew: Crew, assumed: Assumptions) -> float:
    """CPUs, less what many machines lose."""
    return crew.cpus * (assumed["scaling"] if crew.count > 1 else 1.0)


def _seconds_a_flop(crew: Crew, assumed: Assumptions, kind: str) -> float:
    if crew.gpu is not None:
        return 1 / (crew.gpus * crew.gpu.flops * assumed[kind])
    return 1 / (crew.cpus * assumed["cpu_flops"] * assumed[f"cpu_{kind}"])


def _seconds_a_request(recipe: Recipe, work: Workload, assumed: Assumptions) -> float:
    """What the slowest of latency, requests a minute and tokens a minute leaves."""
    settings = recipe.synthesis
    if not work.requests:
        return 0.0
    if settings.is_builtin:
        return 1 / assumed["builtin_requests_per_s"]
    limits = [assumed["llm_latency_s"] / (settings.concurrency * assumed["llm_efficiency"])]
    limits += [60 / settings.requests_per_minute] if settings.requests_per_minute else []
    limits += (
        [60 * work.request_tokens / settings.tokens_per_minute]
        if settings.tokens_per_minute
        else []
    )
    return max(limits)
