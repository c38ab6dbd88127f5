"""The recipe as text: TOML with a comment beside every line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.cli.init.machine import Sizes
from qzhou.cli.init.sources import Source

COMMENTS: Mapping[str, str] = {
    "name": "of its folders and of its evaluation task",
    "reader": "how its files are read",
    "rule": "what a row becomes",
    "paths": "files, folders or patterns",
    "columns": "field of the rule = column of the file",
    "encoding": "found in the files",
    "delimiter": "between columns",
    "quote": "quotes mean nothing in this file",
    "header": "whether the first line names the columns",
    "records": "where the rows are in the JSON document",
    "labels": "label of the file = one that is known",
    "split_by": "rows that share it are on one side of the split",
    "eval_fraction": "share that is kept for judging and never trained on",
    "chunk_tokens": "longer texts are cut into pieces of so many",
    "chunk_column": "the column that is cut",
    "min_positive_chars": "shorter pieces are left out",
    "max_columns": "the last column takes the rest of the line",
    "queries": "the texts that are asked with",
    "corpus": "the texts that are searched",
}
WIDTH = 58  # of a line before its comment


def recipe_text(name: str, sources: Sequence[Source], sizes: Sizes, synthesis: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        name: Of the run.
        sources: The datasets.
        sizes: Of model and training.
        synthesis: The table [synthesis]; empty: no language model is asked.
    """
    parts = [
        _table("run", {"name": name, "seed": 0}, {"name": "results go to runs/" + name, "seed": "of every draw"}),
        _table(
            "model",
            {
                "backbone": sizes.backbone,
                "max_query_tokens": sizes.query_tokens,
                "max_document_tokens": sizes.document_tokens,
            },
            {
                "backbone": "the model that is trained further",
                "max_query_tokens": "longer queries are cut",
                "max_document_tokens": "longer documents are cut",
            },
        ),
        *(_table("[datasets]", one.dataset, COMMENTS) for one in sources),
    ]
    if synthesis:
        comments = {
            "endpoint": "of a language model, with OpenAI's API",
            "model": "its name there",
            "query_rows": "pieces of documents that get a query",
        }
        parts.append(_table("synthesis", synthesis, comments))
    parts.append(_table("mining", {"negatives_per_query": 2}, {"negatives_per_query": "found for each query"}))
    parts.append(
        _table("training", {"negatives_per_query": 1}, {"negatives_per_query": "drawn of those for a step"})
    )
    for stage, steps, rate in (
        ("stage1", sizes.stage1_steps, sizes.learning_rate),
        ("stage2", sizes.stage2_steps, sizes.learning_rate * 0.4),
    ):
        trains_on = "retrieval alone" if stage == "stage1" else "everything"
        values = {"steps": steps, "learning_rate": float(f"{rate:.1e}"), "batch_size": sizes.batch_size}
        comments = {
            "steps": f"on {trains_on}" if steps else "left out: no dataset is for retrieval",
            "learning_rate": "the highest",
            "batch_size": "examples a step",
        }
        parts.append(_table(f"training.{stage}", values, comments))
    return "\n".join(parts)


def _table(place: str, values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    lines = [f"[{place}]"]
    for key, value in values.items():
        line = f"{key} = {_value(value)}"
        comment = comments.get(key)
        lines.append(f"{line:<{WIDTH}} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name, ensure_ascii=False)
