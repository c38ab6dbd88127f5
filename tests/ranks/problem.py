"""A small problem with one dataset of each task, and what tests of training do with it."""

import contextlib
import itertools
import json
from functools import partial

import numpy as np
import torch

from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.encoder import load_backbone
from qzhou.encoder.encoder import token_ids
from qzhou.training.batch_plan import BatchPlan, DatasetSize, PlannedBatch, PlannedRows
from qzhou.training.batches import build_batches
from qzhou.training.engine import disable_dropout
from qzhou.training.examples import TrainingSet
from qzhou.training.gradient_cache import backward
from qzhou.training.loader import TrainingStage
from qzhou.training.loop import train_stage
from qzhou.training.objectives import loss_of
from qzhou.training.sharding import shard_batch

COLOURS = ["red", "blue", "green", "tree", "sea", "paris", "london", "word", "list", "sum", "query"]
RETRIEVAL = [
    RetrievalExample(
        id=str(i), dataset="r", query=f"what is the {colour}", positives=(f"the {colour} is a text " * (1 + i % 3),),
        negatives=(Negative(text=f"the answer to {colour}", origin="mined", score=0.3 + 0.02 * i),),
        positive_scores=(0.9 - 0.03 * i,) if i % 4 else (),
    )
    for i, colour in enumerate(COLOURS)
]  # fmt: skip
PAIRS = [
    PairExample(id=str(i), dataset="p", text_a=f"a {c}", text_b=f"the {c} {c}", score=i % 3)
    for i, c in enumerate(COLOURS)
]
LABELED = [
    LabeledExample(id=str(i), dataset="c", text=f"{c} word", label=str(i % 3)) for i, c in enumerate(COLOURS)
]
DATA = {
    "r": TrainingSet.of("r", Prompt("Find", symmetric=False), RETRIEVAL),
    "p": TrainingSet.of("p", Prompt("Compare", symmetric=True), PAIRS),
    "c": TrainingSet.of("c", Prompt(), LABELED),
}
TASKS = {"r": "retrieval", "p": "pair", "c": "classification"}
TEMPERATURES = (1.0, 0.05, 0.02)
ACTIVATIONS = {"direct": 10**6, "cached": 1}  # padded tokens whose activations fit
CHUNK_TOKENS = 64  # several chunks on each of four ranks
TOLERANCE = 1e-5  # of the norm of the gradient, float32


def model_of(folder):
    return load_backbone(str(folder), attention="bidirectional", dtype=torch.float32)


def with_training(recipe, **settings):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})


def three_tasks(make_recipe, **settings):
    """A recipe of one dataset of each task, whose stage 2 has six steps, with these training settings."""
    recipe = make_recipe(
        datasets=[
            {"name": "r", "reader": "jsonl", "rule": "title_body", "paths": ["x"], "instruction": "Find"},
            {"name": "p", "reader": "jsonl", "rule": "scored_pair", "paths": ["x"], "instruction": "Compare"},
            {"name": "c", "reader": "jsonl", "rule": "labeled", "paths": ["x"]},
        ]
    )
    stage = recipe.training.stage2.model_copy(update={"steps": 6, "retrieval_share": 0.5, "batch_size": 5})
    return with_training(recipe, **{"stage2": stage, "save_every_steps": 3} | settings)


def gradients(engine, recipe, tokenizer, of_weights, temperatures=TEMPERATURES, ways=tuple(ACTIVATIONS)):
    """The gradient of each loss at each temperature, direct and cached, averaged over ranks as engines do."""
    found = {}
    for name, temperature, way in itertools.product(TASKS, temperatures, ways):
        training = recipe.training.model_copy(
            update={"temperature": temperature, "cosent_temperature": temperature, "negatives_per_query": 1}
        )
        # 11: uneven shares
        planned = PlannedBatch(0, (PlannedRows(name, TASKS[name], np.arange(11)),))
        batches = build_batches(planned, DATA, negatives_per_query=1, seed=1)
        ids = token_ids(tokenizer, [t for b in batches for _, texts in b.text_groups for t in texts], max_tokens=64)
        sharded = shard_batch(
            ids, rank=engine.rank, world=engine.world, micro_batch_tokens=CHUNK_TOKENS, packed=engine.packed
        )
        engine.activation_tokens = ACTIVATIONS[way]
        backward(sharded, engine.forward, partial(of_batches, batches, training), engine)
        found[name, temperature, way] = of_weights(engine)
        engine.update(0.0)  # clears the gradients and changes nothing
    return found


def of_batches(batches, training, vector_ND):
    return loss_of(batches, vector_ND, training, teacher_ND=teacher_of(vector_ND, training))


def teacher_of(vector_ND, training):
    """Vectors of a teacher, random and always the same; None without one."""
    if not training.distillation.teacher:
        return None
    random = torch.randn(vector_ND.shape, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(random, dim=1)


def torch_gradient(engine):
    return torch.cat([one.grad.flatten() for one in engine.model.parameters() if one.grad is not None])


def plain_gradients(recipe, folder):
    """Without anything of ours between the texts and the loss: one padded forward pass and torch's own backward."""
    found = model_of(folder)
    disable_dropout(found.model)
    gathered = {}
    for name, temperature in itertools.product(TASKS, TEMPERATURES):
        training = recipe.training.model_copy(
            update={"temperature": temperature, "cosent_temperature": temperature}
        )
        planned = PlannedBatch(0, (PlannedRows(name, TASKS[name], np.arange(11)),))
        batches = build_batches(planned, DATA, negatives_per_query=1, seed=1)
        texts = [text for batch in batches for _, kind in batch.text_groups for text in kind]
        tokens = found.tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        hidden = found.model.backbone(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        found.model.zero_grad()
        of_batches(batches, training, vectors).backward()
        gathered[name, temperature] = torch.cat(
            [one.grad.flatten() for one in found.model.parameters() if one.grad is not None]
        )
    return gathered


def assert_same(found, expected):
    for (name, temperature, way), gradient in found.items():
        wanted = expected[name, temperature]
        assert wanted.norm() > 0
        distance = float((gradient - wanted).norm() / wanted.norm())
        assert distance < TOLERANCE, (name, temperature, way, distance)


class StopError(Exception):
    """Ends a run as a kill would."""


class FakeRecorder:
    """Keeps metrics in memory; raises StopError after the checkpoint of its last step."""

    def __init__(self, last_step=None, folder=None):
        self.metrics, self.saved, self.last_step, self.folder = [], [], last_step, folder

    def record(self, metrics):
        self.metrics.append(metrics)

    def preempted(self):
        return False

    def stop_requested(self, _):
        return False

    def save(self, step):
        self.saved.append(step)
        if step == self.last_step:
            raise StopError

    def save_batch(self, batch):
        (self.folder / "batch.json").write_text(json.dumps(batch))
        return "batch.json"


def run(engine, recipe, plan, tokenizer, first_step=0, last_step=None, **stage):
    """Train and give back the losses; ``last_step`` stops as a killed job would."""
    recorder = FakeRecorder(last_step)
    with contextlib.suppress(StopError):
        train_stage(
            TrainingStage("stage2", plan, DATA, recipe, tokenizer, **stage), engine, recorder, first_step=first_step
        )
    return [one["loss"] for one in recorder.metrics]


def stage_plan(recipe):
    sizes = [DatasetSize(name, task, 11) for name, task in TASKS.items()]
    return BatchPlan(sizes, recipe.training.stage2, alpha=0.5, seed=1)
