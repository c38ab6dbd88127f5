"""The synthesis stage: transformed examples in, the same examples and synthetic ones out. All of Ray is here."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.util

from qzhou.cluster.metrics import export_metrics
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.api_keys import Keys
from qzhou.config.recipe import Recipe
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.overlap import Index
from qzhou.data.records import Drop, Manifest
from qzhou.data.storage import Folder, table_of, write_table
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import DataError, EndpointError, QzhouError, from_json, to_json
from qzhou.run.files import NGRAMS
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.synthesis.batch_api import BatchSender
from qzhou.synthesis.chat import ChatResult
from qzhou.synthesis.contamination import OverlapFilter
from qzhou.synthesis.dataset_requests import (
    DatasetRequests,
    dataset_requests,
    held_out_texts,
    request_groups,
    seed_examples,
    write_dataset,
)
from qzhou.synthesis.embedding_scores import TEXTS, EmbeddingScorer, texts_to_score
from qzhou.synthesis.filters import Scores, refused_by_scores
from qzhou.synthesis.generation import (
    Results,
    SynthesisResult,
    SyntheticRecord,
    check_relevance,
    dropped_record,
    generate,
)
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.llm_worker import LLMWorker, result_from_json
from qzhou.synthesis.local_server import LocalServer, with_addresses
from qzhou.synthesis.report import Report
from qzhou.synthesis.response_cache import RESPONSES, cached_answers, totals
from qzhou.synthesis.schemas import schema_name
from qzhou.synthesis.techniques import SynthesisRequest
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import progress

# settings that do not change the output
SPEED_ONLY = {
    "mode", "concurrency", "requests_per_minute", "tokens_per_minute", "max_cost", "give_up_after_s", "timeout_s",
    "max_retries", "api_key_env", "input_price", "output_price", "max_tokens", "headers",
}  # fmt: skip
BATCHES_IN_FLIGHT = 4  # so that the slots stay full while the last answers of a batch are awaited
SCORED_ROWS = 256


def synthesize(recipe: Recipe) -> Manifest:
    """Fill ``<run>/synthesis`` from ``<run>/transform``; a finished stage stays as it is.

    Raises:
        DataError: The transform stage has not finished.
        EndpointError: All endpoints have failed, or the money is spent. Answers are kept, and a re-run goes on.
    """
    run = Run.open(recipe)
    transform = run.manifest("transform")
    settings = recipe.synthesis
    has_teacher = settings.is_on and settings.filters.scores
    relevant = {"model", "weight", "structured", "temperature", "top_p", "extra_body"}
    models = [model.model_dump(mode="json", include=relevant) for model in settings.models]
    stage = Stage(
        name="synthesis",
        settings={
            **settings.model_dump(mode="json", exclude=SPEED_ONLY),
            "models": models,
            "local models": [weights_fingerprint(model) for model in settings.local_models],
            "teacher": [recipe.mining.teacher, recipe.model.backbone] if has_teacher else [],
            "seed": recipe.run.seed,
        },
        inputs={"transform": transform.fingerprint},
        code_of=("qzhou.synthesis.pipeline",),
        without=() if has_teacher else ("qzhou.encoder",),
        persistent=(RESPONSES,),
        shared=(RESPONSES,),
    )
    return run.stage(stage, functools.partial(_work, run))


def _work(run: Run, folder: Folder) -> dict[str, int]:
    settings = run.recipe.synthesis
    if not settings.is_on:
        log_event("synthesis: off (synthesis.endpoint is empty); examples pass through", "synthesis_off")
    for name in ("examples", "held_out", "dropped"):
        # An earlier attempt may have left more files than this one writes.
        (folder / name).delete()
    ledger, report = Ledger(), Report(settings, seed=run.recipe.run.seed)
    sender = Sender(run.recipe, folder / RESPONSES)
    counts, reasons = Counter[str](), Counter[str]()
    compared = _overlap_filter(run)
    for number, group in enumerate(request_groups(dataset_requests(run))):
        results = _synthesized(run, group, compared, sender, ledger, report)
        dropped: list[Drop] = []
        for dataset in group:
            result = results.get(dataset.name, SynthesisResult())
            written, drops = write_dataset(run, folder, dataset, result, report)
            counts.update(written)
            dropped += drops
        reasons.update(one.reason for one in dropped)
        if dropped:
            write_table(folder / "dropped", f"part-{number:06d}.parquet", table_of(dropped, Drop))
        counts["dropped"] += len(dropped)
    folder.write_json("ledger.json", ledger.as_json())
    report.write(folder, ledger, compared.rows())
    for row in compared.rows():
        line = (
            f"synthesis: {row['dataset']}: {row['examples']:,} of {row['compared']:,} new examples overlap with texts "
            f"of {row['task']} (transform.contamination.action is '{compared.settings.action}')"
        )
        log_event(line, "synthetic_overlap", level="warning", dataset=row["dataset"], task=row["task"])
    if not settings.is_builtin:  # the rules know some kinds of text only
        _refuse_nothing(ledger, counts, reasons)
    if settings.is_on:
        line = report.sentence(ledger)
        total = ledger.total
        log_event(line, "synthesized", requests=total.requests, tokens=total.tokens, cost=total.cost)
    return dict(counts)


def _overlap_filter(run: Run) -> OverlapFilter:
    """Compares new examples with the texts that evaluations know."""
    settings = run.recipe.transform.contamination
    if not run.recipe.synthesis.is_on:
        return OverlapFilter(settings, None)
    held_out = held_out_texts(run)
    return OverlapFilter(settings, Index.read(run.folder / NGRAMS), held_out.asked | held_out.documents)


def _refuse_nothing(ledger: Ledger, counts: Counter[str], reasons: Counter[str]) -> None:
    """An attempt that asked and got nothing is no finished stage."""
    total = ledger.total
    if not total.requests or any(name.startswith("by ") for name in counts):
        return
    commonest = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
    if not total.answered:
        raise EndpointError(
            f"synthesis: none of {total.requests:,} requests was answered ({commonest}; synthesis/dropped has the "
            "reasons). Check the model and what it can be asked for: structured, extra_body, temperature."
        )
    raise DataError(
        f"synthesis: nothing of {total.answered:,} answers could be used ({commonest}; synthesis/dropped has them). "
        "They are paid for and kept: another model or other filters (synthesis.filters) may help."
    )


def _synthesized(
    run: Run,
    group: Sequence[DatasetRequests],
    compared: OverlapFilter,
    sender: Sender,
    ledger: Ledger,
    report: Report,
) -> dict[str, SynthesisResult]:
    """Dataset -> its new records that passed all filters."""
    settings = run.recipe.synthesis
    requests = [request for dataset in group for request in dataset.requests]
    if not requests:
        return {}
    seeds = seed_examples(run, group)
    with session(resources_for(run.recipe, "synthesis")), _local_servers(settings) as reachable:
        sender.use(reachable)
        result = generate(requests, seeds, sender.send, settings, ledger)
        judged = {(one.name, identity) for one in group for identity in one.held_out}
        result = _filtered(
            result, judged, functools.partial(compared.filtered, tasks={one.name: one.task for one in group})
        )
        if settings.filters.scores and result.records:
            result = _filtered_by_scores(with_arithmetic(run).recipe, result, report)
        if settings.filters.relevance_check and result.records:
            checked = check_relevance(result.records, sender.send, settings, ledger)
            checked.dropped[:0] = result.dropped
            result = checked
    results = {dataset.name: SynthesisResult() for dataset in group}
    for one in result.records:
        results[one.request.dataset].records.append(one)
    for drop in result.dropped:
        results[drop.dataset].dropped.append(drop)
    return results


def _filtered(
    result: SynthesisResult, judged: Collection[tuple[str, str]], keep: Callable[[SynthesisResult], SynthesisResult]
) -> SynthesisResult:
    """What ``keep`` leaves of the records that are trained on, and the others, which are for evaluation."""
    sides: tuple[list[SyntheticRecord], list[SyntheticRecord]] = ([], [])
    for one in result.records:
        sides[(one.request.dataset, one.request.example_id) in judged].append(one)
    kept = keep(SynthesisResult(records=sides[False], dropped=result.dropped))
    kept.records += sides[True]
    return kept


@contextlib.contextmanager
def _local_servers(settings: SynthesisSection) -> Iterator[SynthesisSection]:
    """The settings with the addresses of the local models' servers, which end with the block.

    Each lies below an actor, which ends with the driver, and the server with it.
    """
    if not settings.local_models:
        yield settings
        return
    is_alone = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    server = ray.remote(num_cpus=0)(_LocalServer)
    servers = {model: server.remote(model, is_alone) for model in settings.local_models}
    try:
        line = f"synthesis: serving {', '.join(servers)} on this machine"
        log_event(line, "local_models", models=list(servers))
        found = ray.get([one.address.remote() for one in servers.values()])
        for answer in found:
            if "error" in answer:
                raise from_json(answer["error"])
        yield with_addresses(settings, {model: one["url"] for model, one in zip(servers, found, strict=True)})
    finally:
        for one in servers.values():
            ray.kill(one)  # its server ends with it


class _LocalServer:
    """A local model's server as an actor; a :class:`QzhouError` is a value, which Ray would wrap otherwise."""

    def __init__(self, model: str, is_alone: bool) -> None:
        self._answer: dict[str, str] = {}
        try:
            self._server = LocalServer(model, "127.0.0.1" if is_alone else ray.util.get_node_ip_address())
            self._answer["url"] = self._server.url
        except QzhouError as error:
            self._answer["error"] = to_json(error)

    def address(self) -> dict[str, str]:
        """``url``, or ``error`` as JSON."""
        return self._answer


class _LLMWorker(LLMWorker):
    """A worker whose metrics Ray exposes."""

    def __init__(self, *arguments: Any) -> None:
        export_metrics()
        super().__init__(*arguments)


class Sender:
    """Sends requests through Ray Data and collects their results; cached answers are not asked for again.

    One actor sends for the whole job, so the limits of the recipe hold without any talk
    between processes. ``responses`` is the folder of the response cache.
    """

    def __init__(self, recipe: Recipe, responses: Folder) -> None:
        self._settings, self._responses = recipe.synthesis, responses
        self._reachable = recipe.synthesis
        self._sampling = recipe.synthesis.sampling
        self._keys = Keys.of(model.api_key_env for model in self._settings.pool)
        self._options = resources_for(recipe, "synthesis").options

    def use(self, reachable: SynthesisSection) -> None:
        """Send from now on to these endpoints of the same models."""
        self._reachable = reachable

    def send(self, requests: Sequence[SynthesisRequest]) -> Results:
        """The result of each request; identical requests are sent once.

        Raises:
            EndpointError: All endpoints have failed, or the money is spent.
        """
        keys = [request.key(self._sampling) for request in requests]
        first: dict[str, SynthesisRequest] = {}
        for key, request in zip(keys, requests, strict=True):
            first.setdefault(key, request)
        cached = cached_answers(self._responses, first)
        results = {key: ChatResult(answer=one, reused=True) for key, one in cached.items()}
        new = {key: request for key, request in first.items() if key not in results}
        if new and self._settings.mode == "batch":
            results |= BatchSender(self._settings, self._keys, self._responses).send(new)
        elif new:
            results |= self._send_live(new)
        return {
            request: replace(results[key], reused=results[key].reused or first[key] is not request)
            for key, request in zip(keys, requests, strict=True)
        }

    def _send_live(self, requests: Mapping[str, SynthesisRequest]) -> dict[str, ChatResult]:
        rows = max(16, self._settings.concurrency)
        pool = ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=BATCHES_IN_FLIGHT)
        answered = ray.data.from_arrow(_tables(list(requests.values()), rows=rows)).map_batches(
            _LLMWorker,
            fn_constructor_args=(self._reachable, self._responses, self._keys, self._responses.files(".jsonl")),
            batch_format="pyarrow",
            batch_size=None,
            compute=pool,
            **self._options,
        )
        keys, stopped = list(requests), ""
        results: dict[str, ChatResult] = {}
        with progress("synthesis", total=len(requests), unit="requests") as bar:
            for batch in answered.iter_batches(batch_format="pyarrow", batch_size=None):
                datasets = Counter[str]()
                for row in batch.to_pylist():
                    stopped = stopped or row["stopped"]
                    key = keys[row["index"]]
                    results[key] = result_from_json(row["result"])
                    datasets[requests[key].dataset] += 1
                bar.advance(batch.num_rows, rows=datasets)
        if stopped:
            kept = f"{totals(self._responses)[0]:,} answers are kept in {self._responses.uri}"
            again = "none is paid for again when the same command goes on."
            raise EndpointError(f"{stopped} {kept}; {again}")
        return results


def _tables(requests: Sequence[SynthesisRequest], *, rows: int) -> list[pa.Table]:
    """The requests in blocks of ``rows``: one block is one batch of the actor, and one step of progress."""
    columns = {
        "index": list(range(len(requests))),
        "model": [request.model for request in requests],
        "schema": [schema_name(request) for request in requests],
        "messages": [json.dumps(request.messages) for request in requests],
    }
    table = pa.table(columns)
    return [table.slice(start, rows) for start in range(0, len(requests), rows)]


def _filtered_by_scores(recipe: Recipe, result: SynthesisResult, report: Report) -> SynthesisResult:
    """The records that pass the filters by the teacher's scores."""
    scores = _scores(recipe, result)
    records = [replace(one, scores=scores[index]) for index, one in enumerate(result.records)]
    report.score(records)
    filtered = SynthesisResult(dropped=list(result.dropped))
    for index, one in enumerate(records):
        refusal = refused_by_scores(scores[index], recipe.synthesis.filters)
        if refusal is None:
            filtered.records.append(one)
        else:
            filtered.dropped.append(dropped_record(one, *refusal))
    return filtered


def _scores(recipe: Recipe, result: SynthesisResult) -> dict[int, Scores]:
    """Index of a record -> its scores."""
    texts = [texts_to_score(one, recipe.dataset(one.request.dataset).prompt) for one in result.records]
    columns: dict[str, Any] = {"index": list(range(len(texts)))}
    columns |= {name: pa.array([one.get(name) for one in texts], pa.string()) for name in TEXTS}
    blocks = max(1, len(texts) // SCORED_ROWS)
    scored = ray.data.from_arrow(pa.table(columns)).repartition(blocks).map_batches(
        EmbeddingScorer,
        fn_constructor_args=(recipe,),
        batch_format="pyarrow",
        batch_size=SCORED_ROWS,
        compute=ray.data.ActorPoolStrategy(size=min(recipe.cluster.encode_workers, blocks)),
        **resources_for(recipe, "mining").options,
    )  # fmt: skip
    scores: dict[int, Scores] = {}
    with progress("synthesis: score", total=len(texts), unit="records") as bar:
        for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None):
            for row in batch.to_pylist():
                index = row.pop("index")
                scores[index] = Scores(**row)
            bar.advance(batch.num_rows)
    return scores
