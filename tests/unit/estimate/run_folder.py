"""A finished run of a small recipe, as its stages leave it: manifests and reports."""

from dataclasses import asdict

from qzhou.data.records import Manifest, RetrievalExample
from qzhou.data.storage import write_records
from qzhou.run.files import RECIPE
from qzhou.run.run import Run

WALLS = {
    "transform": 30.0, "synthesis": 9.0, "mining": 40.0, "training/stage1": 20.0, "training/stage2": 20.0, "model": 5.0,
    "evaluation": 50.0,
}  # fmt: skip
HELD_OUT, RAW, KEPT, LEFT_OUT = 50, 1000, 100, 500


def write_manifest(run, stage, wall_s):
    """The manifest of a stage that took so long."""
    manifest = Manifest(
        stage=stage,
        fingerprint="f",
        inputs={},
        outputs={},
        settings={},
        code_version="c",
        finished_at="then",
        wall_s=wall_s,
    )
    (run / stage).write_json("manifest.json", asdict(manifest))


def finished(recipe, stages=tuple(WALLS)):
    """Make the run that a recipe names; its folder."""
    run = Run.open(recipe).folder
    run.write_json(RECIPE, recipe.model_dump(mode="json"))
    tally = {
        "read": RAW,
        "kept": KEPT,
        "sampled_out": LEFT_OUT,
        "written": {"examples": KEPT, "held_out": HELD_OUT},
    }
    (run / "transform").write_json("report.json", {"datasets": {"docs": tally}})
    (run / "synthesis").write_json("ledger.json", {"rows": []})
    rows = [RetrievalExample(id=str(n), dataset="docs", query="a b", positives=("c d e",)) for n in range(KEPT)]
    write_records(run / "synthesis" / "examples" / "retrieval" / "docs", rows, RetrievalExample)
    for stage in stages:
        write_manifest(run, stage, WALLS[stage])
    return run
