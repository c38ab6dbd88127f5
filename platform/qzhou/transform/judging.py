"""What becomes of each example once all of them are known: trained on, held out, or dropped.

Held-out examples of all datasets are taken in first, so that no training example of any dataset
can show what evaluation asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from qzhou.recipe import Dataset
from qzhou.transform.dedup import DIGEST_BYTES, HeldOutTexts, Repeats, sample

TRAINING, HELD_OUT, SAMPLED_OUT = "training", "held out", "sampled out"
DUPLICATE, IN_HELD_OUT = "duplicate", "in_held_out"

DETAILS = {
    DUPLICATE: "an earlier row has the same texts up to case and white space",
    IN_HELD_OUT: "one of its texts is held out for evaluation",
}


class Mark(NamedTuple):
    """What judging needs of a row; ``reason`` is set where a rule has dropped it already.

    ``texts`` are the digests of the example's texts, one after the other.
    """

    reason: str
    held_out: bool
    id: str
    identity: bytes
    texts: bytes


Marks = Callable[[], Iterable[Mark]]


def is_drop(verdict: str) -> bool:
    """Whether a verdict is the reason of a drop."""
    return verdict not in {TRAINING, HELD_OUT, SAMPLED_OUT}


def verdicts(
    datasets: Sequence[Dataset], marks: Mapping[str, Marks], *, deduplicate: bool, seed: int
) -> dict[str, list[str]]:
    """One verdict per row and dataset: ``training``, ``held out``, ``sampled out``, or the reason of a drop.

    Args:
        datasets: In the order of the recipe; the first of two equal examples is kept.
        marks: Dataset name -> its rows; called twice and the same each time.
        deduplicate: Whether repeats are dropped. Contamination always is.
        seed: Of the sample that ``max_rows`` asks for.
    """
    held_out, repeats = HeldOutTexts(), Repeats()
    held: dict[str, list[str]] = {}
    for dataset in datasets:
        held[dataset.name] = []
        for mark in marks[dataset.name]():
            if mark.held_out and not mark.reason:
                repeated = deduplicate and repeats.is_repeat(dataset.task, mark.identity)
                held[dataset.name].append(DUPLICATE if repeated else HELD_OUT)
                held_out.add(dataset.task, _digests(mark))
    judged = {}
    for dataset in datasets:
        waiting, ids = iter(held[dataset.name]), []
        decided = judged[dataset.name] = list[str]()
        for mark in marks[dataset.name]():
            verdict = mark.reason
            if not verdict and mark.held_out:
                verdict = next(waiting)
            elif not verdict:
                verdict = _training_verdict(mark, dataset, held_out, repeats if deduplicate else None)
            if verdict == TRAINING:
                ids.append(mark.id)
            decided.append(verdict)
        _sample_out(decided, ids, dataset, seed)
    return judged


def _training_verdict(mark: Mark, dataset: Dataset, held_out: HeldOutTexts, repeats: Repeats | None) -> str:
    if held_out.meet(dataset.task, _digests(mark)):
        return IN_HELD_OUT
    if repeats is not None and repeats.is_repeat(dataset.task, mark.identity):
        return DUPLICATE
    return TRAINING


def _sample_out(decided: list[str], ids: Sequence[str], dataset: Dataset, seed: int) -> None:
    """Mark the training rows that ``max_rows`` leaves out. A pair counts twice: it is trained on from both sides."""
    if dataset.max_rows is None:
        return
    rows = max(1, dataset.max_rows // 2) if dataset.task == "pair" else dataset.max_rows
    drawn = sample(ids, rows, seed)
    position = 0
    for index, verdict in enumerate(decided):
        if verdict == TRAINING:
            if position not in drawn:
                decided[index] = SAMPLED_OUT
            position += 1


def _digests(mark: Mark) -> list[bytes]:
    return [mark.texts[start : start + DIGEST_BYTES] for start in range(0, len(mark.texts), DIGEST_BYTES)]
