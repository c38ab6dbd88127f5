"""Which rows are held out for evaluation: a pure function of the group's name."""

import hashlib

BUCKETS = 2**64


def held_out(group: str, fraction: float) -> bool:
    """Whether a group of rows, by its name, is kept for evaluation and never trained on.

    Only the name decides, not the dataset nor the rows around it. So a module, a user or a
    source document is on the same side in every dataset and in every later run, and a
    larger fraction only adds groups.
    """
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * BUCKETS
