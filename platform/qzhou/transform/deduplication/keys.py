"""Keys by which examples are compared: digests of texts, and bands of MinHash signatures.

Every example gives some keys: one for itself, one for each of its texts, some for
near-duplicates. Equal keys meet in the same bucket, whichever dataset and shard they come
from.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import pyarrow as pa

from qzhou.config.dataset import Dataset
from qzhou.data.records import Example, LabeledExample, PairExample, RetrievalExample, normalized_text
from qzhou.transform.deduplication.near_duplicates import band_keys
from qzhou.transform.rules.examples import texts_of

DIGEST_BYTES = 16


class KeyKind(IntEnum):
    """What a key says is equal; keys of different spaces never meet."""

    RETRIEVAL = 0  # the same query, positives and instruction
    PAIR = 1  # the same two texts, within a dataset
    CLASSIFICATION = 2  # the same text, within a dataset
    RETRIEVAL_TEXT = 3  # a query or document of retrieval
    SIMILARITY_TEXT = 4  # a text of a pair or class, or a held-out query
    NEAR = 5  # the same band of a MinHash signature


KEYS = pa.schema(
    {"high": pa.uint64(), "low": pa.uint64(), "row": pa.uint32(), "space": pa.uint8(), "held_out": pa.bool_()}
)
KEYS_OF_SHARDS = KEYS.append(pa.field("shard", pa.uint32()))


def text_digest(*keys: str) -> bytes:
    """16 bytes of texts that :func:`qzhou.data.records.normalized_text` has normalised."""
    joined = "\0".join(keys).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=DIGEST_BYTES).digest()


class KeyList:
    """The keys of a shard's examples, numbered in the order in which they are added.

    Args:
        dataset: Whose examples they are. With ``allow_overlap`` a training document, or one side of a training pair,
            may be held out elsewhere; documents of a qrels dataset may always be, since its queries share a corpus.
        with_identity: Whether examples are compared as a whole, to find duplicates.
        with_texts: Whether single texts are compared, to find those that are held out.
        near_threshold: The Jaccard similarity of near-duplicates; None if they are not looked for.
    """

    def __init__(
        self, dataset: Dataset, *, with_identity: bool, with_texts: bool, near_threshold: float | None = None
    ) -> None:
        self._dataset = dataset
        self._with_identity, self._with_texts = with_identity, with_texts
        self._near_threshold = near_threshold
        self._count = 0
        self._digests: list[bytes] = []
        self._rows: list[int] = []
        self._spaces: list[KeyKind] = []
        self._held_out: list[bool] = []
        self._near: list[pa.Table] = []

    def add_all(self, examples: Sequence[tuple[Example, bool]]) -> None:
        """Add the keys of some examples of one record type, each with its split side."""
        for row, (example, held_out) in enumerate(examples, self._count):
            self._add(row, example, held_out)
        if self._near_threshold is not None and examples:
            self._add_near(examples, self._near_threshold)
        self._count += len(examples)

    def table(self) -> pa.Table:
        """All keys as a table of KEYS."""
        words = np.frombuffer(b"".join(self._digests), dtype=np.uint64).reshape(-1, 2)
        columns = {
            "high": words[:, 0],
            "low": words[:, 1],
            "row": np.array(self._rows, dtype=np.uint32),
            "space": np.array(self._spaces, dtype=np.uint8),
            "held_out": np.array(self._held_out, dtype=np.bool_),
        }
        return pa.concat_tables([pa.table(columns, schema=KEYS), *self._near])

    def _add(self, row: int, example: Example, held_out: bool) -> None:
        """Add the digests of one example.

        A query with two answers is two examples. A text with two labels, or a pair with two
        scores or with its sides exchanged, is one: the second contradicts the first or adds
        nothing. Premise and hypothesis (nli) exchanged are another pair. Labels and scores of
        two datasets are not compared, so neither are their texts.

        A retrieval text is compared with held-out queries and documents. A labelled text or a
        pair is compared with held-out texts of its kind and with held-out queries, but not
        documents: a class may be taught with a text that is a document elsewhere.
        """
        keys = [normalized_text(text) for text in texts_of(example)]
        text_space = KeyKind.SIMILARITY_TEXT
        shareable = 0  # how many texts, from the first on, are compared even with allow_overlap
        if isinstance(example, RetrievalExample):
            instruction = [normalized_text(example.instruction)] if example.instruction else []
            space, own, shareable = KeyKind.RETRIEVAL, [keys[0], *sorted(keys[1:]), *instruction], 1
            text_space = KeyKind.RETRIEVAL_TEXT
        elif isinstance(example, PairExample):
            ordered = keys if self._dataset.rule == "nli" else sorted(keys)
            space, own = KeyKind.PAIR, [self._dataset.name, *ordered]
        else:
            space, own, shareable = KeyKind.CLASSIFICATION, [self._dataset.name, *keys], 1
        if self._with_identity:
            self._append(row, text_digest(*own), space, held_out)
        if self._with_texts:
            digests = [text_digest(key) for key in keys]
            is_asked = bool(keys[0])  # a document may have no query yet
            has_corpus = self._dataset.rule == "qrels"
            shares = has_corpus or (self._dataset.allow_overlap and not held_out)
            compared = digests[:shareable] if shares else digests
            compared = compared if is_asked else compared[1:]
            if isinstance(example, PairExample):
                compared = [*compared, text_digest(*sorted(keys))]  # a whole pair may never be shared
            for digest in compared:
                self._append(row, digest, text_space, held_out)
            if held_out and is_asked and isinstance(example, RetrievalExample):
                self._append(row, digests[0], KeyKind.SIMILARITY_TEXT, held_out)

    def _add_near(self, examples: Sequence[tuple[Example, bool]], threshold: float) -> None:
        """Add a key for each band of each example that has words on every side."""
        texts = [texts_of(example) for example, _ in examples]
        sides = [] if self._dataset.rule == "documents" else [[own[0] for own in texts]]
        if not isinstance(examples[0][0], LabeledExample):
            sides.append(["\n".join(own[1:]) for own in texts])
        bands, comparable = band_keys(sides, threshold)
        bands = bands[comparable]
        if not isinstance(examples[0][0], RetrievalExample):
            bands ^= np.frombuffer(text_digest(self._dataset.name)[:8], dtype=np.uint64)[0]
        rows = np.arange(self._count, self._count + len(examples), dtype=np.uint32)[comparable]
        held_out = np.array([held for _, held in examples])[comparable]
        count, width = bands.shape
        columns = {
            "high": bands.ravel(),
            "low": np.tile(np.arange(width, dtype=np.uint64), count),
            "row": np.repeat(rows, width),
            "space": np.full(count * width, KeyKind.NEAR, dtype=np.uint8),
            "held_out": np.repeat(held_out, width),
        }
        self._near.append(pa.table(columns, schema=KEYS))

    def _append(self, row: int, digest: bytes, space: KeyKind, held_out: bool) -> None:
        self._digests.append(digest)
        self._rows.append(row)
        self._spaces.append(space)
        self._held_out.append(held_out)
