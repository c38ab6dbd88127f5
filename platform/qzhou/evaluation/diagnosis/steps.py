"""What the metrics of training steps show of losses, and of what is left out of them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import CheckResult, Finding, Skipped
from qzhou.evaluation.diagnosis.scores import CLASSES, PAIRS, RETRIEVAL
from qzhou.evaluation.intervals import mean, mean_decrease, share, widened
from qzhou.evaluation.judge.model_specs import BACKBONE, STAGE1
from qzhou.run.files import METRICS

# Three steps at each end are the fewest whose mean says something.
FEWEST_STEPS = 12
# Of its level at the start. The quickstart's stage 1 takes half of it, and with possible answers masked a tenth, which
# in 24 steps cannot be told from chance.
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
NO_METRICS = f"there is no {METRICS[STAGE1]} and none of stage 2"


def loss_flat(facts: Facts) -> CheckResult:
    """The loss of a stage did not fall on tasks that are new to it, and the scores of these tasks did not rise."""
    if not facts.steps:
        return Skipped("loss_flat", NO_METRICS)
    long_enough, found = False, list[Finding]()
    for stage in METRICS:
        for task in TYPES:
            relative = _relative_losses(facts, stage, task)
            is_new = task != "retrieval" or stage == facts.first_stage  # which has learned it
            if is_new and len(relative) >= FEWEST_STEPS:
                long_enough = True
                found += _flat(facts, stage, task, relative)
    if not long_enough:
        return Skipped("loss_flat", f"no task has {FEWEST_STEPS} steps in which its loss could fall")
    return found


def _relative_losses(facts: Facts, stage: str, task: str) -> list[float]:
    """The losses by step, each as a share of its dataset's mean loss, because datasets have levels of their own."""
    found = []
    for steps in facts.steps_by_dataset(stage, task).values():
        level = fmean(step["loss"] for step in steps)
        if level > LEARNED_LOSS and len(steps) > 1:
            found += [(step["step"], step["loss"] / level) for step in steps]
    return [loss for _, loss in sorted(found)]


def _flat(facts: Facts, stage: str, task: str, losses: Sequence[float]) -> list[Finding]:
    quarter = len(losses) // 4
    first, last = losses[:quarter], losses[-quarter:]
    fell, level = mean_decrease(first, last), fmean(first)
    if fell.low > 0 or fell.value >= FLAT_FALL * level:
        return []
    before = BACKBONE if stage == facts.first_stage else STAGE1
    gains = [one.change for one in facts.changes(before, stage, TYPES[task])]
    if any(widened(gain, len(gains)).low > 0 and gain.high >= FLAT_GAIN for gain in gains):
        return []  # scores surely rose
    # The loss may have fallen too little to tell; then the scores must surely not have risen.
    scores_stood_still = bool(gains) and max(gain.high for gain in gains) < FLAT_GAIN
    if fell.high >= FLAT_FALL * level and not scores_stood_still:
        return []
    if task == "pair" and _unstable_pairs(facts):
        return []  # cosent_unstable reports it
    name = "training.cosent_temperature" if task == "pair" else "training.temperature"
    rate, temperature = facts.setting(f"training.{stage}.learning_rate"), facts.setting(name)
    steps = f"from the first quarter of {len(losses):,} {task} steps to the last"
    limits = f"{fell.value / level:.1%} (95 %: {fell.low / level:.1%} to {fell.high / level:.1%})"
    return [
        Finding(
            "loss_flat",
            f"The {task} loss of {stage} is flat: it did not fall.",
            f"{METRICS[stage]}: {steps}, it fell by {limits}",
            f"raise {rate}, or look at {temperature}",
        )
    ]


def cosent_unstable(facts: Facts) -> CheckResult:
    """The loss of pairs rises while it is trained, or swings from step to step."""
    if not facts.steps:
        return Skipped("cosent_unstable", NO_METRICS)
    if not _series_of_pairs(facts):
        return Skipped("cosent_unstable", f"no dataset of pairs has {COSENT_STEPS} steps")
    return _unstable_pairs(facts)


def _series_of_pairs(facts: Facts) -> dict[tuple[str, str], list[float]]:
    """(Stage, dataset of pairs) -> its losses, of those with enough steps."""
    return {
        (stage, name): [step["loss"] for step in steps]
        for stage in METRICS
        for name, steps in facts.steps_by_dataset(stage, "pair").items()
        if len(steps) >= COSENT_STEPS
    }


def _unstable_pairs(facts: Facts) -> list[Finding]:
    series = _series_of_pairs(facts)
    found = []
    for (stage, name), losses in series.items():
        found += _unstable(facts, stage, name, losses, len(series))
    return found


def _unstable(facts: Facts, stage: str, name: str, losses: Sequence[float], comparisons: int) -> list[Finding]:
    half = len(losses) // 2
    before, after = losses[:half], losses[half:]
    fell, level = mean_decrease(before, after, comparisons), median(losses)
    changes = [abs(one - other) for one, other in pairwise(losses)]
    wide = sum(change > SWING * max(1.0, level) for change in changes)
    problems = []
    if fell.high < 0 and -fell.value > FLAT_FALL * fmean(before):
        problems.append("rises")
    if share(wide, len(changes)).low > 0.5:  # surely more than half of the changes
        problems.append("swings by more than half of its level")
    if not problems:
        return []
    batch = facts.setting(f"training.{stage}.cosent_batch_size")
    rate = facts.setting(f"training.{stage}.learning_rate")
    means = f"mean of the first half {fmean(before):.3f}, of the second {fmean(after):.3f}"
    swings = f"median change from step to step {median(changes):.3f}, over {len(losses):,} steps"
    return [
        Finding(
            "cosent_unstable",
            f"The CoSENT loss of '{name}' is unstable in {stage}: it {' and '.join(problems)}.",
            f"{METRICS[stage]}: {means}; {swings}",
            f"raise {facts.setting('training.cosent_temperature')} or {batch}, or lower {rate}",
        )
    ]


def false_negatives_many(facts: Facts) -> CheckResult:
    """Much of a batch is left out of the denominator: same label, or possibly an answer."""
    if not facts.steps:
        return Skipped("false_negatives_many", NO_METRICS)
    masked = _last_masked_shares(facts)
    if not masked:
        return Skipped("false_negatives_many", "no metrics have masked_share")
    found = []
    for (task, name), (stage, shares) in masked.items():
        limits = mean(shares)
        if limits.low <= (MASKED_BY_MARGIN if task == "retrieval" else MASKED_BY_LABEL):
            continue
        what = "documents may be answers" if task == "retrieval" else "texts have a text's own label"
        numbers = f"{limits.value:.3f} (95 %: {limits.low:.3f} to {limits.high:.3f})"
        found.append(
            Finding(
                "false_negatives_many",
                f"False negatives are many in '{name}': {limits.value:.0%} of other {what} and are left out.",
                f"{METRICS[stage]}: masked_share {numbers} over its last {len(shares):,} steps",
                _remedy(facts, task, name),
            )
        )
    return found


def _last_masked_shares(facts: Facts) -> Mapping[tuple[str, str], tuple[str, list[float]]]:
    """(Task, dataset) -> the last stage to train on it, its second half's masked shares."""
    found = {}
    for stage in METRICS:
        for task in ("retrieval", "classification"):
            for name, steps in facts.steps_by_dataset(stage, task).items():
                shares = [one["masked_share"] for one in steps[len(steps) // 2 :] if "masked_share" in one]
                if len(shares) > 1:
                    found[task, name] = stage, shares
    return found


def _remedy(facts: Facts, task: str, name: str) -> str:
    margin = "training.loss.false_negative_margin"
    if task == "classification":
        raised = f"raise {facts.setting('training.negatives_per_query')}, all of other classes"
        return f"{raised}, or name a column of finer labels in datasets.columns of '{name}'"
    if facts.value(margin) is None:
        return f"set datasets.rule of '{name}' to 'labeled': it has few documents, and they are rather labels"
    return f"raise {facts.setting(margin)}, or set {facts.setting('mining.consistency_top_k')} to drop poor pairs"
