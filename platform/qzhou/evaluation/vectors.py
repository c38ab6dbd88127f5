"""How many documents of a corpus are encoded together, so that several workers can share one corpus."""

from __future__ import annotations

MTEB_ROWS = 50_000  # documents that mteb asks for at a time; chunks begin anew there
MOST_ROWS = 2000  # documents in a file


def chunk_rows(split_documents: int) -> int:
    """Documents in a chunk: as many as one worker encodes at a time at most, and a divisor of what mteb asks for."""
    most = min(MOST_ROWS, split_documents, MTEB_ROWS)
    return next(rows for rows in range(most, 0, -1) if MTEB_ROWS % rows == 0)
