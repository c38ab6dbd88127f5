"""A run's datasets: requests about each, and the file of new records. No ray in here."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from qzhou.data.records import (
    EXAMPLE_TYPES,
    TASKS,
    Document,
    Drop,
    Example,
    RetrievalExample,
    Task,
    normalized_text,
)
from qzhou.data.storage import Folder, count_rows, read_records, read_table, table_of, write_records, write_table
from qzhou.run.files import HELD_OUT_DOCUMENTS
from qzhou.run.run import Run
from qzhou.synthesis.generation import (
    SynthesisResult,
    asked_texts,
    corpus_requests,
    dropped_record,
    example_requests,
    merge,
)
from qzhou.synthesis.parsing import SeedExample
from qzhou.synthesis.report import Report
from qzhou.synthesis.techniques import SynthesisRequest
from qzhou.telemetry.events import log_event

NEW_EXAMPLES = "written-by-llm.parquet"  # after the files of the transform, which begin with "part"
SHORTEST_BODY = 40  # characters; shorter ones say the same by chance
REQUESTS_PER_GROUP = 100_000  # in the driver's memory at a time, with their answers


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequests:
    """A dataset and the requests about it; its examples stay on disk."""

    task: Task
    name: str
    requests: tuple[SynthesisRequest, ...] = ()
    documents: tuple[Document, ...] = ()
    held_out: frozenset[str] = frozenset()  # ids of those documents whose queries are for evaluation


def dataset_requests(run: Run) -> Iterator[DatasetRequests]:
    """Every dataset that has examples, or a corpus that gets queries."""
    settings, transform = run.recipe.synthesis, run.folder / "transform"
    for task in TASKS:
        names = (transform / "examples" / task).folders()
        wants_queries = task == "retrieval" and settings.is_on and settings.query_rows
        corpora = (transform / "corpora").folders() if wants_queries else []
        held_out = held_out_texts(run).documents if corpora else frozenset()
        for name in dict.fromkeys([*names, *corpora]):
            if settings.is_on and (not settings.datasets or name in settings.datasets):
                yield _requests(run, task, name, held_out if name in corpora else None)
            else:
                yield DatasetRequests(task=task, name=name)


def _requests(run: Run, task: Task, name: str, held_out: frozenset[str] | None) -> DatasetRequests:
    """The requests about one dataset; ``held_out`` is of its corpus, None where no queries are written for one."""
    settings, seed = run.recipe.synthesis, run.recipe.run.seed
    limit = settings.max_dataset_rows
    examples = list(islice(_examples(run, task, name), limit + 1))
    if len(examples) > limit:
        line = f"synthesis: {name} has more rows than synthesis.max_dataset_rows ({limit:,}) and is left alone"
        log_event(line, "dataset_left_alone", dataset=name)
        return DatasetRequests(task=task, name=name)
    requests = example_requests(examples, task, settings, seed=seed)
    if held_out is None:
        return DatasetRequests(task=task, name=name, requests=requests)
    corpus = _documents_to_ask_for(run, name, held_out)
    max_tokens = run.recipe.model.max_document_tokens
    documents, queries = corpus_requests(corpus, name, settings, seed=seed, max_tokens=max_tokens)
    unseen = read_records(run.folder / HELD_OUT_DOCUMENTS / name, Document)
    count = run.recipe.evaluation.max_queries
    asked = settings.model_copy(update={"query_rows": count, "queries_per_row": 1})
    judged, for_evaluation = corpus_requests(unseen, name, asked, seed=seed, max_tokens=max_tokens)
    return DatasetRequests(
        task=task,
        name=name,
        requests=requests + queries + for_evaluation,
        documents=documents + judged,
        held_out=frozenset(one.id for one in judged),
    )


def _documents_to_ask_for(run: Run, name: str, held_out: frozenset[str]) -> Iterator[Document]:
    """A corpus without the documents that held-out queries ask for: a query for one would teach the answer."""
    left_out = 0
    unseen = read_records(run.folder / HELD_OUT_DOCUMENTS / name, Document)
    bodies = {body for one in unseen for body in _bodies(one.text)}
    for document in read_records(run.folder / "transform" / "corpora" / name, Document):
        if normalized_text(document.text) in held_out or not bodies.isdisjoint(_bodies(document.text)):
            left_out += 1
        else:
            yield document
    if left_out:
        line = f"synthesis: {name}: {left_out:,} documents answer held-out queries and get none written"
        log_event(line, "held_out_documents", dataset=name, documents=left_out)


def _bodies(text: str) -> set[str]:
    """What a chunk says without its headings, normalised: the manual of another version may say the same."""
    below = re.sub(r"^#{1,6} .*$", "", text, flags=re.MULTILINE)
    found = {normalized_text(part) for part in (below, below.partition("\n\n")[2])}
    return {one for one in found if len(one) >= SHORTEST_BODY}


@dataclass(frozen=True, slots=True)
class HeldOutTexts:
    """Normalised texts of what is held out: what is asked or classified, and what answers it."""

    asked: frozenset[str]
    documents: frozenset[str]  # without those that get queries of their own


def held_out_texts(run: Run) -> HeldOutTexts:
    """The texts of a run that are held out for evaluation, of all datasets."""
    asked: set[str] = set()
    documents: set[str] = set()
    for task in TASKS:
        parent = run.folder / "transform" / "held_out" / task
        for name in parent.folders():
            for one in read_records(parent / name, EXAMPLE_TYPES[task]):
                asked.update(map(normalized_text, asked_texts(one)))
                if isinstance(one, RetrievalExample):
                    documents.update(map(normalized_text, one.positives))
    return HeldOutTexts(frozenset(asked), frozenset(documents))


def request_groups(datasets: Iterator[DatasetRequests]) -> Iterator[list[DatasetRequests]]:
    """Datasets whose requests go out together: few rounds that fit the driver's memory."""
    group: list[DatasetRequests] = []
    for dataset in datasets:
        group.append(dataset)
        if sum(len(one.requests) for one in group) >= REQUESTS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def seed_examples(run: Run, group: Sequence[DatasetRequests]) -> dict[tuple[str, str], SeedExample]:
    """(dataset, id) -> the examples and documents that the requests are about."""
    seeds: dict[tuple[str, str], SeedExample] = {}
    for dataset in group:
        wanted = {request.example_id for request in dataset.requests}
        if wanted:
            examples = _examples(run, dataset.task, dataset.name)
            seeds |= {(dataset.name, example.id): example for example in examples if example.id in wanted}
            seeds |= {(dataset.name, document.id): document for document in dataset.documents}
    return seeds


def write_dataset(
    run: Run, folder: Folder, dataset: DatasetRequests, result: SynthesisResult, report: Report
) -> tuple[Counter[str], list[Drop]]:
    """Write one dataset; returns its row counts and drops. Files of which no example changes are linked."""
    record_type = EXAMPLE_TYPES[dataset.task]
    result = _without_evaluation(folder, dataset, result)
    source = run.folder / "transform" / "examples" / dataset.task / dataset.name
    target = folder / "examples" / dataset.task / dataset.name
    if not dataset.requests:
        source.link_to(target)
        return Counter(examples=count_rows(target)), []
    ids = {name: read_table(source, name, ["id"])["id"].to_pylist() for name in source.files(".parquet")}
    merged = merge((one for own in ids.values() for one in own), result)
    for name, own in ids.items():
        if merged.negatives.keys().isdisjoint(own):
            source.link_file(name, target)
        else:
            examples = merged.applied(read_records(source, record_type, [name]))
            write_table(target, name, table_of(list(examples), record_type))
    if merged.new:
        write_table(target, NEW_EXAMPLES, table_of(merged.new, record_type))
    counts = Counter(examples=sum(map(len, ids.values())) + len(merged.new))
    counts.update(f"by {one.request.technique}" for one in merged.kept.records)
    counts["for evaluation"] = count_rows(folder / "held_out" / dataset.task / dataset.name)
    report.add(merged.kept)
    return counts, merged.kept.dropped


def _without_evaluation(folder: Folder, dataset: DatasetRequests, result: SynthesisResult) -> SynthesisResult:
    """The records that are trained on; those for evaluation are written. No query is on both sides."""
    if not dataset.held_out:
        return result
    judged = [one.record for one in result.records if one.request.example_id in dataset.held_out]
    examples = [one for one in judged if isinstance(one, RetrievalExample)]
    target = folder / "held_out" / dataset.task / dataset.name
    write_records(target, examples, RetrievalExample)
    queries = {normalized_text(one.query) for one in examples}
    trained = SynthesisResult(dropped=list(result.dropped))
    for one in result.records:
        if one.request.example_id in dataset.held_out:
            continue
        if isinstance(one.record, RetrievalExample) and normalized_text(one.record.query) in queries:
            detail = "its query is asked for evaluation, too"
            trained.dropped.append(dropped_record(one, "in_held_out", detail))
        else:
            trained.records.append(one)
    return trained


def _examples(run: Run, task: Task, name: str) -> Iterator[Example]:
    return read_records(run.folder / "transform" / "examples" / task / name, EXAMPLE_TYPES[task])
