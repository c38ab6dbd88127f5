"""What the metrics of training steps show of losses, and of what is left out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

from qzhou.evaluation.candidates import BACKBONE, STAGE1, STAGE2
from qzhou.evaluation.diagnosis.facts import METRICS, STAGES, Facts, Step
from qzhou.evaluation.diagnosis.finding import Finding, Looked
from qzhou.evaluation.diagnosis.intervals import fall, mean, share, widened
from qzhou.evaluation.diagnosis.scores import CLASSES, PAIRS, RETRIEVAL

# Three steps at each end are the fewest whose mean says something.
FEWEST_STEPS = 12
# Of its level at the start. The quickstart's stage 1 takes half of it, and with possible answers masked a tenth, which
# in 24 steps is not to be told from chance.
FLAT_FALL = 0.1
# Score. Where the loss does not tell, the model must surely have gained less; the quickstart gains 0.05 in 24 steps.
FLAT_GAIN = 0.02
# Nats. Below it there is nothing left to learn, and nothing that could fall.
LEARNED_LOSS = 0.05
# From step to step, of its level. The quickstart's CoSENT loss moves by a tenth.
SWING = 0.5
COSENT_STEPS = 6
# Of other texts with the same label. Two classes of equal size make it a half; two thirds are two classes at 4 : 1.
MASKED_BY_LABEL = 2 / 3
# Of other queries' documents. The quickstart, whose packages document the same functions, has 0.01 to 0.04 with a
# margin of 0; a fifth of what belongs to others cannot be answers.
MASKED_BY_MARGIN = 0.2

TYPES = {"retrieval": RETRIEVAL, "pair": PAIRS, "classification": CLASSES}
BEFORE = {STAGE1: BACKBONE, STAGE2: STAGE1}


def loss_flat(facts: Facts) -> Looked:
    """The loss of a stage did not fall on tasks that are new to it, and the scores of these tasks did not rise."""
    if not facts.steps:
        return _no_metrics()
    long_enough, found = False, list[Finding]()
    for stage in STAGES:
        for task in TYPES:
            relative = _relative_losses(facts, stage, task)
            # stage 1 has learned it
            if (stage, task) == (STAGE2, "retrieval") or len(relative) < FEWEST_STEPS:
                continue
            long_enough = True
            found += _flat(facts, stage, task, relative)
    return (
        found if long_enough else f"no task has {FEWEST_STEPS} steps in which its loss could fall"
    )


def _relative_losses(facts: Facts, stage: str, task: str) -> list[tuple[int, float]]:
    """Step and loss, as a share of the mean loss of its dataset: datasets have levels of their own."""
    found = []
    for steps in facts.by_dataset(stage, task).values():
        level = fmean(step["loss"] for step in steps)
        if level > LEARNED_LOSS and len(steps) > 1:
            found += [(step["step"], step["loss"] / level) for step in steps]
    return sorted(found)


def _flat(
    facts: Facts, stage: str, task: str, relative: Sequence[tuple[int, float]]
) -> Iterator[Finding]:
    quarter = len(relative) // 4
    first, last = ([loss for _, loss in part] for part in (relative[:quarter], relative[-quarter:]))
    fell, level = fall(first, last), fmean(first)
    gains = [one.apart for one in facts.compared(stage, BEFORE[stage], TYPES[task])]
    learned = any(widened(gain, len(gains)).low > 0 and gain.high >= FLAT_GAIN for gain in gains)
    idle = fell.high < FLAT_FALL * level or bool(
        gains and max(gain.high for gain in gains) < FLAT_GAIN
    )
    # a sign of its own
    unstable = task == "pair" and isinstance(found := cosent_unstable(facts), list) and found
    if fell.low > 0 or fell.value >= FLAT_FALL * level or learned or not idle or unstable:
        return
    rate, heat = (
        facts.setting(name)
        for name in (
            f"training.{stage}.learning_rate",
            "training.cosent_temperature" if task == "pair" else "training.temperature",
        )
    )
    yield Finding(
        "loss_flat",
        f"The {task} loss of {stage} is flat: it did not fall.",
        f"{METRICS.format(stage=stage)}: from the first quarter of {len(relative):,} {task} steps to the last, it "
        f"fell by {fell.value / level:.1%} (95 %: {fell.low / level:.1%} to {fell.high / level:.1%})",
        f"raise {rate}, or look at {heat}",
    )


def cosent_unstable(facts: Facts) -> Looked:
    """The loss of pairs rises while it is trained, or swings from step to step."""
    if not facts.steps:
        return _no_metrics()
    series = {
        (stage, name): steps
        for stage in STAGES
        for name, steps in facts.by_dataset(stage, "pair").items()
        if len(steps) >= COSENT_STEPS
    }
    if not series:
        return f"no dataset of pairs has {COSENT_STEPS} steps"
    return [
        found
        for (stage, name), steps in series.items()
        for found in _unstable(facts, stage, name, steps, len(series))
    ]


def _unstable(
    facts: Facts, stage: str, name: str, steps: Sequence[Step], looks: int
) -> Iterator[Finding]:
    losses = [step["loss"] for step in steps]
    half = len(losses) // 2
    before, after = losses[:half], losses[half:]
    fell, level = fall(before, after, looks), median(losses)
    changes = [abs(one - other) for one, other in pairwise(losses)]
    wide = sum(change > SWING * max(1.0, level) for change in changes)
    rises = fell.high < 0 and -fell.value > FLAT_FALL * fmean(before)
    swings = share(wide, len(changes)).low > 0.5  # more than half of the changes, and surely so
    if not (rises or swings):
        return
    how = " and ".join(["rises"] * rises + ["swings by more than half of its level"] * swings)
    batch, rate = (
        facts.setting(f"training.{stage}.{setting}")
        for setting in ("cosent_batch_size", "learning_rate")
    )
    yield Finding(
        "cosent_unstable",
        f"The CoSENT loss of '{name}' is unstable in {stage}: it {how}.",
        f"{METRICS.format(stage=stage)}: mean of the first half {fmean(before):.3f}, of the second {fmean(after):.3f}; "
        f"median change from step to step {median(changes):.3f}, over {len(losses):,} steps",
        f"raise {facts.setting('training.cosent_temperature')} or {batch}, or lower {rate}",
    )


def false_negatives_many(facts: Facts) -> Looked:
    """Much of a batch is left out of the denominator, because it has the same label or may be an answer."""
    if not facts.steps:
        return _no_metrics()
    masked = _last_shares(facts)
    if not masked:
        return "no metrics have masked_share, as those of older runs"
    found = []
    for (stage, task, name), shares in masked.items():
        limits = mean(shares)
        if limits.low <= (MASKED_BY_MARGIN if task == "retrieval" else MASKED_BY_LABEL):
            continue
        what = (
            "documents may be answers" if task == "retrieval" else "texts have a text's own label"
        )
        found.append(
            Finding(
                "false_negatives_many",
                f"False negatives are many in '{name}': {limits.value:.0%} of other {what} and are left out.",
                f"{METRICS.format(stage=stage)}: masked_share {limits.value:.3f} (95 %: {limits.low:.3f} to "
                f"{limits.high:.3f}) over its last {len(shares):,} steps",
                _remedy(facts, task, name),
            )
        )
    return found


def _last_shares(facts: Facts) -> Mapping[tuple[str, str, str], list[float]]:
    """(Stage, task, dataset) -> shares in the second half of the last stage that trained on the dataset."""
    found: dict[tuple[str, str], tuple[str, list[float]]] = {}
    for stage in STAGES:
        for task in ("retrieval", "classification"):
            for name, steps in facts.by_dataset(stage, task).items():
                shares = [
                    step["masked_share"]
                    for step in steps[len(steps) // 2 :]
                    if "masked_share" in step
                ]
                if len(shares) > 1:
                    found[task, name] = stage, shares
    return {(stage, *key): shares for key, (stage, shares) in found.items()}


def _remedy(facts: Facts, task: str, name: str) -> str:
    margin = "training.loss.false_negative_margin"
    if task == "classification":
        negatives = facts.setting("training.negatives_per_query")
        return (
            f"raise {negatives}, all of other classes, or name a column of finer labels in datasets.columns of "
            f"'{name}'"
        )
    if facts.value(margin) is None:
        return f"set datasets.rule of '{name}' to 'labeled': it has few documents, and they are rather labels"
    return f"raise {facts.setting(margin)}, or set {facts.setting('mining.consistency_top_k')} to drop poor pairs"


def _no_metrics() -> str:
    return f"there is no {METRICS.format(stage='stage1')} and none of stage 2"
