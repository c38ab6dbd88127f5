"""Whether the scores of pairs contradict the vectors."""

import math
from collections import defaultdict
from statistics import fmean

from qzhou.evaluation.comparison import Row
from qzhou.evaluation.diagnosis.facts import Facts, Step
from qzhou.evaluation.diagnosis.finding import CheckResult, Finding, Skipped, shown
from qzhou.evaluation.intervals import Z, mean
from qzhou.evaluation.judge.model_specs import BACKBONE, STAGE1, STAGE2
from qzhou.run.files import COMPARISON, METRICS

# Hard sets of pairs, made so that common words mislead (PAWS), lie near 0. Right labels lie clearly above it
# (docstrings and MiniLM: 0.44), and inverted ones as clearly below.
INVERTED_SPEARMAN = -0.1
# The same as a share of comparisons: (1 + tau) / 2 with Kendall's tau = -0.1.
INVERTED_AGREEMENT = 0.45
# The first steps of a dataset, before the model learns even inverted labels.
FIRST_STEPS = 8


def labels_inverted(facts: Facts) -> CheckResult:
    """Pairs with higher scores have lower cosines: held out, or early in training."""
    evidence: dict[str, list[str]] = defaultdict(list)
    checked = False
    for row in facts.rows:
        if row.type == "STS" and row.model in (BACKBONE, STAGE1, STAGE2):
            checked = True
            for part in _negative_correlation(row):
                evidence[row.task].append(part)
    for stage in METRICS:
        for name, steps in facts.steps_by_dataset(stage, "pair").items():
            first = [step for step in steps[:FIRST_STEPS] if "order_agreement" in step]
            if first:
                checked = True
                for part in _disagreement(stage, first):
                    evidence[name].append(part)
    if not checked:
        return Skipped("labels_inverted", f"{COMPARISON} has no STS task, and no metrics have order_agreement")
    return [
        Finding(
            "labels_inverted",
            f"The labels of '{name}' are inverted, or its pairs mislead: those with higher scores have lower cosines.",
            shown(parts),
            f"look at some pairs of '{name}'. Where alike ones score low, turn the scores round: datasets.labels where "
            "they are words, datasets.columns where 'score' is a distance. Right labels may stay: common words can "
            "mislead (PAWS), or the backbone cannot read the language",
        )
        for name, parts in evidence.items()
    ]


def _negative_correlation(row: Row) -> list[str]:
    """The evidence of a correlation that is surely negative."""
    high = row.high
    if row.low == row.high:  # no interval; without a relation the standard error is 1 / sqrt(n - 3)
        high = row.score + Z / math.sqrt(max(1, row.n - 3))
    if row.score >= INVERTED_SPEARMAN or high >= 0:
        return []
    return [f"{COMPARISON}: {row.task} {row.metric} of {row.model} {row.score:.4f} (95 %: up to {high:.4f})"]


def _disagreement(stage: str, steps: list[Step]) -> list[str]:
    """The evidence of an agreement that is surely below chance.

    Its standard error is at least that of Mann and Whitney's U without a relation: sqrt(1 /
    3n) for two halves of n pairs. Where one score is rare the error is larger, which shows
    in how far the steps lie apart.
    """
    pairs = sum(step["rows"] for step in steps)
    agreements = [step["order_agreement"] for step in steps]
    agreement = fmean(agreements, weights=[step["rows"] for step in steps])
    error = Z * math.sqrt(1 / (3 * pairs))
    if len(steps) > 1:
        over_steps = mean(agreements)
        error = max(error, over_steps.high - over_steps.value)
    high = agreement + error
    if agreement >= INVERTED_AGREEMENT or high >= 0.5:
        return []
    limits = f"{agreement:.3f} (95 %: up to {high:.3f})"
    where = f"in its first {len(steps)} steps of {pairs:,} pairs"
    return [f"{METRICS[stage]}: order_agreement {limits} {where}"]
