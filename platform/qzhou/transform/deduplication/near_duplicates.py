"""Near-duplicates by MinHash and locality-sensitive hashing; the signatures are rensa's.

Two examples are compared side by side, query with query and positive with positive: five
questions about one passage are five examples. A band is equal where ``rows`` minima of ALL
sides are equal, so examples whose sides have the Jaccard similarities s and t share one of
b bands with probability 1 - (1 - (s t)^rows)^b. It is s t that counts: where one side is
the same, the other may be as far as the square of the threshold.

Source: A. Broder, On the resemblance and containment of documents, 1997; the banding of
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
"""

from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

from qzhou.data.ngrams import Tokens, windows
from qzhou.data.splitmix import GOLDEN

PERMUTATIONS = 128
SHINGLE_TOKENS = 3
SEED = 20250829


def bands_for(threshold: float, sides: int) -> tuple[int, int]:
    """(bands, rows a band) whose curve rises nearest to ``threshold`` on all sides, one or two.

    Chosen so that false positives below and false negatives above the threshold are
    together fewest.
    """
    below, above = np.linspace(0, threshold, 100), np.linspace(threshold, 1, 100)

    def errors(bands: int, rows: int) -> float:
        missed = (1 - above ** (sides * rows)) ** bands
        wrong = 1 - (1 - below ** (sides * rows)) ** bands
        return float(missed.mean() * (1 - threshold) + wrong.mean() * threshold)

    choices = [(PERMUTATIONS // rows, rows) for rows in range(1, 33)]
    return min(choices, key=lambda choice: errors(*choice))


def band_keys(sides: Sequence[Sequence[str]], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """For each example, a hash per band (uint64), and whether every side has words.

    ``sides`` are the texts to compare, one sequence of the same length per side. At the
    Jaccard similarity ``threshold`` of token trigrams, half of the pairs are found. Without
    words an example is near to nothing.
    """
    bands, rows = bands_for(threshold, len(sides))
    keys = np.zeros((len(sides[0]), bands), dtype=np.uint64)
    comparable = np.ones(len(sides[0]), dtype=bool)
    for side in sides:
        grams, ends = windows(Tokens.of(side), SHINGLE_TOKENS, whole_if_shorter=True)
        comparable &= np.diff(ends) > 0
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams, ends.astype(np.uint64), PERMUTATIONS, SEED)
        signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(side), PERMUTATIONS)
        minima = signatures[:, : bands * rows].reshape(len(side), bands, rows)
        for row in range(rows):
            keys = (keys ^ minima[:, :, row]) * GOLDEN
            keys ^= keys >> np.uint64(29)
    return keys, comparable
