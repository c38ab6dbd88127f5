"""Candidates for an exact search from products in bfloat16, with a bound that proves that none is missing.

Processors that multiply in bfloat16 do so two to ten times faster than in float32. A product of rounded unit vectors is
wrong by no more than what the rounding took from them: a document that is not among the candidates is further away
than the last one by more than that, or the query is searched again in float32. What is found is what float32 finds.

Shape letters in this file: N queries, M documents of a block, D embedding width, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qzhou.mining.identity import Floats, Ints

QUERIES_AT_ONCE = 1024
GROUP = 16  # documents of which one maximum is taken
ROUNDED_ROWS = 4096  # at once, within memory that is used again
RELATIVE = 2.0**-8  # twice what rounding to bfloat16 changes a product by
ABSOLUTE = 1e-5  # what summing in float32 does
# times, of products alone; below, finding the best in them and proving it costs what they save
FASTER = 2


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
                row[here] = torch.cat([row[here], torch.from_numpy(row_M)[place]], dim=1).gather(
                    1, kept
                )
    score, row = score[:, :seen], row[:, :seen]
    if seen <= count:
        return Sifted(row.numpy(), np.full(len(query), -np.inf, dtype=np.float32))
    lowest_N = score.float().min(dim=1).values
    return Sifted(
        row.numpy(),
        (lowest_N + RELATIVE * lowest_N.abs() + 1.01 * (error_N + worst) + ABSOLUTE).numpy(),
    )


def is_faster(width: int) -> bool:
    """Whether products in bfloat16 are fast enough here to pay, by a measurement of a quarter of a second."""
    generator = torch.Generator().manual_seed(0)
    query, document = (
        torch.randn(rows, width, generator=generator) for rows in (QUERIES_AT_ONCE, 16_384)
    )

    def seconds(dtype: torch.dtype) -> float:
        some, others, taken = query.to(dtype), document.to(dtype), []
        product = torch.empty(len(query), len(document), dtype=dtype)
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(some, others.T, out=product)
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(torch.float32) > FASTER * seconds(torch.bfloat16)


def _rounded(rows: Floats) -> tuple[Tensor, Tensor]:
    """Rows in bfloat16, and the length of what the rounding took from each."""
    exact = torch.from_numpy(np.ascontiguousarray(rows))
    rounded = torch.empty(exact.shape, dtype=torch.bfloat16)
    error = torch.empty(len(exact))
    for start in range(0, len(exact), ROUNDED_ROWS):
        here = slice(start, start + ROUNDED_ROWS)
        rounded[here] = exact[here]
        error[here] = (exact[here] - rounded[here].float()).norm(dim=1)
    return rounded, error


def _better(score_NM: Tensor, lowest_N1: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and places of what may be among the best ``count``: all above ``lowest``, but no more than that many.

    The best ``count`` lie in the ``count`` groups whose own best is highest, and most groups have nothing above what
    earlier blocks had: only the others are looked at. A group is every so manieth document, which is how processors
    take maxima fastest.
    """
    groups = score_NM.shape[1] // GROUP
    kept = min(count, score_NM.shape[1])
    best_NG = score_NM[:, : groups * GROUP].view(len(score_NM), GROUP, groups).amax(dim=1)
    best = torch.topk(best_NG, min(count, groups), dim=1)
    wanted = int((best.values > lowest_N1).sum(dim=1).max())
    group = best.indices[:, :wanted]
    inside = (group[:, :, None] + groups * torch.arange(GROUP)).flatten(1)
    rest = torch.arange(groups * GROUP, score_NM.shape[1]).expand(len(score_NM), -1)
    place = torch.cat([inside, rest], dim=1)
    found = torch.topk(score_NM.gather(1, place), min(kept, place.shape[1]), dim=1, sorted=False)
    return found.values, place.gather(1, found.indices)
