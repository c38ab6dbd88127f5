"""What scores and vectors of the trained models show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qzhou.evaluation.candidates import BACKBONE, STAGE1, STAGE2
from qzhou.evaluation.diagnosis.facts import COMPARISON, Compared, Facts
from qzhou.evaluation.diagnosis.finding import Finding, Looked, shown
from qzhou.evaluation.diagnosis.intervals import mean_of, widened

RETRIEVAL = frozenset({"Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking"})
CLASSES = frozenset({"Classification", "MultilabelClassification", "Clustering"})
PAIRS = frozenset({"STS", "PairClassification"})
JUDGED_BY_COSINE = {"retrieval": RETRIEVAL, "pairs": PAIRS}

# Encoders trained at a temperature of 0.01 give unrelated texts cosines of 0.7 to 0.8 and rank well all the same (E5,
# arXiv:2212.03533); above 0.9 unrelated texts are as near as rewrites of one.
COLLAPSED_COSINE = 0.9
# Of the directions that the texts could span at most. MiniLM on docstrings fills two thirds; a tenth is left where
# collapse in dimensions (arXiv:2110.09348) has begun.
COLLAPSED_RANK = 0.1


def retrieval_fell(facts: Facts) -> Looked:
    """Stage 2 is surely worse than stage 1 at retrieval."""
    compared = facts.compared(STAGE2, STAGE1, RETRIEVAL)
    if not compared:
        return f"{COMPARISON} has no retrieval task of both stages"
    if not (how := _fallen(compared)):
        return []
    eta, rate = (
        facts.setting(f"training.stage2.{name}") for name in ("retrieval_share", "learning_rate")
    )
    only = facts.value("training.stage2.retrieval_share") >= 1.0
    return [
        Finding(
            "retrieval_fell",
            f"Retrieval fell in stage 2 {how[0]}: other tasks took more than it could bear.",
            f"{COMPARISON}, stage1 -> stage2: {how[1]}",
            f"lower {rate}" if only else f"raise {eta}, or lower {rate}",
        )
    ]


def classification_poor(facts: Facts) -> Looked:
    """After all training, classification or clustering is surely worse than with the untouched backbone."""
    compared = facts.compared(STAGE2, BACKBONE, CLASSES)
    if not compared:
        return f"{COMPARISON} has no classification or clustering task of backbone and stage 2"
    if not (how := _fallen(compared)):
        return []
    early = _fallen(facts.compared(STAGE1, BACKBONE, CLASSES))
    names = ("loss.false_negative_margin", "stage1.learning_rate", "stage2.retrieval_share")
    margin, rate, eta = (facts.setting(f"training.{name}") for name in names)
    first = f"stage 1 lost it: set {margin} to 0.1 or less, or lower {rate}; "
    return [
        Finding(
            "classification_poor",
            f"Classification is poor: training made it worse than the untouched backbone {how[0]}.",
            f"{COMPARISON}, backbone -> stage2: {how[1]}",
            f"{first if early else ''}lower {eta}, so that more steps are of other tasks",
        )
    ]


def below_backbone(facts: Facts) -> Looked:
    """After all training, retrieval or pairs are surely worse than with the untouched backbone."""
    compared = {
        kind: facts.compared(STAGE2, BACKBONE, types) for kind, types in JUDGED_BY_COSINE.items()
    }
    if not any(compared.values()):
        return f"{COMPARISON} has no retrieval task and no task of pairs of backbone and stage 2"
    return [found for kind, tasks in compared.items() for found in _below(facts, kind, tasks)]


def _below(facts: Facts, kind: str, compared: Sequence[Compared]) -> Iterator[Finding]:
    if not (how := _fallen(compared)):
        return
    early = _fallen(facts.compared(STAGE1, BACKBONE, JUDGED_BY_COSINE[kind]))
    names = (
        "loss.false_negative_margin",
        "stage1.learning_rate",
        "stage2.learning_rate",
        "stage2.retrieval_share",
    )
    margin, first, second, eta = (facts.setting(f"training.{name}") for name in names)
    lost_in_2 = f"lower {second}" if kind == "retrieval" else f"lower {second}, or lower {eta}"
    yield Finding(
        "below_backbone",
        f"Training made {kind} worse than it is with the untouched backbone {how[0]}.",
        f"{COMPARISON}, backbone -> stage2: {how[1]}",
        f"stage 1 lost it: lower {first}, or set {margin} to 0.1 or less"
        if early
        else f"stage 2 lost it: {lost_in_2}",
    )


def _fallen(compared: Sequence[Compared]) -> tuple[str, str] | None:
    """Where scores fell beyond chance, in words, and the numbers; None where they did not.

    A single task has to fall beyond what one of so many tasks would by chance; all together may fall a little each.
    """
    if not compared:
        return None
    falls = sorted(
        (one for one in compared if widened(one.apart, len(compared)).high < 0),
        key=lambda c: c.apart.value,
    )
    mean = mean_of([one.apart for one in compared])
    if not falls and mean.high >= 0:
        return None
    numbers = [str(one) for one in falls]
    if len(compared) > 1:
        numbers.append(
            f"mean of {len(compared)} tasks {mean.value:+.4f} (95 %: {mean.low:+.4f} to {mean.high:+.4f})"
        )
    where = (
        f"on {len(falls)} of {len(compared)} tasks"
        if falls
        else f"over {len(compared)} tasks together"
    )
    return f"{where}, beyond chance", shown(numbers)


def collapsed(facts: Facts) -> Looked:
    """Different texts have nearly the same vector, or vectors lie in few directions, or are no numbers at all."""
    trained = [model for model in (STAGE1, STAGE2) if model in facts.health]
    if not trained:
        return f"{COMPARISON} has no statistics of vectors"
    return [found for model in trained for found in _collapse(facts, model)]


def _collapse(facts: Facts, model: str) -> Iterator[Finding]:
    found = facts.health[model]
    most = min(found["dimensions"], found["texts"])
    near, narrow = (
        found["mean_cosine"] > COLLAPSED_COSINE,
        found["effective_rank"] < COLLAPSED_RANK * most,
    )
    broken = found.get("not_numbers", 0)
    if not (near or narrow or broken):
        return
    how = " and ".join(
        ["different texts have nearly the same vector"] * near
        + ["vectors lie in few directions"] * narrow
        + [f"{broken:,} vectors are no numbers"] * bool(broken)
    )
    numbers = [
        f"{name} mean cosine {one['mean_cosine']:.3f}, effective rank {one['effective_rank']:.1f} of at most {most:g}"
        for name in (BACKBONE, model)
        if (one := facts.health.get(name))
    ]
    rate, spread = (
        facts.setting(f"training.{model}.learning_rate"),
        facts.setting("training.loss.orthogonal_regularisation"),
    )
    yield Finding(
        "collapsed",
        f"The embeddings of {model} have collapsed: {how}.",
        f"{COMPARISON}, health of {found['texts']:,} texts: {shown(numbers)}",
        f"lower {rate}, or raise {spread}",
    )
