"""Keep the memory of a replica small: oneDNN caches what it compiled for each of the last thousand shapes."""

import os

# shapes that oneDNN caches; a batch of mixed texts seldom has the shape of an earlier one
SHAPES = "128"
# oneDNN's own cache, and that of torch's layer above it
CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def remember_fewer_shapes() -> None:
    """Lower the capacities that the environment does not set; call it before torch computes anything."""
    for name in CAPACITIES:
        os.environ.setdefault(name, SHAPES)
