"""A finished run of a small recipe, as its stages leave it: manifests, reports, metrics; no examples."""

import json

from qzhou.data.records import RetrievalExample
from qzhou.data.storage import write_records
from qzhou.run.run import RECIPE, Run

STEP_S = 2.0
WALLS = {
    "transform": 30.0, "synthesis": 9.0, "mining": 40.0, "training/stage1": 20.0, "training/stage2": 20.0, "model": 5.0,
    "evaluation": 50.0,
}  # fmt: skip
MINED, HELD_OUT, RAW, KEPT, LEFT_OUT = 200, 50, 1000, 100, 500
PHASES = {
    # 8 shards by one worker: 3 s until the first is done and 14 s for the other seven, so 2 s each and a start of 1 s
    "transform": [("transform: convert", 8, 1, 3.0, 17.0, 8)],
    # 200 texts by two workers, 20 at a time: 12 s until two times twenty are done, 16 s for the other 160
    "mining": [("mining: encode", MINED, 20, 12.0, 28.0, 10)],
}
SECONDS_OF_SCORES = (8.0, 12.0, 12.0, 8.0)


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
    for stage in ("stage1", "stage2"):
        seconds = [STEP_S + 3.0, *[STEP_S] * 3]  # the first one is slow
        lines = "\n".join(json.dumps({"step": n, "seconds": one}) for n, one in enumerate(seconds))
        (run / "training" / stage).write_bytes("metrics.jsonl", lines.encode())
    scores = [{"seconds": one} for one in SECONDS_OF_SCORES]
    (run / "evaluation").write_json("comparison.json", {"rows": scores})
    names = ("label", "done", "first_done", "first_s", "seconds", "advances")
    for stage in stages:
        phases = [dict(zip(names, one, strict=True)) for one in PHASES.get(stage, ())]
        (run / stage).write_json("manifest.json", {"wall_s": WALLS[stage], "phases": phases})
    return run
