"""A new model whose vectors are turned into an old model's space: its queries search an index that the old one made.

Shape letters in this file: N texts, Q queries, M documents, D width of the new model, E of the
old one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qzhou.data.prompts import Prompt, declared_prompt
from qzhou.data.storage import Folder
from qzhou.encoder import Encoder, load_encoder
from qzhou.encoder.backbone import EmbeddingModel, load_backbone, load_config
from qzhou.encoder.export import checked_parity, save_sentence_transformer
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import DataError
from qzhou.run.models import find_model, local_model, weights_fingerprint
from qzhou.run.publishing import new_folder, publish
from qzhou.serving.batch_embed import MAX_TOKENS
from qzhou.serving.batch_texts import TEXT, TextInput
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

ADAPTER_FILE = "adapter.json"
DOCUMENTS, QUERIES = 20_000, 5_000  # read at the most
MEASURED_QUERIES, FEWEST_QUERIES = 1_000, 10
RANKS = 10
PARTS = 64  # of an input, among which its sample is spread
TEXTS_AT_ONCE = 256
WITHIN_95 = 1.96  # standard errors

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over queries, and how far it is from sure.

    Attributes:
        mean: Of the documents that the new model ranks first among its own vectors, the share that is found.
        within: Half the width of its 95 % interval.
    """

    mean: float
    within: float

    @classmethod
    def of(cls, value_Q: Floats) -> Share:
        """The mean of some values, at least two."""
        within = WITHIN_95 * float(np.std(value_Q, ddof=1)) / math.sqrt(len(value_Q))
        return cls(round(float(value_Q.mean()), 4), round(within, 4))

    def __str__(self) -> str:
        return f"{self.mean:.1%} (95 %: +- {self.within:.1%})"


@dataclass(frozen=True, slots=True)
class Side:
    """One model's unit vectors of the same texts as the other's."""

    query_QD: Floats
    document_MD: Floats


def adapt(new: str, old: str, documents: TextInput, queries: TextInput, into: str) -> dict[str, Share]:
    """Write the new model with a layer that turns its vectors into the old one's space.

    The layer is fitted on a sample of texts that both models encode. How well an old index
    is searched with it is measured on documents and queries on which it was not fitted; the
    written layer is then fitted on all.

    Args:
        new: Folder, URI, hub id or run.
        old: The model that made the index.
        documents: Some of what the index holds.
        queries: Some that people ask.
        into: New folder, local or a URI, of a model as sentence-transformers has them.

    Returns: ``adapted`` and ``old``: what the adapted model and the old one find in the old index, as a
        share of what the new model would find in an index of its own.

    Raises:
        DataError: There are too few texts to fit a layer or to measure it.
        ModelError: A model cannot be loaded.
        StorageError: ``into`` holds something, or cannot be written.
        TrainingError: SentenceTransformer gives other vectors than our encoder.
    """
    target = new_folder(into, flag="--into", create=True)
    asked, answers = sampled(queries, QUERIES), sampled(documents, DOCUMENTS)
    sides = [_encoded(name, asked, answers) for name in (new, old)]
    try:
        _refuse_few(sides, documents, queries)
    except DataError:
        target.delete()  # it was empty
        raise
    shares = measured(*sides)
    line = (
        f"adapt: among {len(answers) // 2:,} documents, of the first {RANKS} in an index of its own the new model "
        f"finds {shares['adapted']} in the old one's index; the old model finds {shares['old']}"
    )
    log_event(line, "measured", adapted=shares["adapted"].mean, old=shares["old"].mean)
    turn_DE = orthogonal_map(*(np.concatenate([one.query_QD, one.document_MD]) for one in sides))
    lowest = _write(new, old, turn_DE, target, {"queries": len(asked), "documents": len(answers)}, shares)
    line = f"adapt: {target.uri}: SentenceTransformer and the encoder agree (lowest cosine {lowest:.6f})"
    log_event(line, "adapted", lowest_cosine=lowest)
    return shares


def orthogonal_map(new_ND: Floats, old_NE: Floats) -> Floats:
    """The map [D, E] that turns new vectors nearest to the old ones and stretches none: W of the least |new W - old|.

    W has orthonormal rows (D <= E) or columns (D > E).

    Source: Schoenemann, A generalized solution of the orthogonal Procrustes problem (Psychometrika, 1966); for
        queries of an upgraded embedding model: Drift-Adapter (arXiv:2509.23471).
    """
    left, _, right = np.linalg.svd(new_ND.astype(np.float64).T @ old_NE, full_matrices=False)
    return np.asarray(left @ right, dtype=np.float32)


def measured(new: Side, old: Side) -> dict[str, Share]:
    """Fit on every second document and most queries; search the other documents with the other queries."""
    step = max(5, len(new.query_QD) // MEASURED_QUERIES)
    is_left_out = np.arange(len(new.query_QD)) % step == 0
    fitted = [np.concatenate([one.query_QD[~is_left_out], one.document_MD[::2]]) for one in (new, old)]
    turn_DE = orthogonal_map(*fitted)
    new_QD, old_QE = new.query_QD[is_left_out], old.query_QD[is_left_out]
    wanted_QK = _first(new_QD, new.document_MD[1::2])
    found = {"adapted": new_QD @ turn_DE, "old": old_QE}
    return {name: Share.of(_overlap(wanted_QK, _first(one, old.document_MD[1::2]))) for name, one in found.items()}


def _first(query_QD: Floats, document_MD: Floats) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of the documents that rank first [Q, K]."""
    score_QM = query_QD @ document_MD.T
    return np.argsort(-score_QM, axis=1, kind="stable")[:, :RANKS]


def _overlap(wanted_QK: Any, found_QK: Any) -> Floats:
    """The share of each query's wanted documents that are found [Q]."""
    return np.asarray((wanted_QK[:, :, None] == found_QK[:, None, :]).any(2).mean(1), dtype=np.float32)


def sampled(texts: TextInput, most: int) -> list[str]:
    """Different texts that are not empty, drawn from all over an input.

    Of an input of many parts as many are read as it takes, spread over all of them; each
    is read whole, and of what is read each text is as likely (reservoir sampling, Vitter,
    1985).
    """
    parts = texts.parts()
    stride = max(1, len(parts) // PARTS)
    first = parts[::stride]
    generator = np.random.default_rng(0)
    found: dict[str, None] = {}
    kept: list[str] = []
    for number, part in enumerate([*first, *(part for place, part in enumerate(parts) if place % stride)]):
        if number >= len(first) and len(kept) >= most:
            break
        for block in texts.blocks(part):
            for text in block.column(TEXT).to_pylist():
                if not text or not text.strip() or text in found:
                    continue
                found[text] = None
                if len(kept) < most:
                    kept.append(text)
                elif (place := int(generator.integers(len(found)))) < most:
                    kept[place] = text
    return kept


def _encoded(name: str, queries: Sequence[str], documents: Sequence[str]) -> Side:
    """Both kinds of texts by a model, each with the model's own prompt."""
    with local_model(find_model(name)) as place:
        encoder = load_encoder(place, max_tokens=_max_tokens(place))
        prompt = declared_prompt(encoder.prompts or {}) or Prompt()
        texts = [prompt.query(text) for text in queries] + [prompt.document(text) for text in documents]
        vector_ND = _vectors(encoder, name, texts)
    return Side(vector_ND[: len(queries)], vector_ND[len(queries) :])


def _vectors(encoder: Encoder, name: str, texts: Sequence[str]) -> Floats:
    parts = []
    with progress(f"adapt: {name}", total=len(texts), unit="texts") as bar:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            parts.append(encoder.encode(texts[start : start + TEXTS_AT_ONCE]))
            bar.advance(len(parts[-1]))
    return np.concatenate([np.empty((0, encoder.dimensions), np.float32), *parts])


def _refuse_few(sides: Sequence[Side], documents: TextInput, queries: TextInput) -> None:
    """A map of D by E numbers needs as many texts as the wider model has dimensions."""
    query_QD, document_MD = sides[0].query_QD, sides[0].document_MD
    if len(query_QD) < FEWEST_QUERIES:
        raise DataError(
            f"{queries.folder.uri} gives {len(query_QD)} different queries, and it takes {FEWEST_QUERIES} to measure "
            "what an adapter is worth; name more (--queries)"
        )
    needed = 2 * max(one.document_MD.shape[1] for one in sides)
    if len(document_MD) < needed:
        raise DataError(
            f"{documents.folder.uri} gives {len(document_MD)} different documents, and it takes {needed} to fit an "
            "adapter on a half: one for each dimension; name more (--documents)"
        )


def _write(
    new: str, old: str, turn_DE: Floats, target: Folder, counts: dict[str, int], shares: dict[str, Share]
) -> float:
    """The lowest cosine of the check, after writing the model with its further layer."""
    with local_model(find_model(new)) as place, tempfile.TemporaryDirectory() as temporary:
        folder, saved = Path(temporary), getattr(load_config(place), "dtype", None)
        dtype = getattr(torch, saved) if isinstance(saved, str) else saved or torch.float32
        found = load_backbone(place, dtype=dtype)
        width, old_width = turn_DE.shape
        layer = nn.Linear(width, old_width, bias=False, dtype=dtype)
        layer.load_state_dict({"weight": torch.from_numpy(turn_DE.T.copy()).to(dtype)})
        dense = [*found.model.dense, nn.Sequential(layer, nn.Identity())]
        model = EmbeddingModel(found.model.backbone, found.model.pooling, dense)
        # the first numbers of a turned vector are no vector of fewer dimensions
        model.backbone.config.matryoshka_dimensions = None
        max_tokens, prompts = _max_tokens(place), found.prompts or {}
        save_sentence_transformer(model, found.tokenizer, folder, max_tokens=max_tokens, prompts=prompts)
        del found, model  # the check loads it again
        lowest = checked_parity(folder, name="the adapted model", max_tokens=max_tokens)
        content = {
            "new": new,
            "old": old,
            "weights_fingerprints": [weights_fingerprint(find_model(name)) for name in (new, old)],
            **counts,
            "found": {name: asdict(share) for name, share in shares.items()},
        }
        Folder.open(str(folder)).write_json(ADAPTER_FILE, content)
        publish(folder, target)
    return lowest


def _max_tokens(place: str) -> int:
    return read_metadata(place).max_tokens or MAX_TOKENS
