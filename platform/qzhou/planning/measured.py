"""Unit costs from a finished run: its manifests, the metrics of its training, its reports.

What a start costs is told from what rows cost by the time until the first units of a phase were done
(:class:`qzhou.telemetry.progress.Phase`). With W workers the first W units take the start and one unit's time; what is
done after them gives a unit's time alone. Encoders say themselves what they spent. A phase that ended with its first
units does not tell: then the table's figure is taken for the work, and what is left for the start.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qzhou.cluster.resources import MIN_LOCAL_CPUS
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.costs.hardware import gpu_named
from qzhou.costs.training import DatasetTexts
from qzhou.data.storage import Folder, count_rows
from qzhou.errors import DataError
from qzhou.planning.amounts import PARTS, STAGES, Counted, Workload
from qzhou.planning.sizes import DatasetRows, Found, requests_of
from qzhou.planning.unit_costs import MeasuredCosts, UnitCost
from qzhou.run.run import MANIFEST, RECIPE

TOLD_BY_PHASES = ("transform", "synthesis", "mining")
# of a phase: what comes within so little time of its end says when it was heard of, not what it
# took
AT_ONCE = 0.05
LARGEST_START = 0.95  # of a phase, where the rest is not told


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run's folder as a plan reads it.

    Attributes:
        recipe: Its own, with the folder's place as it is now.
        manifests: Stage -> manifest as JSON, of the stages that have finished.
    """

    folder: Folder
    recipe: Recipe
    manifests: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, uri: str) -> MeasuredRun:
        """A run of which the transform at least has finished.

        Raises:
            DataError: The folder is no run, or nothing in it is finished.
            StorageError: It cannot be read.
        """
        folder = Folder.open(uri.rstrip("/"))
        if not folder.exists(RECIPE):
            raise DataError(
                f"command line: --measured: {folder.uri} has no {RECIPE}; name the folder of a run"
            )
        manifests = {
            one: (folder / one).read_json(MANIFEST)
            for one in STAGES
            if folder.exists(f"{one}/{MANIFEST}")
        }
        if "transform" not in manifests:
            raise DataError(
                f"command line: --measured: in {folder.uri} the stage 'transform' has not finished, so nothing is "
                "known of its rows. Run python jobs/transform.py, or jobs/pipeline.py for all of it."
            )
        recipe = parse_recipe(folder.read_json(RECIPE), place=f"{folder.uri}/{RECIPE}")
        place = {"storage": folder.parent.uri, "name": folder.name}
        return cls(
            folder,
            recipe.model_copy(update={"run": recipe.run.model_copy(update=place)}),
            manifests,
        )

    @property
    def unfinished(self) -> list[str]:
        return [stage for stage in STAGES if stage not in self.manifests]

    def found(self) -> dict[str, Found]:
        """What the transform made of each dataset."""
        datasets = (self.folder / "transform").read_json("report.json")["datasets"]
        return {name: _found(tally) for name, tally in datasets.items()}

    def rows(self) -> list[DatasetRows]:
        """The run's own rows; what an LLM wrote is what mining or synthesis has beyond the transform."""
        found, rows = self.found(), []
        for one in self.recipe.datasets:
            own, new = found[one.name], 0.0
            if "synthesis" in self.manifests:
                there = count_rows(self.folder / "synthesis" / "examples" / one.task / one.name)
                new = max(0.0, there - own.kept)
            rows.append(
                DatasetRows(
                    name=one.name,
                    task=one.task,
                    raw=own.raw,
                    kept=own.kept,
                    held_out=own.held_out,
                    requests=sum(
                        requests_of(self.recipe.synthesis, one.name, one.task, own.kept).values()
                    ),
                    new=new,
                )
            )
        return rows

    def counted(self, rows: Sequence[DatasetRows]) -> Counted:
        """What the run has counted; rules in an LLM's place say nothing of its tokens."""
        texts = sum(
            one["done"] for one in self._phases("mining") if one["label"] == "mining: encode"
        )
        examples = sum(one.trained for one in rows if one.task == "retrieval")
        teachers = len(self.recipe.mining.teachers)
        return Counted(
            texts_per_example=texts / teachers / examples if texts and examples else None,
            llm_tokens=self._llm_tokens(sum(one.requests for one in rows)),
        )

    def costs(self, work: Workload, table: Mapping[str, UnitCost], *, cpus: int) -> MeasuredCosts:
        """Unit costs of the stages that have finished.

        Args:
            work: The run's own (:meth:`rows`).
            table: What the table says for the machine that the run had.
            cpus: Of that machine.
        """
        expected = {part: table[part].per_unit_s * work.parts[part] for part in PARTS}
        parts: dict[str, UnitCost] = {}
        for stage in self.manifests:
            times = self._times(stage, expected, cpus)
            wall_s = float(self.manifests[stage]["wall_s"])
            rest = max(0.0, wall_s - sum(start + work_s for start, work_s in times.values()))
            first = next(iter(times))  # to which belongs what no phase accounts for
            start_s, work_s = times[first]
            untold = stage in TOLD_BY_PHASES and not self._phases(stage)
            times[first] = (0.0, wall_s) if untold else (start_s + rest, work_s)
            for part, (start_s, work_s) in times.items():
                amount = work.parts[part]
                parts[part] = (
                    UnitCost(start_s, work_s / amount, "measured")
                    if amount
                    else UnitCost(start_s + work_s, 0.0, "measured")  # the examples passed through
                )
        name = self.recipe.cluster.training.accelerator_type if self.recipe.cluster.gpu else ""
        gpu = gpu_named(name.partition("-")[0] or "H100") if self.recipe.cluster.gpu else None
        return MeasuredCosts(parts, cpus, gpu, self.recipe.training.workers if gpu else 0)

    def _times(
        self, stage: str, expected: Mapping[str, float], cpus: int
    ) -> dict[str, tuple[float, float]]:
        """Part -> seconds of starts, and of work."""
        cluster = self.recipe.cluster
        encoders, tasks = (
            cluster.encode_workers,
            cluster.transform.max_workers or max(MIN_LOCAL_CPUS, cpus),
        )
        if stage == "transform":
            return {"transform.rows": self._split(stage, lambda _: True, tasks, None)}
        if stage == "synthesis":
            score = "synthesis: score"
            return {
                "synthesis.requests": self._split(stage, lambda label: label != score, 1, None),
                "synthesis.score": self._split(
                    stage, lambda label: label == score, encoders, expected["synthesis.score"]
                ),
            }
        if stage == "mining":
            encode = "mining: encode"
            return {
                "mining.encode": self._split(
                    stage, lambda label: label == encode, encoders, expected["mining.encode"]
                ),
                "mining.search": self._split(
                    stage, lambda label: label != encode, 1, expected["mining.search"]
                ),
            }
        if stage == "evaluation":
            return {"evaluation.judge": self._judged()}
        if stage == "model":
            return {"model.export": (float(self.manifests[stage]["wall_s"]), 0.0)}
        return {f"{stage}.steps": self._trained(stage)}

    def _split(
        self, stage: str, wanted: Callable[[str], bool], workers: int, expected_s: float | None
    ) -> tuple[float, float]:
        phases = [one for one in self._phases(stage) if wanted(one["label"]) and one["done"]]
        total = sum(one["done"] for one in phases)
        start = work = 0.0
        for one in phases:
            share = None if expected_s is None or not total else expected_s * one["done"] / total
            own = split_of(one, workers, share)
            start, work = start + own[0], work + own[1]
        return start, work

    def _trained(self, stage: str) -> tuple[float, float]:
        """Steps are timed one by one; a first one that is slower than most belongs to the start."""
        lines = (self.folder / stage).read_bytes("metrics.jsonl").decode().splitlines()
        seconds = [float(json.loads(line)["seconds"]) for line in lines]
        work = sum(seconds) - max(0.0, seconds[0] - statistics.median(seconds))
        wall_s = float(self.manifests[stage]["wall_s"])
        # steps of an attempt before the last one
        work = work if work <= wall_s else LARGEST_START * wall_s
        return wall_s - work, work

    def _judged(self) -> tuple[float, float]:
        """Seconds of every model and task, shared by the workers; reading a score that was there took none."""
        comparison = (self.folder / "evaluation").read_json("comparison.json")
        wall_s = float(self.manifests["evaluation"]["wall_s"])
        work = (
            sum(float(row["seconds"]) for row in comparison["rows"])
            / self.recipe.cluster.encode_workers
        )
        work = min(work, LARGEST_START * wall_s)
        return wall_s - work, work

    def _llm_tokens(self, requests: float) -> tuple[float, float] | None:
        if not requests or "synthesis" not in self.manifests or self.recipe.synthesis.is_builtin:
            return None
        total = (self.folder / "synthesis").read_json("ledger.json")["total"]
        # those paid for earlier say less
        sent = 1 - total["reused"] / total["requests"] if total["requests"] else 0.0
        if not sent:
            return None
        return total["prompt_tokens"] / sent / requests, total[
            "completion_tokens"
        ] / sent / requests

    def _phases(self, stage: str) -> Sequence[Mapping[str, Any]]:
        return self.manifests[stage].get("phases", ()) if stage in self.manifests else ()


def split_of(
    phase: Mapping[str, Any], workers: int, expected_s: float | None = None
) -> tuple[float, float]:
    """Seconds of a phase's start, and of its work.

    Args:
        phase: As a manifest holds it.
        workers: That shared it.
        expected_s: Of its work, where the phase itself does not tell.
    """
    seconds, after = (
        float(phase["seconds"]),
        phase["done"] - phase["first_done"] * min(workers, phase["advances"]),
    )
    later_s = seconds - phase["first_s"]
    if phase.get("worker_s"):
        work = phase["worker_s"] / min(workers, phase["advances"])
    elif after > 0 and phase["advances"] > workers and later_s > AT_ONCE * seconds:
        work = later_s / after * phase["done"]
    else:
        work = seconds if expected_s is None else expected_s
    work = min(work, seconds)
    return seconds - work, work


def _found(tally: Mapping[str, Any]) -> Found:
    written = tally["written"]
    # pairs are trained on from both sides
    a_row = written.get("examples", 0) / tally["kept"] if tally["kept"] else 0.0
    return Found(
        raw=tally["read"],
        available=(tally["kept"] + tally["sampled_out"]) * a_row,
        kept=float(written.get("examples", 0)),
        held_out=float(written.get("held_out", 0)),
    )


def lengths_like(
    recipe: Recipe, known: Mapping[str, DatasetTexts], others: Mapping[str, DatasetTexts]
) -> dict[str, DatasetTexts]:
    """Lengths for every dataset of a recipe: its own where it is known, else those of one of its task, else others'."""
    by_task = {one.task: one for one in known.values()}
    found = {}
    for dataset in recipe.datasets:
        own = known.get(dataset.name) or by_task.get(dataset.task) or others.get(dataset.name)
        if own is None:
            own = next((one for one in others.values() if one.task == dataset.task), None)
        if own is not None:
            found[dataset.name] = dataclasses.replace(own, name=dataset.name)
    return found
