"""The recipe as text: TOML with a comment beside every line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.cli.init.machine import Sizes
from qzhou.cli.init.sources import Source
from qzhou.data.records import PairExample

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
    "allow_overlap": "rows may share one text with rows to judge by; whole pairs and queries never",
    "cosent_batch_size": "pairs a step",
    "eval_fraction": "share that is kept for judging and never trained on",
    "chunk_tokens": "longer texts are cut into pieces of so many",
    "chunk_column": "the column that is cut",
    "min_positive_chars": "shorter pieces are left out",
    "max_columns": "the last column takes the rest of the line",
    "queries": "the texts that are asked with",
    "corpus": "the texts that are searched",
    "learning_rate": "the highest",
    "batch_size": "examples a step",
}
OWN_COMMENTS: Mapping[str, Mapping[str, str]] = {
    "run": {"name": "results go to runs/NAME", "seed": "of every draw"},
    "model": {
        "backbone": "the model that is trained further",
        "max_query_tokens": "longer queries are cut",
        "max_document_tokens": "longer documents are cut",
    },
    "synthesis": {
        "endpoint": "of a language model, with OpenAI's API",
        "model": "its name there",
        "query_rows": "pieces of documents that get a query",
    },
    "mining": {"negatives_per_query": "found for each query"},
    "training": {
        "negatives_per_query": "drawn of those for a step",
        "temperature": "at which this backbone was trained",
    },
    "training.loss": {"false_negative_margin": "texts above the positive are answers, too"},
    "training.stage1": {"steps": "on retrieval alone; 0 leaves the stage out"},
    "training.stage2": {"steps": "on everything"},
}
SECOND_RATE = 0.4  # of stage 1's learning rate
MINILM_TEMPERATURE = 0.05
WIDTH = 58  # of a line before its comment


def recipe_text(name: str, sources: Sequence[Source], sizes: Sizes, synthesis: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        name: Of the run.
        sources: The datasets.
        sizes: Of model and training.
        synthesis: The table [synthesis]; empty: no language model is asked.
    """
    model = {
        "backbone": sizes.backbone,
        "max_query_tokens": sizes.query_tokens,
        "max_document_tokens": sizes.document_tokens,
    }
    tables = [
        ("run", {"name": name, "seed": 0}),
        ("model", model),
        *(("[datasets]", one.dataset) for one in sources),
        *([("synthesis", synthesis)] if synthesis else []),
        ("mining", {"negatives_per_query": 2}),
        ("training", _training(sizes)),
        *([("training.loss", {"false_negative_margin": 0.0})] if _is_one_collection(sources) else []),
        ("training.stage1", _stage(sizes, sizes.stage1_steps, sizes.learning_rate)),
        (
            "training.stage2",
            _stage(sizes, sizes.stage2_steps, sizes.learning_rate * SECOND_RATE) | _pairs(sources, sizes),
        ),
    ]
    return "\n".join(_table(place, values) for place, values in tables)


def _training(sizes: Sizes) -> dict[str, Any]:
    own = {"temperature": MINILM_TEMPERATURE} if "minilm" in sizes.backbone.lower() else {}
    return {"negatives_per_query": 1, **own}


def _stage(sizes: Sizes, steps: int, rate: float) -> dict[str, Any]:
    return {"steps": steps, "learning_rate": float(f"{rate:.1e}"), "batch_size": sizes.batch_size}


def _pairs(sources: Sequence[Source], sizes: Sizes) -> dict[str, Any]:
    """As many pairs a step as other examples; the default is of a cluster."""
    has_pairs = any(isinstance(example, PairExample) for one in sources for example in one.examples)
    return {"cosent_batch_size": sizes.batch_size} if has_pairs else {}


def _is_one_collection(sources: Sequence[Source]) -> bool:
    """Whether texts are pieces of the same documents, of which several answer a query."""
    return any(one.dataset["rule"] == "documents" for one in sources)


def _table(place: str, values: Mapping[str, Any]) -> str:
    comments = {**COMMENTS, **OWN_COMMENTS.get(place, {})}
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
