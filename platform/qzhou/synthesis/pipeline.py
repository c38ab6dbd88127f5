"""The synthesis stage: transformed examples in, the same and synthetic ones out. All of Ray is here."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.api_keys import Keys
from qzhou.config.recipe import Recipe
from qzhou.data.records import Drop, Manifest
from qzhou.data.storage import Folder, table_of, write_table
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import EndpointError
from qzhou.run.run import Run, Stage
from qzhou.synthesis.asker import Asker, outcome_of, throttle_of
from qzhou.synthesis.batch_api import answered_in_batches
from qzhou.synthesis.client import Outcome
from qzhou.synthesis.estimate import Estimate
from qzhou.synthesis.gate import GateActor
from qzhou.synthesis.gates import Scores, refused_by_scores
from qzhou.synthesis.journal import Answer, answers_in, request_key, totals
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.plan import OutcomeOf, Written, following, judged, refused, written
from qzhou.synthesis.report import Report
from qzhou.synthesis.schemas import form_of
from qzhou.synthesis.scoring import PARTS, texts_to_score
from qzhou.synthesis.teacher import Teacher
from qzhou.synthesis.techniques import ChatRequest
from qzhou.synthesis.workload import DatasetPlan, dataset_plans, jobs_of, subjects_of, write_dataset
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

# settings that leave the output as it is
SPEED_ONLY = {
    "mode", "concurrency", "requests_per_minute", "tokens_per_minute", "max_cost", "give_up_after_s", "timeout_s",
    "max_retries", "api_key_env", "input_price", "output_price",
}  # fmt: skip
BATCHES_UNDER_WAY = 4  # so that the slots stay full while the last answers of a batch are awaited
SLOTS_PER_ASKER = 128  # one event loop carries about so many requests of a second each
SCORED_ROWS = 256


def synthesize(recipe: Recipe) -> Manifest:
    """Fill ``<run>/synthesize`` from ``<run>/transform``; nothing happens if it is filled already.

    Raises:
        DataError: The transform stage has not finished.
        EndpointError: No endpoint is left, or the money is spent. What was answered is kept, and a re-run goes on.
    """
    run = Run.open(recipe)
    transform = run.manifest("transform")
    judges = recipe.synthesis.is_on and recipe.synthesis.gates.scores
    models = [
        one.model_dump(mode="json", include={"model", "weight", "structured"})
        for one in recipe.synthesis.models
    ]
    return run.stage(
        Stage(
            name="synthesis",
            settings={
                **recipe.synthesis.model_dump(mode="json", exclude=SPEED_ONLY),
                "models": models,
                "teacher": [recipe.mining.teacher, recipe.model.backbone] if judges else [],
                "seed": recipe.run.seed,
            },
            inputs={"transform": transform.fingerprint},
            code_of=("qzhou.synthesis.pipeline",),
            without=() if judges else ("qzhou.encoder",),
            persistent=("journal",),
            shared=("journal",),
        ),
        functools.partial(_work, run),
    )


def print_estimate(recipe: Recipe) -> None:
    """Say what the stage would ask, and what that would cost, before anything is sent.

    Raises:
        DataError: The transform stage has not finished.
    """
    run = Run.open(recipe)
    run.manifest("transform")
    settings, journal = recipe.synthesis, run.folder / "synthesis" / "journal"
    print("synthesis: estimate; nothing is sent", flush=True)
    expected = Estimate(settings)
    for plan in dataset_plans(run):
        known = _known(plan.requests, settings.temperature, journal)
        queries = following(known, settings)
        expected.add(
            [*plan.requests, *queries], known | _known(queries, settings.temperature, journal)
        )
    print(expected.table(spent=totals(journal)[1]), flush=True)


def _work(run: Run, folder: Folder) -> dict[str, int]:
    settings = run.recipe.synthesis
    if not settings.is_on:
        log_event(
            "synthesis: synthesis is off (synthesis.endpoint is empty); examples pass through",
            "synthesis_off",
        )
    for attempted in ("examples", "dropped"):
        # an earlier attempt may have left more files than this one writes
        (folder / attempted).delete()
    ledger, counts, report = Ledger(), Counter[str](), Report(settings, seed=run.recipe.run.seed)
    sender = Sender(run.recipe, folder / "journal")
    for number, job in enumerate(jobs_of(dataset_plans(run))):
        found = _asked(run, job, sender, ledger, report)
        dropped: list[Drop] = []
        for plan in job:
            dropped += write_dataset(
                plan, run, folder, found.get(plan.name, Written()), report, counts
            )
        if dropped:
            write_table(folder / "dropped", f"part-{number:06d}.parquet", table_of(dropped, Drop))
        counts["dropped"] += len(dropped)
    folder.write_json("ledger.json", ledger.as_json())
    report.write(folder, ledger)
    if settings.is_on:
        total = ledger.total
        tokens = total.prompt_tokens + total.completion_tokens
        log_event(
            report.sentence(ledger),
            "synthesized",
            requests=total.requests,
            tokens=tokens,
            cost=total.cost,
        )
    return dict(counts)


def _asked(
    run: Run, job: Sequence[DatasetPlan], sender: Sender, ledger: Ledger, report: Report
) -> dict[str, Written]:
    """Dataset -> what was written for it and survived the gates."""
    settings = run.recipe.synthesis
    requests = [request for plan in job for request in plan.requests]
    if not requests:
        return {}
    subjects = subjects_of(run, job)
    with session(resources_for(run.recipe, "synthesis")):
        result = written(requests, subjects, sender.ask, settings, ledger)
        if settings.gates.scores and result.made:
            result = _scored(with_arithmetic(run).recipe, result, report)
        if settings.gates.judge and result.made:
            verdict = judged(result.made, sender.ask, settings, ledger)
            result = Written(made=verdict.made, dropped=result.dropped + verdict.dropped)
    found = {plan.name: Written() for plan in job}
    for one in result.made:
        found[one.request.dataset].made.append(one)
    for dropped in result.dropped:
        found[dropped.dataset].dropped.append(dropped)
    return found


class _Asker(Asker):
    """Asks, and lets Ray see how much."""

    def __init__(self, *arguments: Any) -> None:
        export_metrics()
        super().__init__(*arguments)


class Sender:
    """Sends requests through Ray Data and collects their outcomes; what the journal knows is not sent."""

    def __init__(self, recipe: Recipe, journal: Folder) -> None:
        self._settings, self._folder = recipe.synthesis, journal
        self._keys = Keys.of(one.api_key_env for one in self._settings.pool)
        self._asked = resources_for(recipe, "synthesis").options

    def ask(self, requests: Sequence[ChatRequest]) -> OutcomeOf:
        """The outcome of each request; identical ones are sent once.

        Raises:
            EndpointError: No endpoint is left, or the money is spent.
        """
        keys = [_key(request, self._settings.temperature) for request in requests]
        first = dict(zip(reversed(keys), reversed(requests), strict=True))
        known = answers_in(self._folder, first)
        outcomes = {key: Outcome(answer=answer, reused=True) for key, answer in known.items()}
        new = {key: request for key, request in first.items() if key not in outcomes}
        if new and self._settings.mode == "batch":
            outcomes |= answered_in_batches(new, self._settings, self._keys, self._folder)
        elif new:
            outcomes |= self._sent(new)
        return {
            request: replace(
                outcomes[key], reused=outcomes[key].reused or first[key] is not request
            )
            for key, request in zip(keys, requests, strict=True)
        }

    def _sent(self, requests: Mapping[str, ChatRequest]) -> dict[str, Outcome]:
        settings, keys = self._settings, list(requests)
        # reads the whole journal
        spent = 0.0 if settings.max_cost is None else totals(self._folder)[1]
        throttle = throttle_of(settings, spent=spent)
        askers = 1 if settings.is_builtin else -(-settings.concurrency // SLOTS_PER_ASKER)
        gate: Any = throttle
        if askers > 1:
            gate = ray.remote(num_cpus=0, max_concurrency=1000)(GateActor).remote(throttle)
        rows = max(16, settings.concurrency // askers)
        asked = ray.data.from_arrow(_tables(list(requests.values()), rows=rows)).map_batches(
            _Asker,
            fn_constructor_args=(settings, self._folder, self._keys, gate),
            batch_format="pyarrow",
            batch_size=None,
            # The answers wait on the network, not on a CPU.
            compute=ray.data.ActorPoolStrategy(
                size=askers, max_concurrent_calls_per_actor=BATCHES_UNDER_WAY
            ),
            **self._asked,
        )
        stopped = ""
        outcomes: dict[str, Outcome] = {}
        with progress("synthesis", total=len(requests), unit="requests") as bar:
            for batch in asked.iter_batches(batch_format="pyarrow", batch_size=None):
                asked_of = Counter[str]()
                for row in batch.to_pylist():
                    stopped = stopped or row["stopped"]
                    key = keys[row["index"]]
                    outcomes[key] = outcome_of(row)
                    asked_of[requests[key].dataset] += 1
                bar.advance(batch.num_rows, rows=asked_of)
        if stopped:
            kept = f"{totals(self._folder)[0]:,} answers are kept in {self._folder.uri}"
            raise EndpointError(
                f"{stopped} {kept}; none is paid for again when the same command goes on."
            )
        return outcomes


def _scored(recipe: Recipe, result: Written, report: Report) -> Written:
    """What the teacher's scores leave."""
    texts = [texts_to_score(one, recipe.dataset(one.request.dataset).prompt) for one in result.made]
    columns: dict[str, Any] = {"index": list(range(len(texts)))}
    columns |= {part: pa.array([one.get(part) for one in texts], pa.string()) for part in PARTS}
    table = pa.table(columns)
    size = min(recipe.cluster.encode_workers, max(1, table.num_rows // SCORED_ROWS))
    scored = ray.data.from_arrow(table).repartition(max(1, table.num_rows // SCORED_ROWS)).map_batches(
        Teacher,
        fn_constructor_args=(recipe,),
        batch_format="pyarrow",
        batch_size=SCORED_ROWS,
        compute=ray.data.ActorPoolStrategy(size=size),
        **resources_for(recipe, "mining").options,
    )  # fmt: skip
    scores: dict[int, Scores] = {}
    with progress("synthesis: score", total=table.num_rows, unit="records") as bar:
        for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None):
            for row in batch.to_pylist():
                index = row.pop("index")
                scores[index] = Scores(**row)
            bar.advance(batch.num_rows)
    made = [replace(one, scores=scores[index]) for index, one in enumerate(result.made)]
    report.score(made)
    found = Written(dropped=list(result.dropped))
    for index, one in enumerate(made):
        refusal = refused_by_scores(scores[index], recipe.synthesis.gates)
        if refusal is None:
            found.made.append(one)
        else:
            found.dropped.append(refused(one, *refusal))
    return found


def _tables(requests: Sequence[ChatRequest], *, rows: int) -> list[pa.Table]:
    """The requests as blocks of ``rows``: one block is one batch of an actor, and one step of progress."""
    columns = {
        "index": list(range(len(requests))),
        "model": [request.model for request in requests],
        "form": [form_of(request) for request in requests],
        "messages": [json.dumps(request.messages) for request in requests],
    }
    table = pa.table(columns)
    return [table.slice(start, rows) for start in range(0, len(requests), rows)]


def _known(
    requests: Sequence[ChatRequest], temperature: float, journal: Folder
) -> dict[ChatRequest, Answer]:
    """The requests that the journal answers."""
    keys = {_key(request, temperature): request for request in requests}
    return {keys[key]: answer for key, answer in answers_in(journal, keys).items()}


def _key(request: ChatRequest, temperature: float) -> str:
    return request_key(request.model, request.messages, temperature)
