"""Which rows are held out for evaluation: a pure function of the group's name."""

from __future__ import annotations

import hashlib

BUCKETS = 2**64


def held_out(group: str, fraction: float) -> bool:
    """Whether a group of rows is kept for evaluation and never trained on.

    Only the group's name decides, not its dataset nor the rows around it: a module, a user or a
    source document is on the same side in every dataset and in every later run, and raising the
    fraction only adds groups.

    Args:
        group: Value that rows share which must not be torn apart.
        fraction: Share of the groups that is held out, in [0, 1].
    """
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * BUCKETS
