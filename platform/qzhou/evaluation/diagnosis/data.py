"""What the reports of transform, synthesis and mining show of the training data."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import CheckResult, Finding, Skipped, shown
from qzhou.evaluation.intervals import mean, share
from qzhou.run.files import METRICS, MINING_REPORT, SYNTHESIS_REPORT, TRANSFORM_REPORT

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
DRIFTS = {"rewrite": "min_rewrite_cosine", "positive": "min_positive_score"}  # score -> quality filter

# Half way between documents drawn at random (0.5) and always nearer than those (1). Of docstrings and MiniLM, ranks
# 10 to 30 give 0.98, and ranks 200 to 300 of 600 documents 0.67.
EASY_HARDNESS = 0.75
FIRST_STEPS = 8  # later the model has pushed them away, as it should
EASY_RATIO = 1 / 3  # of the positives' mean score; ranks 10 to 30 of docstrings have 0.64
# A mined negative outscores a positive more often than not. Docstrings: 0.81, and 0.57 at rank 1.
CLOSE_ORDER = 0.5
# Of known answers, hidden in turn. A ratio alone lets in those that score below it by chance, up to four in ten.
HIDDEN_ADMITTED = 0.5


def contaminated(facts: Facts) -> CheckResult:
    """Training examples repeat texts of an evaluation task; of mteb's tasks, queries.

    Held-out examples share no exact text with training, so what repeats them has come in
    with small changes. Documents of mteb's tasks stand in many training sets, and are not
    counted.
    """
    found = facts.transform.get("contamination")
    if not found:
        return Skipped("contaminated", f"there is no {TRANSFORM_REPORT}")
    if found["action"] == "off":
        return Skipped("contaminated", "transform.contamination.action is 'off'")
    if found["action"] == "drop":
        return []  # the copies were counted and dropped
    copies: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in [*found["overlaps"], *facts.synthesis.get("overlaps", [])]:
        if not _is_declared(facts, row["dataset"], row["task"]):
            copies[row["task"]].append(row)
    return [one for task, rows in copies.items() for one in _copied(facts, task, rows)]


def _copied(facts: Facts, task: str, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    own = facts.transform["datasets"].get(task)
    if own:
        kind, examples = "copied", own["written"].get("held_out")
    else:
        kind, examples = "asked", next((row.n for row in facts.rows if row.task == task), None)
    found = sorted((row for row in rows if row[kind]), key=lambda row: -row[kind])
    count = sum(row[kind] for row in found)
    if count < FEWEST_COPIES or count < CONTAMINATED_SHARE * (examples or max(row["compared"] for row in found)):
        return []
    parts = [f"{row[kind]:,} of {row['compared']:,} examples of {row['dataset']}" for row in found]
    size = f", which has {examples:,} examples" if examples else ""
    message = f"The evaluation set '{task}' is contaminated: training examples repeat its texts"
    return [
        Finding(
            "contaminated",
            f"{message}, and its scores say less.",
            f"{TRANSFORM_REPORT} and {SYNTHESIS_REPORT}: copies of {task}{size}: {shown(parts)}",
            f"set {facts.setting('transform.contamination.action')} to 'drop'",
        )
    ]


def _is_declared(facts: Facts, dataset: str, task: str) -> bool:
    """Whether the recipe calls a dataset an evaluation task's official training split."""
    entry = facts.dataset(dataset)
    if task in entry.get("train_split_of", ()):
        return True
    return task in facts.transform["datasets"] and bool(entry.get("allow_overlap"))


def synthetic_drifted(facts: Facts) -> CheckResult:
    """Synthetic texts are too far from originals, or written answers from their queries."""
    if not facts.synthesis:
        return Skipped("synthetic_drifted", f"there is no {SYNTHESIS_REPORT}")
    techniques = facts.synthesis.get("techniques")
    if not techniques:
        return Skipped("synthetic_drifted", "nothing was written")
    if not any(one["scores"] for one in techniques.values()):
        reason = f"{SYNTHESIS_REPORT} has no scores of a teacher (synthesis.filters.scores)"
        return Skipped("synthetic_drifted", reason)
    floor, real = _hard_negative_score(facts)
    usual = {"rewrite": 0.0} if real is None else {"rewrite": 0.0, "positive": real}
    found = []
    for technique, one in techniques.items():
        for kind, usual_share in usual.items():
            if one["made"] and kind in one["scores"]:
                low = _count_below(facts, kind, one["scores"][kind], floor)
                found += _drift(facts, technique, kind, low, (floor, usual_share))
    return found


def _count_below(facts: Facts, kind: str, counts: Sequence[int], floor: float) -> tuple[int, int]:
    """How many of a technique's records score below the floor, and how many there are."""
    edges, limit = (np.array(facts.synthesis["score_edges"]), facts.synthesis["filters"][DRIFTS[kind]])
    kept = np.array(counts)
    if limit is not None:
        kept = kept * (edges[1:] > limit)  # records below a quality filter were dropped
    return round(_below(floor, kept, edges)), int(kept.sum())


def _drift(
    facts: Facts, technique: str, kind: str, low: tuple[int, int], usual: tuple[float, float]
) -> list[Finding]:
    (count, total), (floor, usual_share) = low, usual
    limits = share(count, total) if total else None
    if limits is None or limits.low <= usual_share + DRIFTED_SHARE:
        return []
    what = "no nearer to its original" if kind == "rewrite" else "no better an answer to its query"
    known = f"; of real pairs {usual_share:.0%} are" if usual_share else ""
    numbers = f"({limits.value:.0%}, 95 %: {limits.low:.0%} to {limits.high:.0%})"
    return [
        Finding(
            "synthetic_drifted",
            f"Synthetic rows drift: much of what {technique} wrote is {what} than a hard negative would be.",
            f"{SYNTHESIS_REPORT}: {count:,} of {total:,} scores {numbers} are below {floor:.2f}{known}",
            f"set {facts.setting(f'synthesis.filters.{DRIFTS[kind]}')} to {floor:.2f} or more",
        )
    ]


def _hard_negative_score(facts: Facts) -> tuple[float, float | None]:
    """The mean score of mined negatives, and the share of real positives below it, if the same teacher mined."""
    mining, filters = facts.settings["mining"], facts.settings["synthesis"]["filters"]
    same_teacher = filters["teacher"] in ("", mining["teacher"]) and not mining["reranker"]
    pooled = _pooled(facts.mining.values()) if same_teacher else None
    if pooled is None:
        return DRIFTED_SCORE, None
    mined, positives = pooled
    edges = np.array(next(iter(facts.mining.values()))["score_edges"])
    floor = float((mined * (edges[1:] + edges[:-1]) / 2).sum() / mined.sum())
    return floor, _below(floor, positives, edges) / float(positives.sum())


def _below(floor: float, counts: Counts, edges: Any) -> float:
    """A histogram's values below a floor; the bin that the floor divides counts in part."""
    return float((counts * np.clip((floor - edges[:-1]) / np.diff(edges), 0.0, 1.0)).sum())


def _pooled(mining: Iterable[Mapping[str, Any]]) -> tuple[Counts, Counts] | None:
    """Histograms of mined and of positive scores, over all datasets that have both."""
    scores = [one["scores"] for one in mining if sum(one.get("scores", {}).get("mined", ()))]
    if not scores:
        return None
    mined = np.sum([one["mined"] for one in scores], axis=0)
    return mined, np.sum([one["positive"] for one in scores], axis=0)


def negatives_easy(facts: Facts) -> CheckResult:
    """Hard negatives are hardly nearer to their queries than any other document."""
    hardness = {}
    for name, steps in facts.steps_by_dataset(facts.first_stage, "retrieval").items():
        values = [one["negative_hardness"] for one in steps[:FIRST_STEPS] if "negative_hardness" in one]
        if len(values) > 1:
            hardness[name] = mean(values)
    if not facts.mining and not hardness:
        return Skipped("negatives_easy", f"there is no {MINING_REPORT}, and no metrics have negative_hardness")
    evidence: dict[str, list[str]] = defaultdict(list)
    for name, one in facts.mining.items():
        mined, positive = one.get("mean mined score"), one.get("mean positive score")
        if None not in (mined, positive) and positive > 0 and mined < EASY_RATIO * positive:
            evidence[name].append(f"{MINING_REPORT}: mean score {mined:.3f}, of positives {positive:.3f}")
    for name, limits in hardness.items():
        if limits.high < EASY_HARDNESS:
            numbers = f"negative_hardness {limits.value:.3f} (95 %: up to {limits.high:.3f})"
            evidence[name].append(f"{METRICS[facts.first_stage]}: {numbers} in its first steps")
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


def negatives_close(facts: Facts) -> CheckResult:
    """Mined negatives look like answers: they beat positives, or known answers pass too."""
    if not facts.mining:
        return Skipped("negatives_close", f"there is no {MINING_REPORT}")
    ratio, first = facts.setting("mining.positive_ratio"), facts.setting("mining.rank_from")
    return [
        Finding(
            "negatives_close",
            f"The mined negatives of '{name}' are too close: many may be answers that nobody labelled.",
            f"{MINING_REPORT}: {shown(numbers)}",
            f"set a lower {ratio}, at most 0.95, or raise {first}",
        )
        for name, one in facts.mining.items()
        if (numbers := [*_outscored(one), *_hidden_admitted(one)])
    ]


def _outscored(report: Mapping[str, Any]) -> list[str]:
    """How often a positive outscores a mined negative, if less than half of the time."""
    sizes = report.get("queries by number of negatives", {})
    pooled = _pooled([report])
    # Where most queries have no negative, those that have some are those with the best positives.
    if pooled is None or 2 * sizes.get("0", 0) > sum(sizes.values()):
        return []
    mined, positives = pooled
    order = float((positives * (np.cumsum(mined) - mined / 2)).sum() / (positives.sum() * mined.sum()))
    if order >= CLOSE_ORDER:
        return []
    return [f"a positive outscores a mined negative in {order:.0%} of all comparisons"]


def _hidden_admitted(report: Mapping[str, Any]) -> list[str]:
    """How many known positives would pass as negatives, where that is surely more than half of them."""
    found = report.get("hidden positives", {"hidden": 0})
    hidden = found["hidden"]
    if not hidden:
        return []
    limits = share(min(found["admitted"], hidden), hidden)
    if limits.low <= HIDDEN_ADMITTED:
        return []
    numbers = f"(95 %: {limits.low:.0%} to {limits.high:.0%})"
    return [f"{limits.value:.0%} of {hidden:,} known positives would pass if hidden {numbers}"]
