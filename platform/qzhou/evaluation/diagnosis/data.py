"""What the reports of transform, synthesis and mining show of the data that was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qzhou.evaluation.candidates import STAGE1
from qzhou.evaluation.diagnosis.facts import METRICS, MINING, SYNTHESIS, TRANSFORM, Facts
from qzhou.evaluation.diagnosis.finding import Finding, Looked, shown
from qzhou.evaluation.diagnosis.intervals import mean, share

Counts = np.ndarray[Any, np.dtype[np.int64]]

# Copies, as a share of the evaluation's examples: they can move a score by a point, as much as models differ by. The
# quickstart's docstrings, which packages copy from each other, have 0.4 %.
CONTAMINATED_SHARE = 0.01
FEWEST_COPIES = 3  # one or two are a stock phrase

# Records that fit no better than a hard negative fits its query, beyond as many as real pairs have.
DRIFTED_SHARE = 0.1
# Where no mining by the same teacher says what a hard negative scores, and what real pairs do: Conan-embedding-v2
# (arXiv:2509.12892) drops pairs below it. Only rewrites are held to it: of MiniLM's real pairs a third is below.
DRIFTED_SCORE = 0.4
DRIFTS = {"rewrite": "min_rewrite_cosine", "positive": "min_positive_score"}  # score -> gate

# Half way between documents drawn at random (0.5) and always nearer than those (1). Of docstrings and MiniLM, ranks
# 10 to 30 give 0.98, and ranks 200 to 300 of 600 documents 0.67.
EASY_HARDNESS = 0.75
FIRST_STEPS = 8  # later the model has pushed them away, as it should
EASY_RATIO = 1 / 3  # of the positives' mean score; ranks 10 to 30 of docstrings have 0.64
# A mined negative outscores a positive more often than not. Docstrings: 0.81, and 0.57 at rank 1.
CLOSE_ORDER = 0.5
# Of known answers, hidden in turn. A ratio alone lets in those that score below it by chance, up to four in ten.
HIDDEN_ADMITTED = 0.5


def contaminated(facts: Facts) -> Looked:
    """Training examples repeat texts of an evaluation task; of mteb's tasks, queries.

    What is held out here shares no text with training, so that copies have come in with small changes. Documents of
    mteb's tasks stand in many training sets.
    """
    found = facts.transform.get("contamination")
    if not found or found["action"] == "off":
        return (
            f"there is no {TRANSFORM}" if not found else "transform.contamination.action is 'off'"
        )
    if found["overlaps"] and "copied" not in found["overlaps"][0]:
        return f"{TRANSFORM} does not count copies, as those of older runs"
    if found["action"] == "drop":
        return []  # they were counted and are gone
    copies: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["overlaps"]:
        if not _declared(facts, row["dataset"], row["task"]):
            copies.setdefault(row["task"], []).append(row)
    return [one for task, rows in copies.items() for one in _copied(facts, task, rows)]


def _copied(facts: Facts, task: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    own = facts.transform["datasets"].get(task)
    kind = "copied" if own else "asked"
    found = sorted((row for row in rows if row[kind]), key=lambda row: -row[kind])
    count = sum(row[kind] for row in found)
    judged = (
        own["written"].get("held_out")
        if own
        else next((row.n for row in facts.rows if row.task == task), None)
    )
    if count < FEWEST_COPIES or count < CONTAMINATED_SHARE * (
        judged or max(row["compared"] for row in found)
    ):
        return
    parts = [f"{row[kind]:,} of {row['compared']:,} examples of {row['dataset']}" for row in found]
    yield Finding(
        "contaminated",
        f"The evaluation set '{task}' is contaminated: training examples repeat its texts, and its scores say less.",
        f"{TRANSFORM}: copies of {task}{f', which has {judged:,} examples' if judged else ''}: {shown(parts)}",
        f"set {facts.setting('transform.contamination.action')} to 'drop'",
    )


def _declared(facts: Facts, dataset: str, task: str) -> bool:
    """Whether the recipe says that a dataset is the official training split beside an evaluation task."""
    entry, is_own = facts.dataset(dataset), task in facts.transform["datasets"]
    return bool(task in entry.get("train_split_of", ()) or (is_own and entry.get("allow_overlap")))


def synthetic_drifted(facts: Facts) -> Looked:
    """What was written is too far from what it was written from, or its answers from its queries."""
    techniques = facts.synthesis.get("techniques")
    if not techniques:
        return f"there is no {SYNTHESIS}" if not facts.synthesis else "nothing was written"
    if not any(one["scores"] for one in techniques.values()):
        return f"{SYNTHESIS} has no scores of a teacher (synthesis.gates.scores)"
    floor, real = _floor(facts)
    usual = {"rewrite": 0.0} if real is None else {"rewrite": 0.0, "positive": real}
    return [
        found
        for technique, one in techniques.items()
        for kind in usual
        if one["made"] and kind in one["scores"]
        for found in _drift(facts, technique, kind, one["scores"][kind], floor, usual[kind])
    ]


def _drift(
    facts: Facts, technique: str, kind: str, counts: Sequence[int], floor: float, usual: float
) -> Iterator[Finding]:
    edges, gate = np.array(facts.synthesis["score_edges"]), facts.synthesis["gates"][DRIFTS[kind]]
    # what is below a gate was dropped
    kept = np.array(counts) * (edges[1:] > (-np.inf if gate is None else gate))
    total = int(kept.sum())
    if not total:
        return
    low = round(_below(floor, kept, edges))
    limits = share(low, total)
    if limits.low <= usual + DRIFTED_SHARE:
        return
    what = "no nearer to its original" if kind == "rewrite" else "no better an answer to its query"
    known = f"; of real pairs {usual:.0%} are" if usual else ""
    yield Finding(
        "synthetic_drifted",
        f"Synthetic rows drift: much of what {technique} wrote is {what} than a hard negative would be.",
        f"{SYNTHESIS}: {low:,} of {total:,} scores ({limits.value:.0%}, 95 %: {limits.low:.0%} to {limits.high:.0%}) "
        f"are below {floor:.2f}{known}",
        f"set {facts.setting(f'synthesis.gates.{DRIFTS[kind]}')} to {floor:.2f} or more",
    )


def _floor(facts: Facts) -> tuple[float, float | None]:
    """The mean score of mined negatives and the share of real positives below it, if the teacher of the gates mined."""
    mining, gates = facts.settings["mining"], facts.settings["synthesis"]["gates"]
    alike = gates["teacher"] in ("", mining["teacher"]) and not mining["reranker"]
    mined, positives = _pooled(facts.mining.values()) if alike else (None, None)
    if mined is None or positives is None:
        return DRIFTED_SCORE, None
    edges = np.array(next(iter(facts.mining.values()))["score_edges"])
    floor = float((mined * (edges[1:] + edges[:-1]) / 2).sum() / mined.sum())
    return floor, _below(floor, positives, edges) / float(positives.sum())


def _below(floor: float, counts: Counts, edges: Any) -> float:
    """How many values of a histogram are below a floor; of the bin in which it lies, the part that is."""
    return float((counts * np.clip((floor - edges[:-1]) / np.diff(edges), 0.0, 1.0)).sum())


def _pooled(mining: Iterable[Mapping[str, Any]]) -> tuple[Counts, Counts] | tuple[None, None]:
    """Histograms of mined and of positive scores, of all datasets that have both."""
    scores = [one["scores"] for one in mining if sum(one.get("scores", {}).get("mined", ()))]
    if not scores:
        return None, None
    mined, positives = (
        np.sum([one[kind] for one in scores], axis=0) for kind in ("mined", "positive")
    )
    return mined, positives


def negatives_easy(facts: Facts) -> Looked:
    """Hard negatives are hardly nearer to their queries than any other document."""
    steps = facts.by_dataset(STAGE1, "retrieval")
    hardness = {
        name: values
        for name, own in steps.items()
        if len(
            values := [
                one["negative_hardness"] for one in own[:FIRST_STEPS] if "negative_hardness" in one
            ]
        )
        > 1
    }
    if not facts.mining and not hardness:
        return f"there is no {MINING}, and no metrics have negative_hardness"
    evidence: dict[str, list[str]] = {}
    for name, one in facts.mining.items():
        mined, positive = one.get("mean mined score"), one.get("mean positive score")
        if (
            mined is not None
            and positive is not None
            and positive > 0
            and mined < EASY_RATIO * positive
        ):
            evidence.setdefault(name, []).append(
                f"{MINING}: mean score {mined:.3f}, of positives {positive:.3f}"
            )
    for name, values in hardness.items():
        limits = mean(values)
        if limits.high < EASY_HARDNESS:
            said = f"negative_hardness {limits.value:.3f} (95 %: up to {limits.high:.3f}) in its first steps"
            evidence.setdefault(name, []).append(f"{METRICS.format(stage=STAGE1)}: {said}")
    ranks = ["rank_to"] if facts.value("mining.rank_from") == 1 else ["rank_from", "rank_to"]
    window = " and ".join(facts.setting(f"mining.{name}") for name in ranks)
    return [
        Finding(
            "negatives_easy",
            f"The hard negatives of '{name}' are too easy: hardly nearer to a query than any other document.",
            shown(parts),
            f"lower {window}, or set a higher {facts.setting('mining.min_score')}",
        )
        for name, parts in evidence.items()
    ]


def negatives_close(facts: Facts) -> Looked:
    """Mined negatives look like answers: they outscore positives, or known answers would pass for them."""
    if not facts.mining:
        return f"there is no {MINING}"
    return [found for name, one in facts.mining.items() for found in _close(facts, name, one)]


def _close(facts: Facts, name: str, one: Mapping[str, Any]) -> Iterator[Finding]:
    numbers = []
    sizes = one.get("queries by number of negatives", {})
    mined, positives = _pooled([one])
    # where most queries have none, those that have some are those with the best positives
    if mined is not None and positives is not None and 2 * sizes.get("0", 0) <= sum(sizes.values()):
        order = float(
            (positives * (np.cumsum(mined) - mined / 2)).sum() / (positives.sum() * mined.sum())
        )
        if order < CLOSE_ORDER:
            numbers.append(
                f"a positive outscores a mined negative in {order:.0%} of all comparisons"
            )
    hidden = one.get("hidden positives", {"hidden": 0})
    if hidden["hidden"]:
        limits = share(min(hidden["admitted"], hidden["hidden"]), hidden["hidden"])
        if limits.low > HIDDEN_ADMITTED:
            numbers.append(
                f"{limits.value:.0%} of {hidden['hidden']:,} known positives would pass if hidden "
                f"(95 %: {limits.low:.0%} to {limits.high:.0%})"
            )
    if not numbers:
        return
    ratio, first = (
        facts.setting(f"mining.{setting}") for setting in ("positive_ratio", "rank_from")
    )
    yield Finding(
        "negatives_close",
        f"The mined negatives of '{name}' are too close: many may be answers that nobody labelled.",
        f"{MINING}: {shown(numbers)}",
        f"set a lower {ratio}, at most 0.95, or raise {first}",
    )
