"""How long a run's texts are: counted in a sample of its own examples where there are some, else assumed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.costs.shapes import hub_file
from qzhou.costs.training import DatasetTexts, Length
from qzhou.data.records import EXAMPLE_TYPES, Example, LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import Folder, count_rows, from_row
from qzhou.errors import RecipeError
from qzhou.run.models import resolve
from qzhou.run.run import MANIFEST, Run

# 256 queries and 1,280 documents: 266,000 tokens a step of the paper's
QUERY_TOKENS, DOCUMENT_TOKENS = 40.0, 200.0
SAMPLED_FILES, SAMPLED_ROWS = 4, 256  # of each dataset
# a guess, for where the tokenizer is not on this machine
CHARS_PER_TOKEN, TOKENS_PER_WIDE_CHAR = 4.0, 0.8
WIDE = re.compile("[぀-ヿ㐀-鿿가-힯]")

Counter = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class FoundTexts:
    """What is known of a run's texts, and a sentence that says where it is from."""

    datasets: list[DatasetTexts]
    source: str


def texts_of(
    recipe: Recipe, *, query_tokens: float | None, document_tokens: float | None
) -> FoundTexts:
    """The texts that training encodes, by dataset.

    What mining has left is looked at, else what the transform has, if the run lies in a folder of this machine: a
    remote storage may take a minute to say that it is not there.

    Args:
        query_tokens: Mean length of queries and of the texts of pairs, instead of what is found or assumed.
        document_tokens: Mean length of documents and classified texts.

    Raises:
        RecipeError: A length is not above 0.
    """
    for flag, tokens in (
        ("--mean-query-tokens", query_tokens),
        ("--mean-document-tokens", document_tokens),
    ):
        if tokens is not None and not 0 < tokens < float("inf"):
            raise RecipeError(
                f"command line: {flag} is {tokens:g}; it is a number of tokens above 0"
            )
    found = _measured(recipe)
    if found is None:
        assumed = (query_tokens or QUERY_TOKENS, document_tokens or DOCUMENT_TOKENS)
        texts = [
            _with_lengths(recipe, _unknown(recipe, dataset), *assumed)
            for dataset in recipe.trained_datasets
        ]
        where = (
            "remote storage is not looked into"
            if "://" in recipe.run.storage
            else "the run has no examples yet"
        )
        return FoundTexts(
            texts,
            f"ASSUMED ({where}): {_sentence(recipe, *assumed)}, datasets of a kind equally large",
        )
    texts = [_with_lengths(recipe, one, query_tokens, document_tokens) for one in found.datasets]
    told = _sentence(recipe, query_tokens, document_tokens)
    return FoundTexts(texts, f"{found.source}{f'; but by the command line {told}' if told else ''}")


def _sentence(recipe: Recipe, query_tokens: float | None, document_tokens: float | None) -> str:
    model, told = recipe.model, []
    if query_tokens:
        told.append(f"{min(query_tokens, model.max_query_tokens):g} tokens a query")
        told.append(f"{min(query_tokens, model.max_document_tokens):g} a text of a pair")
    if document_tokens:
        told.append(
            f"{min(document_tokens, model.max_document_tokens):g} a document or classified text"
        )
    return ", ".join(told) + (", prompts included" if told else "")


def _unknown(recipe: Recipe, dataset: Dataset) -> DatasetTexts:
    nothing = Length.always(0)
    negatives = float(recipe.training.negatives_per_query)
    return DatasetTexts(
        name=dataset.name,
        task=dataset.task,
        rows=None,
        queries=nothing,
        documents=nothing,
        negatives=negatives,
    )


def _with_lengths(
    recipe: Recipe, texts: DatasetTexts, query_tokens: float | None, document_tokens: float | None
) -> DatasetTexts:
    """Lengths replaced by those that are told. Pairs are mostly sentences, as queries are."""
    most = recipe.model.max_document_tokens
    if query_tokens is not None:
        texts = dataclasses.replace(
            texts, queries=Length.always(min(query_tokens, recipe.model.max_query_tokens))
        )
    told = query_tokens if texts.task == "pair" else document_tokens
    return (
        texts
        if told is None
        else dataclasses.replace(texts, documents=Length.always(min(told, most)))
    )


def _measured(recipe: Recipe) -> FoundTexts | None:
    """The run's own examples, those with negatives if mining has finished."""
    if "://" in recipe.run.storage:
        return None
    run = Run.at(recipe).folder
    stage = next(
        (name for name in ("mining", "transform") if run.exists(f"{name}/{MANIFEST}")), None
    )
    if stage is None:
        return None
    counter, how = _counter(recipe.model.backbone)
    found = (
        _texts(recipe, dataset, run / stage / "examples" / dataset.task / dataset.name, counter)
        for dataset in recipe.trained_datasets
    )
    texts = [one for one in found if one is not None]
    source = f"counted in {SAMPLED_ROWS} examples of each dataset in {(run / stage).uri}, {how}"
    return FoundTexts(texts, source) if texts else None


def _texts(
    recipe: Recipe, dataset: Dataset, folder: Folder, counter: Counter
) -> DatasetTexts | None:
    """One dataset from a sample of its examples; None if it has none."""
    sample = _sample(folder, EXAMPLE_TYPES[dataset.task])
    if not sample:
        return None
    queries: list[str] = []
    documents: list[str] = []
    most = recipe.training.negatives_per_query
    negatives = float(most)
    mined = [one for one in sample if isinstance(one, RetrievalExample)]
    if any(one.negatives for one in mined):
        negatives = sum(min(most, len(one.negatives)) for one in mined) / len(mined)
    for one in sample:
        if isinstance(one, RetrievalExample):
            queries.append(one.query)
            documents += [one.positives[0], *(negative.text for negative in one.negatives[:most])]
        elif isinstance(one, PairExample):
            queries.append(one.text_a)
            documents.append(one.text_b)
        elif isinstance(one, LabeledExample):
            documents.append(one.text)
    limits = recipe.model.max_query_tokens, recipe.model.max_document_tokens
    asking = counter([dataset.prompt.query(text) for text in queries])
    answering = counter([dataset.prompt.document(text) for text in documents])
    if dataset.task == "pair":  # both sides count alike
        asking, answering = [], asking + answering
    return DatasetTexts(
        name=dataset.name,
        task=dataset.task,
        rows=count_rows(folder),
        queries=Length.of([min(one, limits[0]) for one in asking]) if asking else Length.always(0),
        documents=Length.of([min(one, limits[1]) for one in answering]),
        negatives=negatives,
    )


def _sample(folder: Folder, record_type: type[Example]) -> list[Example]:
    """The first rows of some files."""
    names = folder.files(".parquet")
    chosen = names[:: max(1, len(names) // SAMPLED_FILES)][:SAMPLED_FILES]
    found: list[Example] = []
    for name in chosen:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
            for batch in pq.ParquetFile(stream).iter_batches(
                batch_size=SAMPLED_ROWS // len(chosen)
            ):
                found += [from_row(record_type, row) for row in batch.to_pylist()]
                break
    return found


def _counter(backbone: str) -> tuple[Counter, str]:
    """Counts the tokens of texts by the backbone's own tokenizer, if it is here, and says so."""
    place = resolve(backbone)
    file = (
        Path(place) / "tokenizer.json"
        if Path(place).is_dir()
        else hub_file(place, "tokenizer.json")
    )
    if file is None or not file.exists():
        return lambda texts: [
            _guessed(text) for text in texts
        ], "guessed from characters: its tokenizer is not here"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [
        len(one.ids) for one in tokenizer.encode_batch(list(texts))
    ], "by the backbone's tokenizer"


def _guessed(text: str) -> int:
    wide = len(WIDE.findall(text))
    return max(1, round((len(text) - wide) / CHARS_PER_TOKEN + wide * TOKENS_PER_WIDE_CHAR))
