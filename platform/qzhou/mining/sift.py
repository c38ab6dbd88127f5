"""Candidates for an exact search from products in bfloat16, with a bound that proves that none is missing.

Processors that multiply in bfloat16 do so two to ten times faster than in float32. A product of rounded unit vectors is
wrong by no more than what the rounding took from them: a document that is not among the candidates is further away
than the last one by more than that, or the query is searched again in float32. What is found is what float32 finds.

Shape letters in this file: N queries, M documents of a block, D embedding width, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qzhou.mining.identity import Floats, Ints

QUERIES_AT_ONCE = 1024
GROUP = 64  # documents of which one maximum is taken
RELATIVE = 2.0**-8  # twice what rounding to bfloat16 changes a product by
ABSOLUTE = 1e-5  # what summing in float32 does
FASTER = 1.15  # times; below, float32 is taken


@dataclass(frozen=True, slots=True)
class Sifted:
    """Candidates of each query.

    Attributes:
        row_NC: Rows of the documents, in no order that counts.
        outside_N: No document that is missing can have a score above it.
    """

    row_NC: Ints
    outside_N: Floats


def sift(query_ND: Floats, blocks: Iterable[tuple[Ints, Floats]], count: int) -> Sifted:
    """The ``count`` documents that bfloat16 ranks first, for each query.

    Args:
        query_ND: Unit rows.
        blocks: Rows of some documents, and their unit vectors.
        count: Candidates; fewer come back where there are fewer documents, and then none is missing.
    """
    query, error_N = _rounded(query_ND)
    score = torch.full((len(query), count), -torch.inf, dtype=torch.bfloat16)
    row = torch.zeros(len(query), count, dtype=torch.int64)
    worst, seen = 0.0, 0
    # one memory for all products: fresh pages would take as long as the products themselves
    products = torch.empty(0, dtype=torch.bfloat16)
    with torch.inference_mode():
        for row_M, document_MD in blocks:
            document, error_M = _rounded(document_MD)
            worst, seen = max(worst, float(error_M.max())), seen + len(document)
            if len(document) * QUERIES_AT_ONCE > len(products):
                products = torch.empty(len(document) * QUERIES_AT_ONCE, dtype=torch.bfloat16)
            for start in range(0, len(query), QUERIES_AT_ONCE):
                here = slice(start, start + QUERIES_AT_ONCE)
                some = query[here]
                product = products[: len(some) * len(document)].view(len(some), len(document))
                torch.mm(some, document.T, out=product)
                found, place = _better(product, score[here, -1:], count)
                together = torch.cat([score[here], found], dim=1)
                score[here], kept = torch.topk(together, count, dim=1)
                row[here] = torch.cat([row[here], torch.from_numpy(row_M)[place]], dim=1).gather(1, kept)
    score, row = score[:, :seen], row[:, :seen]
    if seen <= count:
        return Sifted(row.numpy(), np.full(len(query), -np.inf, dtype=np.float32))
    lowest_N = score.float().min(dim=1).values
    return Sifted(row.numpy(), (lowest_N + RELATIVE * lowest_N.abs() + 1.01 * (error_N + worst) + ABSOLUTE).numpy())


def is_faster(usual: Callable[[Floats, Floats], object], width: int) -> bool:
    """Whether sifting beats the usual search here, on a small problem of this width; takes half a second."""
    generator = np.random.default_rng(0)
    query, document = (generator.normal(size=(rows, width)).astype(np.float32) for rows in (1024, 16_384))

    def seconds(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(2):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(lambda: usual(query, document)) > FASTER * seconds(
        lambda: sift(query, [(np.arange(len(document)), document)], 64)
    )


def _rounded(rows: Floats) -> tuple[Tensor, Tensor]:
    """Rows in bfloat16, and the length of what the rounding took from each."""
    exact = torch.from_numpy(np.ascontiguousarray(rows))
    rounded = exact.bfloat16()
    return rounded, (exact - rounded.float()).norm(dim=1)


def _better(score_NM: Tensor, lowest_N1: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and places of what may be among the best ``count``: all above ``lowest``, but no more than that many.

    Of most groups of documents even the best is below what earlier blocks had; only the others are looked at.
    """
    groups = score_NM.shape[1] // GROUP
    kept = min(count, score_NM.shape[1])
    if not groups or torch.isneginf(lowest_N1).any():
        found = torch.topk(score_NM, kept, dim=1, sorted=False)
        return found.values, found.indices
    grouped = score_NM[:, : groups * GROUP].reshape(len(score_NM), groups, GROUP)
    best_NG = grouped.amax(dim=2)
    wanted = int((best_NG > lowest_N1).sum(dim=1).max())
    group = torch.topk(best_NG, wanted, dim=1, sorted=False).indices
    inside = (group[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    rest = torch.arange(groups * GROUP, score_NM.shape[1]).expand(len(score_NM), -1)
    place = torch.cat([inside, rest], dim=1)
    found = torch.topk(score_NM.gather(1, place), min(kept, place.shape[1]), dim=1, sorted=False)
    return found.values, place.gather(1, found.indices)
