"""The datasets of a run: what is asked about each, and writing what came of it. No Ray in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from qzhou.data.records import EXAMPLE_TYPES, TASKS, Document, Drop, Example, Task
from qzhou.data.storage import Folder, read_records, write_records
from qzhou.run.run import Run
from qzhou.synthesis.parsing import Subject
from qzhou.synthesis.plan import Written, merged, planned, planned_queries
from qzhou.synthesis.report import Report
from qzhou.synthesis.techniques import ChatRequest
from qzhou.telemetry.events import log_event

REQUESTS_PER_JOB = 100_000  # what the driver holds in memory at a time, answers included


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPlan:
    """A dataset and what is asked about it; its examples stay on disk."""

    task: Task
    name: str
    requests: tuple[ChatRequest, ...] = ()
    documents: tuple[Document, ...] = ()


def dataset_plans(run: Run) -> Iterator[DatasetPlan]:
    """Every dataset that has examples, or a corpus that queries are written for."""
    settings, transform = run.recipe.synthesis, run.folder / "transform"
    for task in TASKS:
        names = (transform / "examples" / task).folders()
        asks_queries = task == "retrieval" and settings.is_on and settings.query_rows
        corpora = (transform / "corpora").folders() if asks_queries else []
        for name in dict.fromkeys([*names, *corpora]):
            if settings.is_on and (not settings.datasets or name in settings.datasets):
                yield _plan(run, task, name, asks_queries=name in corpora)
            else:
                yield DatasetPlan(task=task, name=name)


def _plan(run: Run, task: Task, name: str, *, asks_queries: bool) -> DatasetPlan:
    """What is asked about a dataset; nothing if it has more examples than allowed."""
    settings, transform, seed = run.recipe.synthesis, run.folder / "transform", run.recipe.run.seed
    records = read_records(transform / "examples" / task / name, EXAMPLE_TYPES[task])
    examples = list(islice(records, settings.max_dataset_rows + 1))
    if len(examples) > settings.max_dataset_rows:
        limit = f"synthesis.max_dataset_rows ({settings.max_dataset_rows:,})"
        log_event(
            f"synthesis: {name} has more rows than {limit} and is left alone",
            "dataset_left_alone",
            dataset=name,
        )
        return DatasetPlan(task=task, name=name)
    requests = planned(examples, task, settings, seed=seed)
    if not asks_queries:
        return DatasetPlan(task=task, name=name, requests=requests)
    corpus = read_records(transform / "corpora" / name, Document)
    documents, queries = planned_queries(corpus, name, settings, seed=seed)
    return DatasetPlan(task=task, name=name, requests=requests + queries, documents=documents)


def jobs_of(plans: Iterator[DatasetPlan]) -> Iterator[list[DatasetPlan]]:
    """Datasets that are asked about together: few rounds, each small enough for the driver."""
    job: list[DatasetPlan] = []
    for plan in plans:
        job.append(plan)
        if sum(len(one.requests) for one in job) >= REQUESTS_PER_JOB:
            yield job
            job = []
    if job:
        yield job


def subjects_of(run: Run, job: Sequence[DatasetPlan]) -> dict[tuple[str, str], Subject]:
    """(dataset, id) -> the examples and documents that something is asked about."""
    found: dict[tuple[str, str], Subject] = {}
    for plan in job:
        wanted = {request.example_id for request in plan.requests}
        if not wanted:
            continue
        source = run.folder / "transform" / "examples" / plan.task / plan.name
        examples: Iterator[Example] = read_records(source, EXAMPLE_TYPES[plan.task])
        found |= {(plan.name, one.id): one for one in examples if one.id in wanted}
        found |= {(plan.name, one.id): one for one in plan.documents}
    return found


def write_dataset(
    plan: DatasetPlan,
    run: Run,
    folder: Folder,
    found: Written,
    report: Report,
    counts: Counter[str],
) -> tuple[Drop, ...]:
    """Write one dataset and give back what was refused; one that nothing was asked about is streamed through."""
    kind = EXAMPLE_TYPES[plan.task]
    records: Iterator[Example] = read_records(
        run.folder / "transform" / "examples" / plan.task / plan.name, kind
    )
    target = folder / "examples" / plan.task / plan.name
    if not plan.requests:
        counts["examples"] += write_records(target, records, kind)
        return ()
    result = merged(list(records), found)
    counts["examples"] += write_records(target, result.examples, kind)
    for one in result.made:
        counts[f"by {one.request.technique}"] += 1
    report.add(result)
    return result.dropped
