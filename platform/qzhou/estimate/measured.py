"""A finished run as a plan uses it: rows, its LLM's tokens, and a scale factor per stage.

A factor is the measured time of a stage divided by what the table of assumptions predicts
for that run. A larger run is predicted by the table times the factor, so the best run to
measure is one whose work takes much longer than its start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.storage import Folder
from qzhou.errors import DataError
from qzhou.estimate.assumptions import Assumptions
from qzhou.estimate.cluster_spec import ClusterSpec, cluster_spec
from qzhou.estimate.lengths import lengths_for
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.rows import DatasetRows, TransformedRows, rows_of
from qzhou.estimate.stages import StageEstimator
from qzhou.estimate.training import DatasetTexts
from qzhou.estimate.workload import Basis, Workload
from qzhou.run.files import RECIPE, STAGES, SYNTHESIS, TRANSFORM, RunFiles


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run with finished stages.

    Attributes:
        files: The files of its folder.
        recipe: Its own recipe, with the folder's present place.
        seconds: Stage -> its time, for the stages that have finished.
    """

    files: RunFiles
    recipe: Recipe
    seconds: Mapping[str, float]

    @classmethod
    def open(cls, uri: str) -> MeasuredRun:
        """A run of which at least the transform has finished.

        Raises:
            DataError: The folder is no run, or its transform has not finished.
            StorageError: It cannot be read.
        """
        folder = Folder.open(uri.rstrip("/"))
        if not folder.exists(RECIPE):
            raise DataError(f"command line: --measured: {folder.uri} has no {RECIPE}; name the folder of a run")
        files = RunFiles(folder)
        if TRANSFORM not in files.manifests:
            raise DataError(
                f"command line: --measured: in {folder.uri} the stage '{TRANSFORM}' has not finished, so its rows are "
                "not known. Run `qzhou transform`, or `qzhou run` for all stages."
            )
        recipe = parse_recipe(files.recipe, place=f"{folder.uri}/{RECIPE}")
        place = {"storage": folder.parent.uri, "name": folder.name}
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=place)})
        return cls(files, recipe, {name: one.wall_s for name, one in files.manifests.items()})

    def transformed(self) -> dict[str, TransformedRows]:
        """Dataset -> what the transform made of it."""
        return {name: _transformed(counts) for name, counts in self.files.transform["datasets"].items()}

    def llm_tokens(self, rows: Sequence[DatasetRows]) -> tuple[float, float] | None:
        """Tokens of prompts and of answers per first request of its rows; None where no LLM has answered."""
        requests = sum(one.requests for one in rows)
        if not requests or SYNTHESIS not in self.seconds or self.recipe.synthesis.is_builtin:
            return None
        total = self.files.ledger["total"]
        # the tokens of reused answers were counted by an earlier run
        sent = 1 - total["reused"] / total["requests"] if total["requests"] else 0.0
        counted = sent * requests
        return (total["prompt_tokens"] / counted, total["completion_tokens"] / counted) if counted else None

    def estimator(self, texts: Sequence[DatasetTexts], assumed: Assumptions) -> StageEstimator:
        """Predicts the run itself, by the table; ``texts`` are those of its datasets."""
        rows = rows_of(self.recipe, PlanOptions(), assumed, self.transformed())
        cluster, lengths = cluster_spec(self.recipe, PlanOptions()), lengths_for(self.recipe, texts)
        return StageEstimator(self.recipe, rows, lengths, assumed, cluster, self.llm_tokens(rows))

    def scale(self, stages: Sequence[Workload], plan: StageEstimator, own: StageEstimator) -> list[Workload]:
        """A plan's stages; seconds are scaled if the run tells something of their machines.

        - On machines like the run's, or others of the same kind: by the stage's factor. The
          table accounts for more CPUs, and for the peaks of GPUs.
        - A run on CPUs tells nothing of GPUs, nor built-in rules of an LLM: by the table.
        """
        same_llm = plan.recipe.synthesis.is_builtin == own.recipe.synthesis.is_builtin
        same_kind = plan.cluster.rented == own.cluster.rented
        found = []
        for one, predicted in zip(stages, own.stages(), strict=True):
            comparable = {TRANSFORM: True, SYNTHESIS: same_llm}.get(one.name, same_kind)
            if one.name in self.seconds and comparable:
                like = _machines(one.name, plan.cluster) == _machines(one.name, own.cluster)
                predicted_s = predicted.start_s + predicted.work_s
                one = _scaled(one, self.seconds[one.name], predicted_s, like=like)
            found.append(one)
        return found

    def notes(self, stages: Sequence[Workload]) -> list[str]:
        """Sentences that say which factors were measured, and what was not."""
        factors = [f"{one.name} {one.factor:.3g}" for one in stages if one.factor is not None]
        cpus = cluster_spec(self.recipe, PlanOptions()).cpu.cpus
        found = [
            f"times of {self.files.folder.uri} / times of the table: {', '.join(factors) or 'none'}",
            f"that run is taken to have had {cpus} CPUs, as this machine has",
        ]
        if missing := [one for one in STAGES if one not in self.seconds]:
            found.append(f"it has not finished {', '.join(missing)}: these are by the table")
        return found


def _scaled(one: Workload, seconds: float, predicted_s: float, *, like: bool) -> Workload:
    basis: Basis = "measured" if like else "scaled"
    if not predicted_s:
        # examples pass through a stage without work, here as there
        return one if one.start_s else dataclasses.replace(one, start_s=seconds, basis=basis)
    factor = seconds / predicted_s
    return dataclasses.replace(
        one,
        start_s=one.start_s * factor,
        work_s=one.work_s * factor,
        storage_s=0.0 if like else one.storage_s,  # measured seconds include it
        scoring_usd=one.scoring_usd * factor,
        basis=basis,
        factor=factor,
    )


def _machines(stage: str, cluster: ClusterSpec) -> tuple[object, ...]:
    """What the speed of a stage depends on; requests to an LLM depend on no machine."""
    if stage == SYNTHESIS:
        return ()
    group = cluster.cpu if stage == TRANSFORM else cluster.gpu
    return group.machine, group.cpus, group.gpu, group.gpus


def _transformed(counts: Mapping[str, Any]) -> TransformedRows:
    examples = counts["written"].get("examples", 0)
    # pairs are trained on from both sides, so a row may give two examples
    per_row = examples / counts["kept"] if counts["kept"] else 0.0
    return TransformedRows(
        raw=counts["read"],
        available=(counts["kept"] + counts["sampled_out"]) * per_row,
        held_out=float(counts["written"].get("held_out", 0)),
    )
