"""The plan of a run: the workload of every stage, their sums, and what they rest on."""

import dataclasses
from collections.abc import Sequence

from qzhou.config.recipe import Recipe
from qzhou.estimate.assumptions import Assumption, Assumptions
from qzhou.estimate.cluster_spec import ClusterSpec, MachineGroup, cluster_spec
from qzhou.estimate.lengths import lengths_for, texts_of
from qzhou.estimate.measured import MeasuredRun
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.rows import DatasetRows, rows_of
from qzhou.estimate.stages import StageEstimator
from qzhou.estimate.training import EncodedTexts, TrainingMemory, forward_flops
from qzhou.estimate.workload import Basis, Workload
from qzhou.run.files import MINING

START = "start"
MILLION, GB, GIB = 1e6, 1e9, 2**30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        stages: The start of the cluster, and the stages of the pipeline.
        serving: A million tokens, and a million requests, under load; in no sum.
        storage_gb: Kept after the run; ``storage_usd`` is the price of a month, in no sum.
        lengths: How the lengths of texts are known.
        notes: Sentences on what else changes the plan.
    """

    name: str
    stages: Sequence[Workload]
    serving: Sequence[Workload]
    rows: Sequence[DatasetRows]
    cluster: ClusterSpec
    storage_gb: float
    storage_usd: float
    lengths: str
    assumptions: Sequence[Assumption]
    notes: Sequence[str]

    @property
    def wall_s(self) -> float:
        """Seconds of all stages, one after the other."""
        return sum(one.wall_s for one in self.stages)

    @property
    def usd(self) -> float:
        """US dollars for all stages."""
        return sum(one.usd for one in self.stages)


def plan_of(recipe: Recipe, options: PlanOptions) -> Plan:
    """What a run of a recipe would take.

    Raises:
        RecipeError: An option is out of range, or a number of rows is not known.
        DataError: The measured folder is no run, or a stage would have nothing to train on.
        ModelError: The size of the backbone is not known.
    """
    assumed, cluster = Assumptions.of(options), cluster_spec(recipe, options)
    run = MeasuredRun.open(options.measured) if options.measured else None
    rows = rows_of(recipe, options, assumed, run.transformed() if run else {})
    own = texts_of(run.recipe if run else recipe, options)
    others = texts_of(recipe, options).datasets if run else []
    texts = lengths_for(recipe, own.datasets, others)
    measured = run.estimator(own.datasets, assumed) if run else None
    llm_tokens = measured.llm_tokens if measured else None
    estimator = StageEstimator(recipe, rows, texts, assumed, cluster, llm_tokens)
    stages = estimator.stages()
    notes = [*estimator.notes, *_notes(estimator)]
    if run and measured:
        stages = run.scale(stages, estimator, measured)
        notes += run.notes(stages)
    kept_gb = sum(one.written_bytes - one.deleted_bytes for one in stages) / GB
    return Plan(
        name=recipe.run.name,
        stages=[_start(cluster, assumed), *stages],
        serving=_serving(estimator, next(one for one in stages if one.name == MINING)),
        rows=rows,
        cluster=cluster,
        storage_gb=kept_gb,
        storage_usd=kept_gb * assumed["storage_price"],
        lengths=own.source,
        assumptions=assumed.used,
        notes=notes,
    )


def _start(cluster: ClusterSpec, assumed: Assumptions) -> Workload:
    """The start of Ray and its first workers; rented machines boot before."""
    seconds = assumed["cluster_start_s"] + (assumed["node_start_s"] if cluster.rented else 0.0)
    basis: Basis = "assumed" if cluster.rented else "measured"
    return Workload(name=START, machines=cluster.gpu, start_s=seconds, basis=basis)


def _serving(estimator: StageEstimator, mining: Workload) -> list[Workload]:
    """A million tokens and a million requests on one replica: one GPU, or this machine.

    The trained backbone encodes as the teachers of mining do, with the factor of mining if
    it was measured.
    """
    assumed, group = estimator.assumed, estimator.cluster.gpu
    tokens, replicas = assumed["request_tokens"], max(1, group.gpus)
    flops = forward_flops(estimator.method.shape, EncodedTexts.one(tokens)) / tokens
    s_per_flop = estimator.s_per_flop("encode_utilisation") * replicas * (mining.factor or 1.0)
    s_per_token = flops * s_per_flop / assumed["serve_share"]
    cpus, gpus = group.cpus // replicas, group.gpus // replicas
    replica = MachineGroup(None, 1, cpus, group.gpu, gpus, group.price / replicas)
    basis: Basis = "assumed" if mining.factor is None else "scaled"
    return [
        Workload(name=name, machines=replica, tokens=count, work_s=count * s_per_token, basis=basis)
        for name, count in (("serve 1M tokens", MILLION), ("serve 1M requests", MILLION * tokens))
    ]


def _notes(estimator: StageEstimator) -> list[str]:
    recipe, group = estimator.recipe, estimator.cluster.gpu
    found: list[str] = []
    if group.gpu is not None and group.machine is not None:
        zero_stage, memory = recipe.training.zero_stage, TrainingMemory.of(recipe, estimator.method)
        needed = memory.per_gpu(zero_stage=zero_stage, gpus=group.gpus) + estimator.activation_bytes
        room = group.gpu.memory_gb * GB
        share = f"{needed / GIB:.1f} of {room / GIB:.1f} GiB a GPU (ZeRO {zero_stage})"
        state = f"weights, gradients, optimizer and activations take {share}"
        found.append(state if needed < room else f"DOES NOT FIT: {state}")
        workers, encoders = recipe.training.workers, recipe.cluster.encode_workers
        if (workers, encoders) != (group.gpus, group.gpus):
            found.append(
                f"the recipe says training.workers = {workers} and cluster.encode_workers = {encoders}; planned with "
                f"{group.gpus} of each"
            )
        if idle := group.count * group.machine.gpus - group.gpus:
            found.append(f"{idle} GPUs of the last {group.machine.name} are paid for and idle")
    if recipe.synthesis.is_on and not estimator.requests:
        found.append(
            f"nothing is asked of the LLM: all datasets are above synthesis.max_dataset_rows "
            f"({recipe.synthesis.max_dataset_rows:,}), or the recipe asks for no rows; --synthetic N plans N requests"
        )
    return found
