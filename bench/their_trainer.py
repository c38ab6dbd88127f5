"""The trainer of sentence-transformers on the rows that a run of ours trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.training_args import BatchSamplers, MultiDatasetBatchSamplers
from torch import nn

from qzhou.config.recipe import Recipe
from qzhou.data.records import EXAMPLE_TYPES, LabeledExample, PairExample, RetrievalExample, Task
from qzhou.data.storage import read_records
from qzhou.run.models import resolve
from qzhou.run.run import Run

Arguments = Mapping[str, Any]


def rows_of(recipe: Recipe, task: Task) -> DatasetDict:
    """What mining left of each dataset of a task, as the columns that their losses take.

    Queries without negatives are a dataset of their own, since all rows of one have the same
    columns.
    """
    found: dict[str, Dataset] = {}
    for dataset in recipe.trained_datasets:
        folder = Run.at(recipe).folder / "mining" / "examples" / task / dataset.name
        examples = read_records(folder, EXAMPLE_TYPES[task]) if folder.exists() else []
        rows = [row for one in examples for row in _columns(one)]
        bare = [row for row in rows if "query" in row and "negative" not in row]
        others = [row for row in rows if "query" not in row or "negative" in row]
        for name, some in ((dataset.name, others), (f"{dataset.name} without negatives", bare)):
            if some:
                found[name] = Dataset.from_list(some)
    if task == "classification":
        for name, rows in found.items():
            numbers = {label: number for number, label in enumerate(sorted(set(rows["label"])))}
            found[name] = rows.map(lambda row, known=numbers: {"label": known[row["label"]]})
    return DatasetDict(found)


def _columns(example: RetrievalExample | PairExample | LabeledExample) -> Iterator[dict[str, Any]]:
    if isinstance(example, PairExample):
        yield {"text_a": example.text_a, "text_b": example.text_b, "score": example.score}
    elif isinstance(example, LabeledExample):
        yield {"text": example.text, "label": example.label}
    else:
        for number, positive in enumerate(example.positives):
            row = {"query": example.query, "positive": positive}
            negatives = example.negatives
            yield row | ({"negative": negatives[number % len(negatives)].text} if negatives else {})


def train(recipe: Recipe, rows: DatasetDict, losses: Any, threads: int, arguments: Arguments, made: Path) -> None:
    """Their trainer on some rows from the recipe's backbone; writes its model to ``made``.

    ``losses`` makes the loss, or one for each dataset, of a model.
    """
    torch.set_num_threads(threads)
    model = SentenceTransformer(resolve(recipe.model.backbone), device="cpu")
    model.max_seq_length = recipe.model.max_document_tokens
    loss: nn.Module | dict[str, nn.Module] = losses(model)
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "batch_sampler": BatchSamplers.NO_DUPLICATES,
            "multi_dataset_batch_sampler": MultiDatasetBatchSamplers.PROPORTIONAL,
            **arguments,
        }
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                seed=recipe.training_seed,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                **own,
            ),
            train_dataset=rows,
            loss=loss,
        )
        trainer.train()
    model.save(f"{made}.unfinished")
    Path(f"{made}.unfinished").rename(made)  # a job that is killed leaves no half model
