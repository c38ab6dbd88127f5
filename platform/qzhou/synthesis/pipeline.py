"""The synthesis stage: transformed examples in, the same and synthetic ones out. All of Ray is here."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import ray.data
from pydantic import SecretStr

from qzhou.cluster import session
from qzhou.errors import EndpointError
from qzhou.progress import progress
from qzhou.recipe import Recipe, SynthesisSection
from qzhou.records import EXAMPLE_TYPES, TASKS, Drop, Example, Manifest, Task
from qzhou.runs import Run
from qzhou.storage import Folder, read_records, write_records
from qzhou.synthesis.builtin import builtin_endpoint
from qzhou.synthesis.client import ChatClient, Outcome
from qzhou.synthesis.journal import Answer, Journal
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.plan import OutcomeOf, merged, planned
from qzhou.synthesis.techniques import ChatRequest, chat_messages

SPEED_ONLY = {"concurrency", "timeout_s", "max_retries", "api_key_env"}  # settings that leave the output as it is
REQUESTS_PER_JOB = 100_000  # what the driver holds in memory at a time, answers included
BATCHES_UNDER_WAY = 4  # so that the slots stay full while the last answers of a batch are awaited
OUTCOMES = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("key", "model", "content", "failure", "stopped")),
        *(pa.field(name, pa.int64()) for name in ("index", "prompt_tokens", "completion_tokens")),
        pa.field("answered", pa.bool_()),
        pa.field("reused", pa.bool_()),
    ]
)


def synthesize(recipe: Recipe) -> Manifest:
    """Fill ``<run>/synthesize`` from ``<run>/transform``; nothing happens if it is filled already.

    Raises:
        DataError: The transform stage has not finished.
        EndpointError: The endpoint is down or refuses. What it answered is kept, and a re-run goes on.
    """
    run = Run.open(recipe)
    transform = run.manifest("transform")
    return run.stage(
        "synthesize",
        functools.partial(_work, run),
        settings={**recipe.synthesis.model_dump(exclude=SPEED_ONLY), "seed": recipe.run.seed},
        inputs={"transform": transform.fingerprint},
        rooms=("synthesis",),
        keep=("journal",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A dataset and what is asked about it; its examples stay on disk."""

    task: Task
    name: str
    requests: tuple[ChatRequest, ...]


def _work(run: Run, folder: Folder) -> dict[str, int]:
    settings, source = run.recipe.synthesis, run.folder / "transform" / "examples"
    if not settings.endpoint:
        print("synthesize: synthesis is off (synthesis.endpoint is empty); examples pass through", flush=True)
    for attempted in ("examples", "dropped"):
        (folder / attempted).delete()  # an earlier attempt may have left more files than this one writes
    ledger, counts, dropped = Ledger(settings.model), Counter[str](), list[Drop]()
    for job in _jobs(_plans(run, source)):
        requests = [request for plan in job for request in plan.requests]
        outcome_of = _ask(settings, requests, folder / "journal") if requests else {}
        for plan in job:
            dropped += _write(plan, source, folder, outcome_of, ledger, counts)
    counts["dropped"] = write_records(folder / "dropped", dropped, Drop)
    folder.write_json("ledger.json", ledger.as_json())
    return dict(counts)


def _plans(run: Run, source: Folder) -> Iterator[_Planned]:
    settings = run.recipe.synthesis
    for task in TASKS:
        for name in (source / task).folders():
            requests: tuple[ChatRequest, ...] = ()
            if settings.endpoint:
                records = read_records(source / task / name, EXAMPLE_TYPES[task])
                examples = list(islice(records, settings.max_dataset_rows + 1))
                requests = planned(examples, task, settings, seed=run.recipe.run.seed)
                if len(examples) > settings.max_dataset_rows:
                    limit = f"synthesis.max_dataset_rows ({settings.max_dataset_rows:,})"
                    print(f"synthesize: {name} has more rows than {limit} and is left alone", flush=True)
            yield _Planned(task=task, name=name, requests=requests)


def _jobs(plans: Iterator[_Planned]) -> Iterator[list[_Planned]]:
    """Datasets that are asked about in one Ray Data job: few jobs, each small enough for the driver."""
    job: list[_Planned] = []
    for plan in plans:
        job.append(plan)
        if sum(len(one.requests) for one in job) >= REQUESTS_PER_JOB:
            yield job
            job = []
    if job:
        yield job


def _write(
    plan: _Planned, source: Folder, folder: Folder, outcome_of: OutcomeOf, ledger: Ledger, counts: Counter[str]
) -> tuple[Drop, ...]:
    """Write one dataset and give back what was refused; one that nothing was asked about is streamed through."""
    records: Iterator[Example] = read_records(source / plan.task / plan.name, EXAMPLE_TYPES[plan.task])
    target = folder / "examples" / plan.task / plan.name
    if not plan.requests:
        counts["examples"] += write_records(target, records, EXAMPLE_TYPES[plan.task])
        return ()
    result = merged(list(records), plan.requests, outcome_of, ledger)
    counts["examples"] += write_records(target, result.examples, EXAMPLE_TYPES[plan.task])
    for technique, made in result.made.items():
        counts[f"by {technique}"] += made
    return result.dropped


def _ask(settings: SynthesisSection, requests: Sequence[ChatRequest], journal: Folder) -> OutcomeOf:
    """Send the requests through Ray Data and collect their outcomes."""
    key = SecretStr(os.environ.get(settings.api_key_env) or "none")  # servers of one's own often ask for no key
    stopped = ""
    outcome_of: dict[ChatRequest, Outcome] = {}
    with session(), progress("synthesize", total=len(requests), unit="requests") as bar:
        asked = ray.data.from_arrow(_tables(requests, rows=max(16, settings.concurrency))).map_batches(
            _Asker,
            fn_constructor_args=(settings, journal, key),
            batch_format="pyarrow",
            batch_size=None,
            # One actor, because synthesis.concurrency is a limit of the whole job and the answers wait on the
            # network, not on a CPU: a single event loop keeps hundreds of requests under way.
            compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=BATCHES_UNDER_WAY),
            num_cpus=0.25,
        )
        for batch in asked.iter_batches(batch_format="pyarrow", batch_size=None):
            for row in batch.to_pylist():
                stopped = stopped or row["stopped"]
                outcome_of[requests[row["index"]]] = _outcome(row)
            bar.advance(batch.num_rows)
    if stopped:
        raise EndpointError(stopped)
    return outcome_of


def _tables(requests: Sequence[ChatRequest], *, rows: int) -> list[pa.Table]:
    """The requests as blocks of ``rows``: one block is one batch of the actor, and one step of progress."""
    columns = {
        "index": list(range(len(requests))),
        "prompt": [request.prompt for request in requests],
        "user": [request.user for request in requests],
    }
    table = pa.table(columns)
    return [table.slice(start, rows) for start in range(0, len(requests), rows)]


class _Asker:
    """Ray Data's actor: holds the client and the journal, and turns requests into outcomes.

    The builtin endpoint is opened here, because its loopback address is good only on this node.
    """

    def __init__(self, settings: SynthesisSection, journal: Folder, api_key: SecretStr) -> None:
        base_url = settings.endpoint
        self._endpoint = (
            contextlib.ExitStack()
        )  # held, or the server would end with the block; it ends with the process
        if base_url == "builtin":
            base_url, api_key = self._endpoint.enter_context(builtin_endpoint()), SecretStr("builtin")
        self._client = ChatClient(settings, base_url=base_url, api_key=api_key, journal=Journal(journal))

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Ask one batch. An ``EndpointError`` travels as a column: raised here, it would kill other batches."""
        rows = batch.to_pylist()
        try:
            outcomes = await self._client.ask([chat_messages(row["prompt"], row["user"]) for row in rows])
            stopped = ""
        except EndpointError as error:
            outcomes, stopped = [Outcome(answer=None)] * len(rows), str(error)
        outputs = [_row(row["index"], outcome, stopped) for row, outcome in zip(rows, outcomes, strict=True)]
        return pa.Table.from_pylist(outputs, schema=OUTCOMES)


def _row(index: int, outcome: Outcome, stopped: str) -> dict[str, object]:
    answer = outcome.answer or Answer(key="", model="", content="", prompt_tokens=0, completion_tokens=0)
    return {
        "index": index,
        "answered": outcome.answer is not None,
        "reused": outcome.reused,
        "failure": outcome.failure,
        "stopped": stopped,
        "key": answer.key,
        "model": answer.model,
        "content": answer.content,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }


def _outcome(row: dict[str, object]) -> Outcome:
    if not row["answered"]:
        return Outcome(answer=None, failure=str(row["failure"]))
    fields = ("key", "model", "content", "prompt_tokens", "completion_tokens")
    return Outcome(answer=Answer(**{name: row[name] for name in fields}), reused=bool(row["reused"]))  # type: ignore[arg-type]
