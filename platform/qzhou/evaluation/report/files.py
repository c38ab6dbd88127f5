"""What the stages left in a run folder. Every file may be missing, or be of an older version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qzhou.data.storage import Folder
from qzhou.run.run import MANIFEST, RECIPE

STAGES = (
    "transform",
    "synthesis",
    "mining",
    "training/stage1",
    "training/stage2",
    "model",
    "evaluation",
)
TRAINED = ("stage1", "stage2")

Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """The files that the page is made of, as they were read; empty for one that is not there.

    Attributes:
        manifests: Of the finished stages, in order.
        metrics: Stage of training -> what each step did.
        diagnosis: None where nothing was looked for.
    """

    recipe: Content
    manifests: Mapping[str, Content]
    transform: Content
    synthesis: Content
    ledger: Content
    mining: Content
    metrics: Mapping[str, Sequence[Content]]
    comparison: Content
    diagnosis: Content | None

    @classmethod
    def read(cls, folder: Folder) -> Found:
        """All of a run folder."""
        comparison = _json(folder / "evaluation", "comparison.json")
        diagnosis = _json(folder / "evaluation", "diagnosis.json")
        steps = {stage: _lines(folder / "training" / stage, "metrics.jsonl") for stage in TRAINED}
        manifests = {stage: _json(folder / stage, MANIFEST) for stage in STAGES}
        return cls(
            recipe=_json(folder, RECIPE) or {},
            manifests={stage: found for stage, found in manifests.items() if found},
            transform=_json(folder / "transform", "report.json") or {},
            synthesis=_json(folder / "synthesis", "report.json") or {},
            ledger=_json(folder / "synthesis", "ledger.json") or {},
            mining=_json(folder / "mining", "report.json") or {},
            metrics={stage: found for stage, found in steps.items() if found},
            comparison={"rows": comparison} if isinstance(comparison, list) else comparison or {},
            diagnosis={"findings": diagnosis} if isinstance(diagnosis, list) else diagnosis,
        )

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.recipe.get("run", {}).get("name", "run"))

    def changed_since(self, stage: str) -> list[str]:
        """Stages that another was made from and that have been run again since."""
        found = []
        for name, fingerprint in self.manifests.get(stage, {}).get("inputs", {}).items():
            source = f"training/{name}" if f"training/{name}" in STAGES else name
            if self.manifests.get(source, {}).get("fingerprint", fingerprint) != fingerprint:
                found.append(source)
        return found

    def made(self, stage: str, name: str) -> int | None:
        """How many of something a stage made; None where it has not finished."""
        manifest = self.manifests.get(stage)
        return None if manifest is None else int(manifest["outputs"].get(name, 0))


def _json(folder: Folder, name: str) -> Any:
    return folder.read_json(name) if folder.exists(name) else None


def _lines(folder: Folder, name: str) -> list[Content]:
    content = folder.read_bytes(name).decode() if folder.exists(name) else ""
    return [json.loads(line) for line in content.splitlines() if line.strip()]
