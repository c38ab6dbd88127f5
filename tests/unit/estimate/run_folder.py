"""A finished run of a small recipe, as its stages leave it: manifests and reports."""

from qzhou.data.records import RetrievalExample
from qzhou.data.storage import write_records
from qzhou.run.run import RECIPE, Run

WALLS = {
    "transform": 30.0, "synthesis": 9.0, "mining": 40.0, "training/stage1": 20.0, "training/stage2": 20.0, "model": 5.0,
    "evaluation": 50.0,
}  # fmt: skip
HELD_OUT, RAW, KEPT, LEFT_OUT = 50, 1000, 100, 500


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
    rows = [
        RetrievalExample(id=str(n), dataset="docs", query="a b", positives=("c d e",))
        for n in range(KEPT)
    ]
    write_records(run / "synthesis" / "examples" / "retrieval" / "docs", rows, RetrievalExample)
    for stage in stages:
        (run / stage).write_json("manifest.json", {"wall_s": WALLS[stage]})
    return run
