"""A plan: every stage's work, time, machines and money, their sums, and what they rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from qzhou.config.recipe import Recipe
from qzhou.costs.lengths import texts_of
from qzhou.costs.training import DatasetTexts, Length, Work, forward_flops
from qzhou.planning.amounts import Amount, Counted, Workload
from qzhou.planning.assumptions import Assumption, Assumptions
from qzhou.planning.measured import MeasuredRun, lengths_like
from qzhou.planning.sizes import DatasetRows, rows_of
from qzhou.planning.target import Crew, Fleet, Target, fleet_of
from qzhou.planning.unit_costs import MeasuredCosts, UnitCost, costs_on, table_costs
from qzhou.planning.workload import workload_of

SCORE = "synthesis.score"
HOUR, MILLION, GB, GIB = 3600.0, 1e6, 1e9, 2**30
START = "start"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage.

    Attributes:
        amount: What it goes through; None: the cluster's start.
        start_s: Of its seconds, those that do not grow with the rows.
        wall_s: All of them.
        bound_by: ``storage`` where reading and writing take longest, else ``work``.
        crew: Its machines.
        money: US dollars: machines, and what is bought.
        basis: The least sure of what its time rests on.
    """

    name: str
    amount: Amount | None
    start_s: float
    wall_s: float
    bound_by: str
    crew: Crew
    money: float
    basis: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The endpoint under load, one replica.

    Attributes:
        tokens_per_s: Of texts, without padding.
        money: US dollars for a million tokens.
        basis: As of a stage.
    """

    tokens_per_s: float
    request_tokens: float
    money: float
    basis: str

    @property
    def million_tokens_s(self) -> float:
        return MILLION / self.tokens_per_s

    @property
    def million_requests_s(self) -> float:
        return self.request_tokens * self.million_tokens_s

    @property
    def million_requests_money(self) -> float:
        return self.request_tokens * self.money


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of it.

    Attributes:
        storage_gb: What stays when the run is done; ``storage_money`` is a month of it, and in no sum.
        lengths: Where the texts' lengths are from.
        notes: What else one has to know.
    """

    name: str
    stages: Sequence[PlannedStage]
    serving: Serving
    rows: Sequence[DatasetRows]
    fleet: Fleet
    storage_gb: float
    storage_money: float
    lengths: str
    assumptions: Sequence[Assumption]
    notes: Sequence[str]

    @property
    def wall_s(self) -> float:
        return sum(one.wall_s for one in self.stages)

    @property
    def money(self) -> float:
        return sum(one.money for one in self.stages)

    def dominant(self, by: str) -> tuple[PlannedStage, float]:
        """The stage with most ``wall_s`` or ``money``, and its share of all."""
        most = max(self.stages, key=lambda one: float(getattr(one, by)))
        total = float(getattr(self, by))
        return most, float(getattr(most, by)) / total if total else 0.0


def plan_of(recipe: Recipe, target: Target, assumed: Assumptions) -> Plan:
    """What a run of a recipe would take.

    Args:
        recipe: Of the run that is planned.
        target: Sizes and machines.
        assumed: What is taken for granted; remembers what was.

    Raises:
        RecipeError: An option is out of range, or a size is said nowhere.
        DataError: The measured run is none, or a stage would have nothing to train on.
        ModelError: The backbone's size is not known.
    """
    fleet = fleet_of(recipe, target)
    run = MeasuredRun.open(target.measured) if target.measured else None
    rows = rows_of(recipe, target, assumed, run.found() if run else None)
    told = {
        "query_tokens": target.mean_query_tokens,
        "document_tokens": target.mean_document_tokens,
    }
    own = texts_of(run.recipe if run else recipe, **told)
    others = texts_of(recipe, **told).datasets if run else []
    texts = lengths_like(
        recipe, {one.name: one for one in own.datasets}, {one.name: one for one in others}
    )
    measured, counted = (
        _measured(run, assumed, {one.name: one for one in own.datasets}) if run else (None, None)
    )
    gpus = max(1, fleet.gpu.gpus)
    work = workload_of(recipe, rows, texts, assumed, gpus=gpus, counted=counted)
    table = table_costs(recipe, work, fleet, assumed)
    costs = costs_on(fleet, table, measured, assumed, cpus_told=target.cpus is not None)
    stages = [
        _start(fleet, assumed),
        *(_stage(name, work, costs, fleet, assumed) for name in work.stages),
    ]
    kept = sum(one.kept for one in work.stages.values()) / GB
    return Plan(
        name=recipe.run.name,
        stages=stages,
        serving=_serving(work, costs, fleet, assumed),
        rows=rows,
        fleet=fleet,
        storage_gb=kept,
        storage_money=kept * assumed["storage_price"],
        lengths=own.source,
        assumptions=assumed.used,
        notes=[
            *work.notes,
            *_notes(recipe, work, fleet),
            *(_notes_of(run, measured) if run and measured else ()),
        ],
    )


def _measured(
    run: MeasuredRun, assumed: Assumptions, known: Mapping[str, DatasetTexts]
) -> tuple[MeasuredCosts, Counted]:
    """Unit costs of a finished run, by its own work."""
    recipe, rows = run.recipe, run.rows()
    fleet = fleet_of(recipe, Target())
    texts = lengths_like(recipe, known, {})
    counted = run.counted(rows)
    work = workload_of(recipe, rows, texts, assumed, gpus=max(1, fleet.gpu.gpus), counted=counted)
    table = table_costs(recipe, work, fleet, assumed)
    return run.costs(work, table, cpus=fleet.cpu.cpus), counted


def _start(fleet: Fleet, assumed: Assumptions) -> PlannedStage:
    """Ray and its first workers; rented machines have to come up before."""
    seconds = assumed["cluster_start_s"] + (assumed["node_start_s"] if fleet.rented else 0.0)
    return PlannedStage(
        name=START,
        amount=None,
        start_s=seconds,
        wall_s=seconds,
        bound_by="work",
        crew=fleet.gpu,
        money=fleet.gpu.price * seconds / HOUR,
        basis="assumed" if fleet.rented else "measured",
    )


def _stage(
    name: str, work: Workload, costs: Mapping[str, UnitCost], fleet: Fleet, assumed: Assumptions
) -> PlannedStage:
    all_parts = [part for part in work.parts if part.startswith(f"{name}.")]
    own = {
        part: work.parts[part]
        for part in all_parts
        if work.parts[part] or costs[part].basis != "assumed"
    }
    crew, amount = _crew(name, fleet), work.stages[name]
    start = sum(costs[part].start_s for part in own)
    seconds = sum(costs[part].per_unit_s * units for part, units in own.items())
    moved = amount.read + amount.written if fleet.rented and any(own.values()) else 0.0
    storage = moved / (crew.count * assumed["storage_bytes_per_s"])
    wall = start + max(seconds, storage)
    scored = costs[SCORE].seconds(work.parts[SCORE]) if name == "synthesis" else 0.0
    bases = {costs[part].basis for part in own}
    return PlannedStage(
        name=name,
        amount=amount,
        start_s=start,
        wall_s=wall,
        bound_by="storage" if storage > seconds else "work",
        crew=crew,
        money=(crew.price * wall + fleet.gpu.price * scored) / HOUR + amount.money,
        basis=next((one for one in ("assumed", "scaled") if one in bases), "measured"),
    )


def _crew(name: str, fleet: Fleet) -> Crew:
    """Synthesis waits for answers, which one machine can do; its teacher's time on GPUs is paid besides."""
    if name == "transform":
        return fleet.cpu
    return fleet.cpu.one if name == "synthesis" else fleet.gpu


def _serving(
    work: Workload, costs: Mapping[str, UnitCost], fleet: Fleet, assumed: Assumptions
) -> Serving:
    """One replica: a GPU, or this machine. The model is the trained backbone, and texts are as long as told."""
    encode = costs["mining.encode"]
    tokens = assumed["request_tokens"]
    flops = forward_flops(work.shape, Work.of(1, Length.always(tokens))) / tokens
    replicas = max(1, fleet.gpu.gpus)
    a_second = assumed["serve_share"] / (encode.per_unit_s * flops) / replicas
    return Serving(
        tokens_per_s=a_second,
        request_tokens=tokens,
        money=fleet.gpu.price / replicas / HOUR * MILLION / a_second,
        basis="scaled" if encode.basis == "measured" else encode.basis,
    )


def _notes(recipe: Recipe, work: Workload, fleet: Fleet) -> list[str]:
    found: list[str] = []
    crew = fleet.gpu
    if crew.gpu is not None and crew.machine is not None:
        zero = recipe.training.zero_stage
        needed = work.memory.per_gpu(zero_stage=zero, gpus=crew.gpus)
        room = crew.gpu.memory_gb * GB
        state = f"weights, gradients and optimizer take {needed / GIB:.1f} of {room / GIB:.1f} GiB a GPU (ZeRO {zero})"
        found.append(
            f"{state}, activations not counted" if needed < room else f"DOES NOT FIT: {state}"
        )
        wanted = recipe.training.workers, recipe.cluster.encode_workers
        if wanted != (crew.gpus, crew.gpus):
            found.append(
                f"the recipe says training.workers = {wanted[0]} and cluster.encode_workers = {wanted[1]}; planned "
                f"with "
                f"{crew.gpus} of each"
            )
        idle = crew.count * crew.machine.gpus - crew.gpus
        if idle:
            found.append(f"{idle} GPUs of the last {crew.machine.name} are paid for and idle")
    if recipe.synthesis.is_on and not work.requests:
        found.append(
            f"nothing is asked of the LLM: all datasets are above synthesis.max_dataset_rows "
            f"({recipe.synthesis.max_dataset_rows:,}), or the recipe asks for no rows; --synthetic N plans N requests"
        )
    return found


def _notes_of(run: MeasuredRun, measured: MeasuredCosts) -> list[str]:
    found = [
        f"the run in {run.folder.uri} is taken to have had {measured.cpus} CPUs, as this machine has"
    ]
    if run.unfinished:
        found.append(f"it has not finished {', '.join(run.unfinished)}: these are by the table")
    if not any(one.get("phases") for one in run.manifests.values()):
        found.append(
            "its manifests have no phases: what its stages' starts took is counted with their rows"
        )
    return found
