"""The mining stage on Ray: actors encode, the driver searches and selects."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from qzhou.cluster import session
from qzhou.dataset import Dataset
from qzhou.encoder import TextEncoder, load_teacher
from qzhou.mining.search import EXACT, nearest, recall_of
from qzhou.mining.select import Bools, Floats, Ints, combine, is_consistent, select_negatives
from qzhou.progress import progress
from qzhou.prompts import Prompt
from qzhou.recipe import Recipe
from qzhou.records import (
    EXAMPLE_TYPES,
    TASKS,
    Document,
    Drop,
    Manifest,
    Negative,
    RetrievalExample,
    answers,
    stable_id,
    text_key,
)
from qzhou.runs import Run, digest
from qzhou.storage import Folder, read_records, write_records

ANSWERS_RANKED = 100  # room for a query's answers before the window; with more of them it may get fewer negatives
ENCODE_ROWS = 512  # texts that an actor takes at once: enough to sort by length, small enough to share out


def mine(recipe: Recipe) -> Manifest:
    """Give every retrieval example its negatives; other tasks' examples pass through.

    Raises:
        DataError: Synthesis has not finished.
        ModelError: The teacher cannot be loaded.
    """
    run = Run.open(recipe)
    return run.stage(
        "mine",
        lambda folder: _work(run, folder),
        settings={
            "mining": recipe.mining.model_dump(exclude={"teacher_api_key_env"}),
            "model": recipe.model.model_dump(),
            "prompts": {dataset.name: dataclasses.astuple(dataset.prompt) for dataset in recipe.datasets},
            "seed": recipe.run.seed,
        },
        inputs={
            "transform": run.manifest("transform").fingerprint,
            "synthesize": run.manifest("synthesize").fingerprint,
        },
        rooms=("mining", "encoder"),
        keep=("embeddings",),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Mined:
    """One retrieval dataset on its way through the stage; texts in the order of their vectors."""

    dataset: Dataset
    examples: list[RetrievalExample]
    documents: list[str]

    @property
    def queries(self) -> list[str]:
        return [self.dataset.prompt.query(example.query) for example in self.examples]


def _work(run: Run, folder: Folder) -> dict[str, int]:
    source, corpora = run.folder / "synthesize" / "examples", run.folder / "transform" / "corpora"
    counts = dict.fromkeys(TASKS, 0)
    for task in ("pair", "classification"):
        for name in (source / task).folders():
            kind = EXAMPLE_TYPES[task]
            copied = write_records(folder / "examples" / task / name, read_records(source / task / name, kind), kind)
            counts[task] += copied
    todo = [_load(run.recipe.dataset(name), source, corpora) for name in (source / "retrieval").folders()]
    with session():
        vectors = _encode(run.recipe, folder, [texts for one in todo for texts in (one.queries, _prompted(one))])
    report = {}
    dropped: list[Drop] = []
    for one, query_QD, document_MD in zip(todo, vectors[::2], vectors[1::2], strict=True):
        mined, refused, report[one.dataset.name] = _negatives(run.recipe, one, query_QD, document_MD)
        dropped += refused
        target = folder / "examples" / "retrieval" / one.dataset.name
        counts["retrieval"] += write_records(target, mined, RetrievalExample)
        print(_sentence(one.dataset.name, report[one.dataset.name]), flush=True)
    write_records(folder / "dropped", dropped, Drop)
    folder.write_json("report.json", report)
    return {f"{task} examples": count for task, count in counts.items()}


def _load(dataset: Dataset, source: Folder, corpora: Folder) -> _Mined:
    examples = list(read_records(source / "retrieval" / dataset.name, RetrievalExample))
    corpus = [document.text for document in read_records(corpora / dataset.name, Document)]
    positives = [text for example in examples for text in example.positives]
    return _Mined(dataset, examples, list(dict.fromkeys([*corpus, *positives])))


def _prompted(one: _Mined) -> list[str]:
    prompt: Prompt = one.dataset.prompt
    return [prompt.document(text) for text in one.documents]


def _negatives(
    recipe: Recipe, one: _Mined, query_QD: Floats, document_MD: Floats
) -> tuple[list[RetrievalExample], list[Drop], dict[str, Any]]:
    """The examples with their negatives, those that are dropped, and the dataset's part of the report."""
    mining = recipe.mining
    row_of = {text: row for row, text in enumerate(one.documents)}
    keys = [text_key(text) for text in one.documents]
    answering = answers(one.examples)
    deepest = max(mining.rank_to, mining.consistency_top_k or 0)
    scores_QK, rows_QK = nearest(
        query_QD,
        document_MD,
        count=deepest + min(max(map(len, answering)), ANSWERS_RANKED),
        index=mining.index,
        parameters=mining.index_parameters,
    )
    is_positive = np.array([[keys[row] in own for row in rows] for rows, own in zip(rows_QK, answering, strict=True)])
    positive_score_Q = np.array(
        [
            min(float(query_QD[query] @ document_MD[row_of[text]]) for text in example.positives)
            for query, example in enumerate(one.examples)
        ],
        dtype=np.float32,
    )
    seeds = [int(stable_id(one.dataset.name, recipe.run.seed, example.id)[:16], 16) for example in one.examples]
    found = select_negatives(
        scores_QK,
        rows_QK,
        is_positive,
        positive_score_Q,
        np.array(seeds, dtype=np.uint64),
        mining,
        is_repeat_QK=_repeats(one, document_MD, rows_QK, row_of, mining.max_positive_cosine),
    )
    consistent = np.ones(len(one.examples), dtype=bool)
    if mining.consistency_top_k is not None:
        consistent = is_consistent(scores_QK, is_positive, positive_score_Q, top_k=mining.consistency_top_k)
    mined, dropped = [], []
    for example, own, rows, scores, keep in zip(
        one.examples, answering, found.rows, found.scores, consistent, strict=True
    ):
        if not keep:
            dropped.append(_inconsistent(example, mining.consistency_top_k))
            continue
        new = [
            Negative(text=one.documents[row], origin="mined", score=score)
            for row, score in zip(rows, scores, strict=True)
        ]
        negatives = combine(
            example.negatives,
            new,
            own,
            count=mining.negatives_per_query,
            llm_fraction=mining.llm_negative_fraction,
        )
        mined.append(dataclasses.replace(example, negatives=negatives))
    report = _report(mined, found.rejected, positive_score_Q) | {"inconsistent": len(dropped)}
    if mining.index != EXACT:
        report["recall"] = round(recall_of(query_QD, document_MD, scores_QK, rows_QK), 4)
    return mined, dropped, report


def _repeats(one: _Mined, document_MD: Floats, rows_QK: Ints, row_of: Mapping[str, int], closest: float) -> Bools:
    """Whether a candidate says the same as one of its query's positives, by the cosine of the two."""
    found = np.zeros(rows_QK.shape, dtype=bool)
    for query, example in enumerate(one.examples):
        positives = document_MD[[row_of[text] for text in example.positives]]
        found[query] = (document_MD[rows_QK[query]] @ positives.T).max(axis=1) > closest
    return found


def _inconsistent(example: RetrievalExample, top_k: int | None) -> Drop:
    """The drop of a pair that the teacher does not believe in."""
    return Drop(
        stage="mine",
        dataset=example.dataset,
        reason="inconsistent",
        detail=f"a positive is not among the teacher's first {top_k}",
        record=json.dumps(dataclasses.asdict(example), ensure_ascii=False),
    )


def _report(
    examples: Sequence[RetrievalExample], rejected: Mapping[str, int], positive_score_Q: Floats
) -> dict[str, Any]:
    origins = Counter(negative.origin for example in examples for negative in example.negatives)
    mined_scores = [n.score for example in examples for n in example.negatives if n.score is not None]
    return {
        "queries": len(examples),
        "negatives": dict(origins),
        "queries by number of negatives": dict(sorted(Counter(str(len(e.negatives)) for e in examples).items())),
        "rejected": dict(rejected),
        "mean positive score": round(float(positive_score_Q.mean()), 4),
        "mean mined score": round(float(np.mean(mined_scores)), 4) if mined_scores else None,
    }


def _sentence(name: str, report: Mapping[str, Any]) -> str:
    origins = ", ".join(f"{count:,} {origin}" for origin, count in report["negatives"].items())
    refused = report["rejected"]["too close to the positive"]
    return f"mine: {name}: {report['queries']:,} queries, negatives: {origins}; {refused:,} too close to the positive"


def _encode(recipe: Recipe, folder: Folder, text_lists: Sequence[list[str]]) -> list[Floats]:
    """Vectors of several lists of texts; a list that was encoded before comes from its file.

    The file's name covers the teacher's weights, tokenizer, pooling, dtype and length (its fingerprint)
    and every text with its prompt: another checkpoint or prompt never finds an old file.
    """
    measure = ray.remote(num_cpus=1, num_gpus=1 if recipe.cluster.gpu else 0)(_fingerprint)
    teacher = ray.get(measure.remote(recipe))
    names = [f"embeddings/{teacher}/{digest(texts)}.npy" for texts in text_lists]
    missing = [number for number, name in enumerate(names) if not folder.exists(name)]
    if missing:
        for number, vectors in _encode_now(recipe, {number: text_lists[number] for number in missing}).items():
            buffer = io.BytesIO()
            np.save(buffer, vectors)
            folder.write_bytes(names[number], buffer.getvalue())
    return [np.load(io.BytesIO(folder.read_bytes(name))) for name in names]


def _encode_now(recipe: Recipe, text_lists: Mapping[int, list[str]]) -> dict[int, Floats]:
    """One pass of the actor pool over all texts, so that each actor loads the teacher once."""
    table = pa.table(
        {
            "list": [number for number, texts in text_lists.items() for _ in texts],
            "row": [row for texts in text_lists.values() for row in range(len(texts))],
            "text": [text for texts in text_lists.values() for text in texts],
        }
    )
    blocks = max(1, table.num_rows // ENCODE_ROWS)
    encoded = ray.data.from_arrow(table).repartition(blocks).map_batches(
        _EncodeActor,
        fn_constructor_args=(recipe,),
        batch_size=ENCODE_ROWS,
        compute=ray.data.ActorPoolStrategy(size=recipe.cluster.encoders),
        num_cpus=1,
        num_gpus=1 if recipe.cluster.gpu else 0,
    )  # fmt: skip
    vectors: dict[int, Floats] = {}
    truncated = 0
    with progress("mine: encode", total=table.num_rows, unit="texts") as bar:
        for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
            matrix = np.stack(batch["vector"]).astype(np.float32)
            truncated += int(batch["truncated"].sum())
            for number in np.unique(batch["list"]):
                here = batch["list"] == number
                target = vectors.setdefault(
                    int(number), np.empty((len(text_lists[int(number)]), matrix.shape[1]), dtype=np.float32)
                )
                target[batch["row"][here]] = matrix[here]
            bar.advance(len(matrix))
    if truncated:
        limit = f"model.max_document_tokens ({recipe.model.max_document_tokens:,})"
        print(f"mine: encode: {truncated:,} texts are longer than {limit} and were truncated", flush=True)
    return vectors


class _EncodeActor:
    """Holds the teacher; encodes one batch of texts at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self.encoder = _teacher(recipe)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        before = self.encoder.truncated
        vectors = self.encoder.encode([str(text) for text in batch["text"]])
        truncated = np.zeros(len(vectors), dtype=np.int64)
        truncated[:1] = self.encoder.truncated - before
        return {"list": batch["list"], "row": batch["row"], "vector": vectors, "truncated": truncated}


def _teacher(recipe: Recipe) -> TextEncoder:
    return load_teacher(recipe.mining.teacher, recipe.model, api_key_env=recipe.mining.teacher_api_key_env)


def _fingerprint(recipe: Recipe) -> str:
    return _teacher(recipe).fingerprint
