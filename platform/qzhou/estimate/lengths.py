"""How long the texts of a run are: counted in a sample of its examples where it has some, else assumed."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.records import EXAMPLE_TYPES, Example, LabeledExample, PairExample, RetrievalExample
from qzhou.data.storage import Folder, count_rows, from_row
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.training import DatasetTexts, EncodedTexts
from qzhou.run.files import MANIFEST, MINING, TRANSFORM
from qzhou.run.models import model_file, resolve
from qzhou.run.run import Run

# 256 queries and 1,280 documents of these lengths: the 266,000 tokens of a step of the paper
QUERY_TOKENS, DOCUMENT_TOKENS = 40.0, 200.0
SAMPLED_FILES, SAMPLED_ROWS = 4, 256  # of each dataset
# a guess, for where the tokenizer is not on this machine
CHARS_PER_TOKEN, TOKENS_PER_WIDE_CHAR = 4.0, 0.8
WIDE = re.compile("[぀-ヿ㐀-鿿가-힯]")

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class RunTexts:
    """The texts of a run's datasets, and a clause that says how their lengths are known."""

    datasets: list[DatasetTexts]
    source: str


def texts_of(recipe: Recipe, options: PlanOptions) -> RunTexts:
    """The texts that training encodes, by dataset; the options' mean lengths override them.

    They are sampled from the output of mining, else from that of the transform, if the run
    lies in a folder of this machine. Remote storage is left out: it may take a minute to
    answer.
    """
    query_tokens, document_tokens = options.mean_query_tokens, options.mean_document_tokens
    found = _sampled(recipe)
    if found is None:
        query_tokens = query_tokens or QUERY_TOKENS
        document_tokens = document_tokens or DOCUMENT_TOKENS
        is_remote = "://" in recipe.run.storage
        why = "remote storage is not looked into" if is_remote else "the run has no examples yet"
        sentence = _sentence(recipe, query_tokens, document_tokens)
        negatives = float(recipe.training.negatives_per_query)
        unknown = [
            DatasetTexts(name=one.name, task=one.task, negatives=negatives) for one in recipe.trained_datasets
        ]
        found = RunTexts(unknown, f"ASSUMED ({why}): {sentence}, datasets of a kind equally large")
    elif given := _sentence(recipe, query_tokens, document_tokens):
        found = RunTexts(found.datasets, f"{found.source}; but by the command line {given}")
    texts = [_replaced(recipe, one, query_tokens, document_tokens) for one in found.datasets]
    return RunTexts(texts, found.source)


def lengths_for(
    recipe: Recipe, known: Sequence[DatasetTexts], others: Sequence[DatasetTexts] = ()
) -> dict[str, DatasetTexts]:
    """Dataset of a recipe -> its known texts, else those of a dataset of the same task.

    ``others`` stand in where no known dataset has the task.
    """
    found = {}
    for dataset in recipe.datasets:
        like = [one for one in known if one.task == dataset.task]
        like = like or [one for one in others if one.task == dataset.task]
        own = next((one for one in (*known, *like) if one.name == dataset.name), None)
        if own or like:
            found[dataset.name] = dataclasses.replace(own or like[-1], name=dataset.name)
    return found


def _sentence(recipe: Recipe, query_tokens: float | None, document_tokens: float | None) -> str:
    model, parts = recipe.model, []
    if query_tokens:
        parts.append(f"{min(query_tokens, model.max_query_tokens):g} tokens a query")
        parts.append(f"{min(query_tokens, model.max_document_tokens):g} a text of a pair")
    if document_tokens:
        tokens = min(document_tokens, model.max_document_tokens)
        parts.append(f"{tokens:g} a document or classified text")
    return ", ".join(parts) + (", prompts included" if parts else "")


def _replaced(
    recipe: Recipe, texts: DatasetTexts, query_tokens: float | None, document_tokens: float | None
) -> DatasetTexts:
    """Texts of other lengths; those of pairs, mostly sentences, are as long as queries."""
    model, query, document = recipe.model, texts.query, texts.document
    if query_tokens is not None:
        query = EncodedTexts.one(min(query_tokens, model.max_query_tokens))
    tokens = query_tokens if texts.task == "pair" else document_tokens
    if tokens is not None:
        document = EncodedTexts.one(min(tokens, model.max_document_tokens))
    return dataclasses.replace(texts, query=query, document=document)


def _sampled(recipe: Recipe) -> RunTexts | None:
    """The run's own examples, with negatives once mining has finished; None without any."""
    if "://" in recipe.run.storage:
        return None
    run = Run.at(recipe).folder
    finished = [one for one in (MINING, TRANSFORM) if run.exists(f"{one}/{MANIFEST}")]
    if not finished:
        return None
    stage = run / finished[0]
    count_tokens, how = _tokenizer(recipe.model.backbone)
    texts = []
    for dataset in recipe.trained_datasets:
        folder = stage / "examples" / dataset.task / dataset.name
        if sample := _sample(folder, EXAMPLE_TYPES[dataset.task]):
            texts.append(_texts(recipe, dataset, sample, count_rows(folder), count_tokens))
    source = f"counted in {SAMPLED_ROWS} examples of each dataset in {stage.uri}, {how}"
    return RunTexts(texts, source) if texts else None


def _texts(
    recipe: Recipe, dataset: Dataset, sample: Sequence[Example], rows: int, count_tokens: CountTokens
) -> DatasetTexts:
    queries: list[str] = []
    documents: list[str] = []
    most = recipe.training.negatives_per_query
    found_negatives = 0
    for one in sample:
        if isinstance(one, RetrievalExample):
            negatives = one.negatives[:most]
            found_negatives += len(negatives)
            queries.append(dataset.prompt.with_instruction(one.instruction).query(one.query))
            documents += [one.positives[0], *(negative.text for negative in negatives)]
        elif isinstance(one, PairExample):
            queries.append(dataset.prompt.query(one.text_a))
            documents.append(one.text_b)
        elif isinstance(one, LabeledExample):
            documents.append(one.text)
    query_tokens = count_tokens(queries)
    document_tokens = count_tokens([dataset.prompt.document(text) for text in documents])
    if dataset.task == "pair":  # both sides count alike
        query_tokens, document_tokens = [], query_tokens + document_tokens
    most_query, most_document = recipe.model.max_query_tokens, recipe.model.max_document_tokens
    return DatasetTexts(
        name=dataset.name,
        task=dataset.task,
        rows=rows,
        query=EncodedTexts.mean([min(one, most_query) for one in query_tokens]),
        document=EncodedTexts.mean([min(one, most_document) for one in document_tokens]),
        # before mining no example has negatives, and each will get all that training asks for
        negatives=found_negatives / len(sample) if found_negatives else float(most),
    )


def _sample(folder: Folder, record_type: type[Example]) -> list[Example]:
    """The first rows of some files."""
    names = folder.files(".parquet")
    chosen = names[:: max(1, len(names) // SAMPLED_FILES)][:SAMPLED_FILES]
    found: list[Example] = []
    for name in chosen:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as stream:
            batches = pq.ParquetFile(stream).iter_batches(batch_size=SAMPLED_ROWS // len(chosen))
            if first := next(batches, None):
                found += [from_row(record_type, row) for row in first.to_pylist()]
    return found


def _tokenizer(backbone: str) -> tuple[CountTokens, str]:
    """A function that counts tokens, and a clause that says how: by the backbone's tokenizer if it is here."""
    file = model_file(resolve(backbone), "tokenizer.json")
    if file is None or not file.exists():
        return _guessed, "guessed from characters: its tokenizer is not here"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in tokenizer.encode_batch(list(texts))]

    return count_tokens, "by the backbone's tokenizer"


def _guessed(texts: Sequence[str]) -> list[int]:
    counts = [(len(text), len(WIDE.findall(text))) for text in texts]
    tokens = [(chars - wide) / CHARS_PER_TOKEN + wide * TOKENS_PER_WIDE_CHAR for chars, wide in counts]
    return [max(1, round(one)) for one in tokens]
