"""What the scores and the embeddings of the trained models show."""

from collections.abc import Sequence

from qzhou.evaluation.diagnosis.facts import Facts, ScoreChange
from qzhou.evaluation.diagnosis.finding import CheckResult, Finding, Skipped, shown
from qzhou.evaluation.intervals import mean_of, widened
from qzhou.evaluation.judge.model_specs import BACKBONE, STAGE1, STAGE2
from qzhou.run.files import COMPARISON

RETRIEVAL = frozenset({"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"})
CLASSES = frozenset({"Classification", "MultilabelClassification", "Clustering"})
PAIRS = frozenset({"STS", "PairClassification"})

# Encoders trained at a temperature of 0.01 give unrelated texts cosines of 0.7 to 0.8 and rank well all the same (E5,
# arXiv:2212.03533); above 0.9 unrelated texts are as near as rewrites of one.
COLLAPSED_COSINE = 0.9
# Of the directions that the texts could span at most. MiniLM on docstrings fills two thirds; a tenth is left where
# collapse in dimensions (arXiv:2110.09348) has begun.
COLLAPSED_RANK = 0.1


def retrieval_fell(facts: Facts) -> CheckResult:
    """Stage 2 is surely worse than stage 1 at retrieval."""
    changes = facts.changes(STAGE1, STAGE2, RETRIEVAL)
    if not changes:
        return Skipped("retrieval_fell", f"{COMPARISON} has no retrieval task of both stages")
    message = "Retrieval fell in stage 2 {where}: other tasks took more than it could bear."
    remedy = f"lower {facts.setting('training.stage2.learning_rate')}"
    if facts.value("training.stage2.retrieval_share") < 1.0:
        remedy = f"raise {facts.setting('training.stage2.retrieval_share')}, or {remedy}"
    return _findings("retrieval_fell", message, "stage1 -> stage2", changes, remedy)


def classification_poor(facts: Facts) -> CheckResult:
    """After all training, classification or clustering is surely worse than with the untouched backbone."""
    changes = facts.changes(BACKBONE, STAGE2, CLASSES)
    if not changes:
        reason = f"{COMPARISON} has no classification or clustering task of backbone and stage 2"
        return Skipped("classification_poor", reason)
    message = "Classification is poor: training made it worse than the untouched backbone {where}."
    remedy = f"lower {facts.setting('training.stage2.retrieval_share')}, so that more steps are of other tasks"
    if _fallen(facts.changes(BACKBONE, STAGE1, CLASSES)):
        margin = facts.setting("training.loss.false_negative_margin")
        rate = facts.setting("training.stage1.learning_rate")
        remedy = f"stage 1 lost it: set {margin} to 0.1 or less, or lower {rate}; {remedy}"
    return _findings("classification_poor", message, "backbone -> stage2", changes, remedy)


def below_backbone(facts: Facts) -> CheckResult:
    """After all training, retrieval or pairs are surely worse than with the backbone."""
    found: list[Finding] = []
    kinds = {"retrieval": RETRIEVAL, "pairs": PAIRS}
    changes = {kind: facts.changes(BACKBONE, STAGE2, types) for kind, types in kinds.items()}
    if not any(changes.values()):
        reason = f"{COMPARISON} has no retrieval task and no task of pairs of backbone and stage 2"
        return Skipped("below_backbone", reason)
    for kind, types in kinds.items():
        remedy = f"stage 2 lost it: lower {facts.setting('training.stage2.learning_rate')}"
        if kind == "pairs":
            remedy += f", or lower {facts.setting('training.stage2.retrieval_share')}"
        if _fallen(facts.changes(BACKBONE, STAGE1, types)):
            margin = facts.setting("training.loss.false_negative_margin")
            rate = facts.setting("training.stage1.learning_rate")
            remedy = f"stage 1 lost it: lower {rate}, or set {margin} to 0.1 or less"
        message = f"Training made {kind} worse than it is with the untouched backbone {{where}}."
        found += _findings("below_backbone", message, "backbone -> stage2", changes[kind], remedy)
    return found


def _findings(check: str, message: str, models: str, changes: Sequence[ScoreChange], remedy: str) -> list[Finding]:
    """A finding where scores fell beyond chance; ``{where}`` says on how many tasks."""
    if fallen := _fallen(changes):
        where, numbers = fallen
        return [Finding(check, message.format(where=where), f"{COMPARISON}, {models}: {numbers}", remedy)]
    return []


def _fallen(changes: Sequence[ScoreChange]) -> tuple[str, str] | None:
    """Where scores fell beyond chance, in words and in numbers; None where they did not.

    A single task has to fall beyond what one of so many tasks would by chance. All together
    may fall a little each.
    """
    if not changes:
        return None
    count = len(changes)
    falls = [one for one in changes if widened(one.change, count).high < 0]
    falls.sort(key=lambda one: one.change.value)
    mean = mean_of([one.change for one in changes])
    if not falls and mean.high >= 0:
        return None
    numbers = [str(one) for one in falls]
    if count > 1:
        limits = f"{mean.value:+.4f} (95 %: {mean.low:+.4f} to {mean.high:+.4f})"
        numbers.append(f"mean of {count} tasks {limits}")
    where = f"on {len(falls)} of {count} tasks" if falls else f"over {count} tasks together"
    return f"{where}, beyond chance", shown(numbers)


def collapsed(facts: Facts) -> CheckResult:
    """Different texts have nearly the same vector, or vectors lie in few directions, or are no numbers at all."""
    trained = [model for model in (STAGE1, STAGE2) if model in facts.health]
    if not trained:
        return Skipped("collapsed", f"{COMPARISON} has no statistics of vectors")
    return [found for model in trained for found in _collapse(facts, model)]


def _collapse(facts: Facts, model: str) -> list[Finding]:
    own = facts.health[model]
    most = min(own["dimensions"], own["texts"])
    problems = []
    if own["mean_cosine"] > COLLAPSED_COSINE:
        problems.append("different texts have nearly the same vector")
    if own["effective_rank"] < COLLAPSED_RANK * most:
        problems.append("vectors lie in few directions")
    if own.get("not_numbers", 0):
        problems.append(f"{own['not_numbers']:,} vectors are no numbers")
    if not problems:
        return []
    numbers = []
    for name in (BACKBONE, model):
        if one := facts.health.get(name):
            rank = f"effective rank {one['effective_rank']:.1f} of at most {most:g}"
            numbers.append(f"{name} mean cosine {one['mean_cosine']:.3f}, {rank}")
    rate = facts.setting(f"training.{model}.learning_rate")
    return [
        Finding(
            "collapsed",
            f"The embeddings of {model} have collapsed: {' and '.join(problems)}.",
            f"{COMPARISON}, health of {own['texts']:,} texts: {shown(numbers)}",
            f"lower {rate}, or raise {facts.setting('training.loss.orthogonal_regularisation')}",
        )
    ]
