"""All checks, and their results as JSON and as text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qzhou.evaluation.diagnosis.data import contaminated, negatives_close, negatives_easy, synthetic_drifted
from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import CheckResult, Finding, Skipped
from qzhou.evaluation.diagnosis.labels import labels_inverted
from qzhou.evaluation.diagnosis.scores import below_backbone, classification_poor, collapsed, retrieval_fell
from qzhou.evaluation.diagnosis.steps import cosent_unstable, false_negatives_many, loss_flat

# What makes scores worthless comes first.
CHECKS: tuple[Callable[[Facts], CheckResult], ...] = (
    contaminated,
    collapsed,
    labels_inverted,
    loss_flat,
    retrieval_fell,
    below_backbone,
    classification_poor,
    false_negatives_many,
    cosent_unstable,
    negatives_easy,
    negatives_close,
    synthetic_drifted,
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The content of ``diagnosis.json``: what the checks found, and which were skipped."""

    findings: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def diagnose(facts: Facts) -> Diagnosis:
    """The results of all checks, the gravest kinds first."""
    found = Diagnosis()
    for check in CHECKS:
        result = check(facts)
        if isinstance(result, Skipped):
            found.skipped.append(result)
        else:
            found.findings.extend(result)
    return found


def diagnosis_text(content: Mapping[str, Any]) -> str:
    """The content of a ``diagnosis.json`` for the console: three lines for each finding."""
    findings, skipped = content["findings"], content["skipped"]
    signs = len({one["check"] for one in findings})
    verb = "is" if signs == 1 else "are"
    lines = [f"Diagnosis: {signs} of {len(CHECKS) - len(skipped)} signs of trouble {verb} there"]
    for one in findings:
        lines.append(f"  {one['check']}: {one['message']}")
        lines += [f"      {one['evidence']}", f"      -> {one['setting']}"]
    by_reason: dict[str, list[str]] = {}
    for one in skipped:
        by_reason.setdefault(one["reason"], []).append(one["check"])
    lines += [f"  not checked: {', '.join(names)} ({why})" for why, names in by_reason.items()]
    return "\n".join(lines)
