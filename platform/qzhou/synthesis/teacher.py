"""What runs inside the actor that judges new records with an encoder. No ray in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qzhou.config.recipe import Recipe
from qzhou.synthesis.gates import Scores

if TYPE_CHECKING:
    from qzhou.encoder import TextEncoder

SCORED = pa.schema(
    [("index", pa.int64()), *((name, pa.float64()) for name in Scores.__dataclass_fields__)]
)


class Teacher:
    """Scores new records with an encoder; see :func:`qzhou.synthesis.scoring.texts_to_score`."""

    def __init__(self, recipe: Recipe) -> None:
        self._encoder = teacher_of(recipe)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [
            {name: text for name, text in row.items() if text is not None}
            for row in batch.to_pylist()
        ]
        texts = list(
            dict.fromkeys(text for row in rows for name, text in row.items() if name != "index")
        )
        vectors = dict(zip(texts, self._encoder.encode(texts), strict=True))
        scored = [{"index": row["index"], **_scores(row, vectors)} for row in rows]
        return pa.Table.from_pylist(scored, schema=SCORED)


def teacher_of(recipe: Recipe) -> TextEncoder:
    """The encoder that judges: the gates' own, or mining's, or the backbone."""
    # loads torch, and drivers and other actors import this file
    from qzhou.encoder import load_teacher

    spec = recipe.synthesis.gates.teacher or recipe.mining.teacher
    return load_teacher(spec, recipe.model, api_key_env=recipe.mining.teacher_api_key_env)


def _scores(row: dict[str, Any], vectors: dict[str, np.ndarray]) -> dict[str, float | None]:
    def cosine(first: str, second: str) -> float | None:
        if first not in row or second not in row:
            return None
        return float(vectors[row[first]] @ vectors[row[second]])

    rewrites = [
        found
        for side in ("query", "positive")
        if (found := cosine(side, f"old_{side}")) is not None
    ]
    return {
        "rewrite": min(rewrites, default=None),
        "positive": cosine("query", "positive"),
        "negative": cosine("query", "negative"),
        "negative_of": cosine("query", "better"),
    }
