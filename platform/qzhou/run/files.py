"""What the stages left in a run folder, for everything that reads a run: reports, diagnosis, gate, estimates."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from qzhou.data.records import Manifest
from qzhou.data.storage import Folder

RECIPE, MANIFEST = "recipe.json", "manifest.json"
# The folder of each stage, in the order in which they run.
TRANSFORM, SYNTHESIS, MINING = "transform", "synthesis", "mining"
TRAINING_STAGE1, TRAINING_STAGE2 = "training/stage1", "training/stage2"
EXPORT, EVALUATION = "model", "evaluation"
STAGES = (TRANSFORM, SYNTHESIS, MINING, TRAINING_STAGE1, TRAINING_STAGE2, EXPORT, EVALUATION)
TRAINING_STAGES = {"stage1": TRAINING_STAGE1, "stage2": TRAINING_STAGE2}
COMMANDS: Mapping[str, str] = {  # folder of each stage -> the command that makes it
    TRANSFORM: "transform",
    SYNTHESIS: "synthesize",
    MINING: "mine",
    TRAINING_STAGE1: "train",
    TRAINING_STAGE2: "train",
    EXPORT: "export",
    EVALUATION: "evaluate",
    "index": "index",
}
# Below a model's folder: its transformer for programs without torch, where others look for it.
ONNX, ONNX_FILE = "onnx", "model.onnx"
# Stages that make a model, the last one first -> where it is.
MODELS_OF_STAGES = {EXPORT: EXPORT} | {one: f"{one}/model" for one in (TRAINING_STAGE2, TRAINING_STAGE1)}
# Files, by their path in the run folder.
TRANSFORM_REPORT = f"{TRANSFORM}/report.json"
SYNTHESIS_REPORT, LEDGER = f"{SYNTHESIS}/report.json", f"{SYNTHESIS}/ledger.json"
NGRAMS = f"{TRANSFORM}/ngrams"  # folder with those of the evaluation's texts
MINING_REPORT = f"{MINING}/report.json"
METRICS = {name: f"{folder}/metrics.jsonl" for name, folder in TRAINING_STAGES.items()}
COMPARISON, DIAGNOSIS = f"{EVALUATION}/comparison.json", f"{EVALUATION}/diagnosis.json"
SCORES = f"{EVALUATION}/scores"
HELD_OUT_DOCUMENTS = f"{TRANSFORM}/held_out_documents"  # of datasets whose queries are written

Content = Mapping[str, Any]


def held_out_places(run: Folder, task: str, dataset: str) -> tuple[Folder, Folder]:
    """The folders of a dataset's held-out examples: as they came, and with queries that an LLM has written."""
    transform, synthesis = (run / stage / "held_out" / task / dataset for stage in (TRANSFORM, SYNTHESIS))
    return transform, synthesis


def _json_file(name: str) -> cached_property[Content]:
    return cached_property(lambda self: self._json(name))


class RunFiles:
    """The files of a run folder, each read at its first use; a missing file reads as empty.

    Args:
        folder: The folder of the run.

    Attributes:
        recipe: The resolved recipe.
        transform: The report of the transform.
        synthesis: The report of the synthesis.
        ledger: Requests, tokens and cost of the synthesis.
        mining: Dataset -> the report of its mining.
        comparison: Scores, differences and embedding health of all models.
        diagnosis: Findings and skipped checks.
    """

    recipe = _json_file(RECIPE)
    transform = _json_file(TRANSFORM_REPORT)
    synthesis = _json_file(SYNTHESIS_REPORT)
    ledger = _json_file(LEDGER)
    mining = _json_file(MINING_REPORT)
    comparison = _json_file(COMPARISON)
    diagnosis = _json_file(DIAGNOSIS)

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.recipe.get("run", {}).get("name", "run"))

    @cached_property
    def manifests(self) -> Mapping[str, Manifest]:
        """Stage folder -> its manifest, of the stages that have finished."""
        found = {stage: self._json(f"{stage}/{MANIFEST}") for stage in STAGES}
        return {stage: Manifest(**content) for stage, content in found.items() if content}

    @cached_property
    def metrics(self) -> Mapping[str, Sequence[Content]]:
        """``stage1`` and ``stage2`` -> metrics of each step, of stages that have any."""
        found = {}
        for stage, name in METRICS.items():
            lines = complete_lines(self.folder, name)
            if lines:
                found[stage] = [json.loads(line) for line in lines]
        return found

    def task_score(self, model: str, task: str) -> Content | None:
        """The stored score of a model on a task; None where there is none."""
        return self._json(f"{SCORES}/{model}/{task}.json") or None

    def output(self, stage: str, name: str) -> int | None:
        """How many rows a stage wrote under a name; None where it has not finished."""
        manifest = self.manifests.get(stage)
        return None if manifest is None else int(manifest.outputs.get(name, 0))

    def is_outdated(self, name: str, fingerprint: str) -> bool:
        """Whether the stage that a manifest names as input has run again since, with another fingerprint."""
        source = self.manifests.get(TRAINING_STAGES.get(name, name))
        return source is not None and source.fingerprint != fingerprint

    def outdated_inputs(self, stage: str) -> list[str]:
        """The stages that a finished stage has read and that have run again since."""
        manifest = self.manifests.get(stage)
        inputs = manifest.inputs.items() if manifest is not None else ()
        return [TRAINING_STAGES.get(name, name) for name, value in inputs if self.is_outdated(name, value)]

    def _json(self, name: str) -> Content:
        found: Content = self.folder.read_json(name) if self.folder.exists(name) else {}
        return found


def complete_lines(folder: Folder, name: str) -> list[str]:
    """The lines of a file that grows; half a line at its end, of a killed process or one at work, is left out."""
    content = folder.read_bytes(name).decode() if folder.exists(name) else ""
    return content.rpartition("\n")[0].splitlines()
