"""Candidates for an exact search from products in 16 bits, with a bound that proves that none is missing.

Processors that multiply in bfloat16 do so two to ten times faster than in float32 (LOG.md);
GPUs take float16, which rounds less. Rounding changes a product of unit vectors by no more
than the lengths of what it took from them. A document that is not among the candidates
scores lower than the last one by more than that, or the query is searched again in float32:
the result is float32's.

Shape letters in this file: N queries, M documents of a block, D embedding width, C
candidates.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qzhou.data.text_digests import Floats, Ints

QUERIES_AT_ONCE = 1024  # more take more memory for their products
GROUP = 16  # documents of which one maximum is taken
ROUNDED_ROWS = 4096  # at once, within memory that is used again
# twice what rounding changes a product by
RELATIVE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-23}
ABSOLUTE = 1e-5  # what summing in float32 does


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of each query.

    Attributes:
        row_NC: Rows of the documents, in no order that counts.
        outside_N: No document that is missing can have a score above it.
    """

    row_NC: Ints
    outside_N: Floats


def prefilter(
    query_ND: Floats,
    blocks: Iterable[tuple[Ints, Floats]],
    count: int,
    *,
    queries_at_once: int = QUERIES_AT_ONCE,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Candidates:
    """The ``count`` documents that products in 16 bits rank first, for each query.

    Args:
        query_ND: Unit rows.
        blocks: Rows of some documents, and their unit vectors.
        count: Candidates; fewer where there are fewer documents, and none is missing.
        queries_at_once: Their products with a block of documents are in memory together.
        device: ``cpu`` or ``cuda``.
        dtype: Of the products; default: bfloat16 on a CPU, float16 on a GPU.
    """
    place, dtype = torch.device(device), dtype or (torch.bfloat16 if device == "cpu" else torch.float16)
    query, error_N = _rounded(query_ND, place, dtype)
    score = torch.full((len(query), count), -torch.inf, dtype=dtype, device=place)
    row = torch.zeros(len(query), count, dtype=torch.int64, device=place)
    worst, seen = 0.0, 0
    # one memory for all products: fresh pages would take as long as the products themselves
    products = torch.empty(0, dtype=dtype, device=place)
    with torch.inference_mode(), _sums_in_float32():
        for row_M, document_MD in blocks:
            document, error_M = _rounded(document_MD, place, dtype)
            numbers = torch.from_numpy(row_M).to(place)
            worst = max(worst, float(error_M.max()))
            seen += len(document)
            needed = len(document) * queries_at_once
            if needed > len(products):
                products = torch.empty(needed, dtype=dtype, device=place)
            for start in range(0, len(query), queries_at_once):
                here = slice(start, start + queries_at_once)
                some = query[here]
                product = products[: len(some) * len(document)].view(len(some), len(document))
                torch.mm(some, document.T, out=product)
                found, column = _better(product, score[here, -1:], count)
                together = torch.cat([score[here], found], dim=1)
                score[here], kept = torch.topk(together, count, dim=1)
                rows = torch.cat([row[here], numbers[column]], dim=1)
                row[here] = rows.gather(1, kept)
    score, row = score[:, :seen].cpu(), row[:, :seen].cpu()
    if seen <= count:
        return Candidates(row.numpy(), np.full(len(query), -np.inf, dtype=np.float32))
    lowest_N = score.float().min(dim=1).values
    # |q.d - q'.d'| <= |q - q'| + |d - d'| for unit q and d; 1.01 because rounded rows may be longer than 1
    outside_N = lowest_N + RELATIVE[dtype] * lowest_N.abs() + 1.01 * (error_N.cpu() + worst) + ABSOLUTE
    return Candidates(row.numpy(), outside_N.numpy())


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """cuBLAS may add up products of 16 bits in 16 bits, and multiply float32 in fewer: the bound knows of neither."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_tf32
    matmul.allow_fp16_reduced_precision_reduction, matmul.allow_tf32 = False, False
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_tf32 = before


def _rounded(rows: Floats, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows in 16 bits, and the length of what the rounding took from each."""
    exact = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
    rounded = torch.empty(exact.shape, dtype=dtype, device=device)
    error = torch.empty(len(exact), device=device)
    for start in range(0, len(exact), ROUNDED_ROWS):
        here = slice(start, start + ROUNDED_ROWS)
        rounded[here] = exact[here]
        error[here] = (exact[here] - rounded[here].float()).norm(dim=1)
    return rounded, error


def _better(score_NM: Tensor, lowest_N1: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores and places of what may be among the best ``count``: all above ``lowest``, but no more than that many.

    The best ``count`` lie in the ``count`` groups whose own best is highest, and most
    groups have nothing above what earlier blocks had: only the others are looked at. A
    group is every so manieth document, which is how processors take maxima fastest.
    """
    groups = score_NM.shape[1] // GROUP
    kept = min(count, score_NM.shape[1])
    best_NG = score_NM[:, : groups * GROUP].view(len(score_NM), GROUP, groups).amax(dim=1)
    best = torch.topk(best_NG, min(count, groups), dim=1)
    wanted = int((best.values > lowest_N1).sum(dim=1).max())
    group = best.indices[:, :wanted]
    inside = (group[:, :, None] + groups * torch.arange(GROUP, device=group.device)).flatten(1)
    rest = torch.arange(groups * GROUP, score_NM.shape[1], device=group.device).expand(len(score_NM), -1)
    place = torch.cat([inside, rest], dim=1)
    found = torch.topk(score_NM.gather(1, place), min(kept, place.shape[1]), dim=1, sorted=False)
    return found.values, place.gather(1, found.indices)
