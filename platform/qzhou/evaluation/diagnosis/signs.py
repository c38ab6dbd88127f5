"""All signs of trouble: looked for, written and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from qzhou.evaluation.diagnosis.data import (
    contaminated,
    negatives_close,
    negatives_easy,
    synthetic_drifted,
)
from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import Finding, Looked, Unchecked
from qzhou.evaluation.diagnosis.labels import labels_inverted
from qzhou.evaluation.diagnosis.scores import (
    below_backbone,
    classification_poor,
    collapsed,
    retrieval_fell,
)
from qzhou.evaluation.diagnosis.steps import cosent_unstable, false_negatives_many, loss_flat

# What makes scores worthless comes first.
LOOKS: Mapping[str, Callable[[Facts], Looked]] = {
    look.__name__: look
    for look in (
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
}


def diagnose(facts: Facts) -> list[Finding]:
    """The signs of trouble that a run shows, the gravest kinds first."""
    return [
        one for look in LOOKS.values() if not isinstance(found := look(facts), str) for one in found
    ]


def unchecked(facts: Facts) -> list[Unchecked]:
    """The signs that could not be looked for, because of what a run did not leave."""
    return [
        Unchecked(sign, found)
        for sign, look in LOOKS.items()
        if isinstance(found := look(facts), str)
    ]


def content(facts: Facts) -> dict[str, Any]:
    """What stands in ``evaluation/diagnosis.json``."""
    return {
        "findings": [asdict(one) for one in diagnose(facts)],
        "unchecked": [asdict(one) for one in unchecked(facts)],
    }


def lines(found: Mapping[str, Any]) -> str:
    """The content of ``evaluation/diagnosis.json`` for the console: three lines a finding."""
    findings, rest = found["findings"], found["unchecked"]
    signs = {one["sign"] for one in findings}
    looked = len(LOOKS) - len(rest)
    said = [
        f"Diagnosis: {len(signs)} of {looked} signs of trouble {'is' if len(signs) == 1 else 'are'} there"
    ]
    for one in findings:
        said += [
            f"  {one['sign']}: {one['says']}",
            f"      {one['evidence']}",
            f"      -> {one['setting']}",
        ]
    reasons = dict.fromkeys(one["why"] for one in rest)
    for why in reasons:
        said.append(
            f"  not looked for: {', '.join(one['sign'] for one in rest if one['why'] == why)} ({why})"
        )
    return "\n".join(said)
