"""Whether the scores of pairs say the opposite of what the vectors say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from qzhou.evaluation.candidates import BACKBONE, STAGE1, STAGE2
from qzhou.evaluation.comparison import Row
from qzhou.evaluation.diagnosis.facts import COMPARISON, METRICS, STAGES, Facts, Step
from qzhou.evaluation.diagnosis.finding import Finding, Looked, shown
from qzhou.evaluation.diagnosis.intervals import Z, mean

# Hard sets of pairs, made so that words in common mislead (PAWS), lie near 0; right labels lie clearly above it
# (docstrings and MiniLM: 0.44), and so inverted ones as clearly below.
INVERTED_SPEARMAN = -0.1
# The same as a share of comparisons: (1 + tau) / 2 with Kendall's tau = -0.1.
INVERTED_AGREEMENT = 0.45
# The first steps of a dataset, before the model learns even inverted labels.
FIRST_STEPS = 8


def labels_inverted(facts: Facts) -> Looked:
    """Pairs with higher scores have lower cosines: held out, or in the first steps of training."""
    rows = [
        row for row in facts.rows if row.type == "STS" and row.model in (BACKBONE, STAGE1, STAGE2)
    ]
    trained = {
        (stage, name): some
        for stage in STAGES
        for name, steps in facts.by_dataset(stage, "pair").items()
        if (some := [step for step in steps[:FIRST_STEPS] if "order_agreement" in step])
    }
    if not rows and not trained:
        return f"{COMPARISON} has no STS task, and no metrics have order_agreement"
    evidence: dict[str, list[str]] = {}
    for row in rows:
        for one in _against(row):
            evidence.setdefault(row.task, []).append(one)
    for (stage, name), steps in trained.items():
        for one in _disagreement(stage, steps):
            evidence.setdefault(name, []).append(one)
    return [
        Finding(
            "labels_inverted",
            f"The labels of '{name}' look inverted: pairs with higher scores have lower cosines.",
            shown(parts),
            f"turn the scores of '{name}' round: datasets.labels where they are words, datasets.columns where 'score' "
            "is a distance",
        )
        for name, parts in evidence.items()
    ]


def _against(row: Row) -> Iterator[str]:
    """A correlation that is surely negative; without an interval its error is 1 / sqrt(n - 3), as under none."""
    high = row.high if row.low < row.high else row.score + Z / math.sqrt(max(1, row.n - 3))
    if row.score < INVERTED_SPEARMAN and high < 0:
        yield f"{COMPARISON}: {row.task} {row.metric} of {row.model} {row.score:.4f} (95 %: up to {high:.4f})"


def _disagreement(stage: str, steps: list[Step]) -> Iterator[str]:
    """An agreement that is surely below chance.

    Its error is at least that of Mann and Whitney's U where there is no relation: sqrt(1 / 3n) for two halves of n
    pairs. Where one score is rare it is larger, which shows in how far the steps lie apart.
    """
    pairs, agreements = (
        sum(step["rows"] for step in steps),
        [step["order_agreement"] for step in steps],
    )
    agreement = fmean(agreements, weights=[step["rows"] for step in steps])
    apart = (found := mean(agreements)).high - found.value if len(steps) > 1 else 0.0
    high = agreement + max(Z * math.sqrt(1 / (3 * pairs)), apart)
    if agreement < INVERTED_AGREEMENT and high < 0.5:
        yield (
            f"{METRICS.format(stage=stage)}: order_agreement {agreement:.3f} (95 %: up to {high:.3f}) in its first "
            f"{len(steps)} steps of {pairs:,} pairs"
        )
