"""What training costs: numbers worked out by hand, operations counted one product at a time."""

import dataclasses
from pathlib import Path

import pytest

from qzhou.config.training import StageSection, TrainingSection
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.data.storage import Folder, write_records
from qzhou.errors import DataError, ModelError, RecipeError
from qzhou.estimate.hardware import gpu_named
from qzhou.estimate.lengths import texts_of
from qzhou.estimate.model_shape import ModelShape, published_shapes, shape_from_config, shape_of
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.training import (
    ACTIVATION_TOKENS,
    MICRO_BATCH_TOKENS,
    DatasetTexts,
    EncodedTexts,
    StepGroup,
    TrainingMemory,
    TrainingMethod,
    TrainingStageCost,
    expected_steps,
    gpu_hours,
)
from qzhou.estimate.training_details import training_details
from qzhou.run.files import MANIFEST
from qzhou.training.batch_plan import BatchPlan, DatasetSize
from tests.slim import without_torch_and_ray

ROOT = Path(__file__).parents[3]
SEVEN_B = published_shapes()["Qwen/Qwen2.5-7B-Instruct"]
SMALL = ModelShape(
    kind="qwen3", vocabulary=50, layers=3, width=8, feed_forward=20, heads=4, key_value_heads=2, head_width=3
)
STAGE = {"steps": 8000, "learning_rate": 1e-5, "batch_size": 256, "cosent_batch_size": 768, "retrieval_share": 0.72}
TRAINING = TrainingSection(stage1=STAGE, stage2=STAGE, negatives_per_query=4)
SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def texts(name="d", task="retrieval", rows=None, queries=10.0, documents=100.0, negatives=4.0):
    return DatasetTexts(
        name=name,
        task=task,
        rows=rows,
        query=EncodedTexts.one(queries),
        document=EncodedTexts.one(documents),
        negatives=negatives,
    )


def test_the_papers_backbone_has_the_parameters_that_are_published():
    attention = 3584 * 3584 + 2 * 3584 * 512 + 3584 * 3584
    feed_forward = 3 * 3584 * 18_944
    small = (3584 + 512 + 512) + 2 * 3584  # biases of queries, keys and values; two norms

    assert SEVEN_B.matrix_parameters == 28 * (attention + feed_forward) == 6_525_288_448
    assert SEVEN_B.parameters == 152_064 * 3584 + 28 * (attention + feed_forward + small) + 3584 == 7_070_619_136


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "num_key_value_heads": 2},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
        {"model_type": "llama", "num_key_value_heads": 2, "attention_bias": True},
        {"model_type": "llama", "num_key_value_heads": 4},
        {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 8},
        {"model_type": "bert", "max_position_embeddings": 40, "type_vocab_size": 2},
        {"model_type": "xlm-roberta", "max_position_embeddings": 40, "type_vocab_size": 1},
    ],
    ids=lambda config: config["model_type"],
)
def test_parameters_are_those_of_the_librarys_model(config):
    assert shape_from_config(config | SIZES, "test").parameters == parameters_by_transformers(config | SIZES)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-Embedding-0.6B", "BAAI/bge-m3"])
def test_a_published_shape_is_one_that_the_library_builds(name):
    shape = published_shapes()[name]
    config = {
        "model_type": shape.kind,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": shape.positions or 512,
        "type_vocab_size": shape.token_types,
    }

    assert shape_from_config(config, name) == shape
    assert shape.parameters == parameters_by_transformers(config)


def parameters_by_transformers(config):
    """Counted on a model without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(**config))
    return sum(one.numel() for one in model.parameters())


def multiplications(shape, lengths):
    """Of the weights' products and of attention's, counted one product at a time."""
    weights = attention = 0
    for length in lengths:
        for _ in range(shape.layers):
            for rows, columns in [(8, 12), (8, 6), (8, 6), (12, 8), (8, 20), (8, 20), (20, 8)]:
                weights += length * rows * columns  # query, key, value, output, gate, up, down
            for _ in range(shape.heads):
                attention += length * length * 3  # queries with keys
                attention += length * length * 3  # shares with values
    return weights, attention


@pytest.mark.parametrize(
    ("settings", "weights_passes", "attention_passes"),
    [
        ({}, 3, 3),
        ({"gradient_checkpointing": True}, 4, 4),
        ({"frozen": True}, 2, 3),
        ({"frozen": True, "gradient_checkpointing": True}, 3, 4),
        ({"teacher": SMALL}, 4, 4),
    ],
)
def test_operations_are_those_of_every_product(settings, weights_passes, attention_passes):
    lengths = [1, 7, 12]
    weights, attention = multiplications(SMALL, lengths)
    work = EncodedTexts.mean(lengths) * len(lengths)

    flops = TrainingMethod(shape=SMALL, **settings).flops(work)

    assert work.tokens == pytest.approx(20)
    assert flops == pytest.approx(2 * (weights_passes * weights + attention_passes * attention), rel=1e-12)


def test_what_a_gpu_does_not_hold_is_encoded_twice():
    """A step of 1,000 tokens on 4 GPUs that hold 200 each: 200 of them are encoded again."""
    work = EncodedTexts.one(100) * 10
    cost = TrainingStageCost(
        [StepGroup("retrieval", 7.0, work)], TrainingMethod(shape=SMALL, activation_tokens=200)
    )
    weights, attention = multiplications(SMALL, [100] * 10)

    assert cost.tokens_twice(4) == pytest.approx(7 * 200)
    assert cost.tokens_twice(5) == 0
    assert cost.flops == cost.flops_on(5) == pytest.approx(7 * 3 * 2 * (weights + attention))
    assert cost.flops_on(4) == pytest.approx(7 * 3.2 * 2 * (weights + attention))


def saved_bytes(config, layers):
    """Bytes a token that torch keeps for the backward pass of a model in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**config | {"num_hidden_layers": layers})
    model = AutoModel.from_config(config, attn_implementation="sdpa").to(torch.bfloat16).train()
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.ones(1, 32, dtype=torch.long)).last_hidden_state.float().sum()
    return sum(one.nbytes() for one in kept.values()) / 32


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "num_key_value_heads": 2},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
        {"model_type": "llama", "num_key_value_heads": 4},
        {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 16},
        {"model_type": "bert", "max_position_embeddings": 40, "type_vocab_size": 2, **NO_DROPOUT},
    ],
    ids=lambda config: config["model_type"],
)
def test_activations_are_those_that_torch_keeps(config):
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 144, "use_cache": False}
    shape = shape_from_config(config | sizes, "test")

    measured = (saved_bytes(config | sizes, 4) - saved_bytes(config | sizes, 2)) / 2

    of_all, _ = shape.activation_bytes(recomputed=False)
    assert of_all / shape.layers == pytest.approx(measured, rel=0.03)
    assert shape.activation_bytes(recomputed=True) == (2 * 64 * shape.layers, of_all // shape.layers)


def test_what_gpus_send_by_hand():
    method = TrainingMethod(shape=SEVEN_B, activation_tokens=20, micro_batch_tokens=10)
    whole = 2 * SEVEN_B.parameters * 3 / 4  # all weights, to and from three others

    # 45 tokens on each GPU: five passes, of which three are beyond what is held
    sent = [method.sent_bytes(180, zero_stage=stage, gpus=4) / whole for stage in range(4)]

    assert sent == pytest.approx([2, 2, 1 + 4, 5 + 3 + 5 + 4])
    assert method.sent_bytes(180, zero_stage=3, gpus=1) == 0
    adapters = dataclasses.replace(method, frozen=True)
    assert [adapters.sent_bytes(180, zero_stage=stage, gpus=4) / whole for stage in (1, 3)] == [0, 5 + 3 + 5]


def test_a_gpu_holds_as_much_as_the_engine_lets_it():
    from qzhou.training.engine import ACTIVATION_TOKENS as ENGINES
    from qzhou.training.engine import MICRO_BATCH_TOKENS as PASSES

    assert ENGINES["cuda"] == ACTIVATION_TOKENS
    assert PASSES["cuda"] == MICRO_BATCH_TOKENS


@pytest.mark.parametrize(
    ("task", "count", "tokens"),
    [
        ("retrieval", 256 * 6, 256 * 10 + 256 * 5 * 100),
        ("pair", 2 * 768, 2 * 768 * 100),
        ("classification", 256 * 6, 256 * 6 * 100),
    ],
)
def test_a_step_encodes_all_texts_of_its_batch(task, count, tokens):
    share = 1.0 if task == "retrieval" else 0.0
    (step,) = expected_steps([texts(task=task)], TRAINING, StageSection(**STAGE | {"retrieval_share": share}))

    assert (step.task, step.count) == (task, 8000)
    assert (step.texts.texts, step.texts.tokens) == (count, tokens)


def test_a_dataset_smaller_than_a_batch_gives_all_it_has():
    small = texts(rows=100, negatives=1.5)
    (step,) = expected_steps([small], TRAINING, StageSection(**STAGE | {"retrieval_share": 1.0}))

    assert step.texts.texts == 100 * 3.5


SETS = [texts("a", rows=900), texts("b", rows=100), texts("p", "pair", rows=400), texts("c", "classification", 400)]


def test_steps_go_to_datasets_as_the_plan_draws_them():
    found = expected_steps(SETS, TRAINING, StageSection(**STAGE))

    assert [one.count for one in found] == pytest.approx([5760 * 0.75, 5760 * 0.25, 1120, 1120])


@pytest.mark.slow
@pytest.mark.parametrize("grouping", ["dataset", "task", "none"])
def test_a_stage_encodes_as_many_texts_as_its_plan(grouping):
    """The plan draws rows by chance: within a few of a hundred."""
    stage = StageSection(**STAGE | {"batch_size": 10, "cosent_batch_size": 30})
    training = TRAINING.model_copy(update={"grouping": grouping})
    plan = BatchPlan([DatasetSize(one.name, one.task, one.rows) for one in SETS], stage, alpha=0.5, seed=1,
                     grouping=grouping)  # fmt: skip
    per_row = {one.name: one.example.texts for one in SETS}
    drawn = sum(per_row[part.dataset] * len(part.rows) for step in range(8000) for part in plan.at(step).parts)

    cost = TrainingStageCost(expected_steps(SETS, training, stage), TrainingMethod(shape=SMALL))

    assert cost.texts.texts == pytest.approx(drawn, rel=0.03)
    assert sum(one.count for one in cost.steps) == pytest.approx(8000)


def test_a_stage_without_data_for_its_share_is_named():
    with pytest.raises(DataError, match=r"0\.72.*no pair or classification"):
        expected_steps([texts()], TRAINING, StageSection(**STAGE))


def test_hours_and_memory_by_hand():
    whole, adapters = (
        TrainingMemory(parameters=1000, trained=1000),
        TrainingMemory(parameters=1000, trained=80, teacher=500),
    )

    assert gpu_hours(989e12 * 0.4 * 7200, gpu=gpu_named("H100"), utilisation=0.4) == pytest.approx(2)
    assert gpu_hours(312e12 * 3600, gpu=gpu_named("A100"), utilisation=1.0) == pytest.approx(1)
    assert [whole.per_gpu(zero_stage=stage, gpus=8) for stage in range(4)] == [
        16_000, 4000 + 1500, 2000 + 1750, 2000,
    ]  # fmt: skip
    assert (
        TrainingMemory(parameters=1000, trained=1000, bfloat16=False).per_gpu(zero_stage=1, gpus=8) == 8000 + 1000
    )
    assert TrainingMemory(parameters=1000, trained=1000, offloaded=True).per_gpu(zero_stage=1, gpus=8) == 4000
    assert adapters.per_gpu(zero_stage=3, gpus=8) == 1000 + (2000 + 160 + 960) / 8


def test_adapters_have_two_thin_matrices_for_each_of_the_layers():
    pairs = [(12, 8), (6, 8), (6, 8), (8, 12), (20, 8), (20, 8), (8, 20)]

    assert SMALL.adapter_parameters(4) == 3 * sum(4 * rows + 4 * columns for rows, columns in pairs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu": "V9"}, "V9.*A100, H100, H200"),
        ({"utilisation": 0.0}, "--utilisation is 0"),
        ({"utilisation": float("nan")}, "--utilisation is nan"),
        ({"mean_query_tokens": -1.0}, "--mean-query-tokens is -1"),
        ({"mean_document_tokens": float("inf")}, "--mean-document-tokens is inf"),
    ],
)
def test_options_out_of_range_are_named(make_recipe, options, said):
    with pytest.raises(RecipeError, match=said):
        training_details(make_recipe(model={"backbone": "BAAI/bge-m3"}), PlanOptions(**options))


def test_a_backbone_that_is_nowhere_is_named_with_the_way_out(tmp_path):
    with pytest.raises(ModelError, match=r"(?s)some/model.*hf download some/model config\.json.*Qwen/Qwen2\.5-7B"):
        shape_of("some/model")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match=r"'mamba'.*qwen2"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    with pytest.raises(ModelError, match="hidden_size"):
        shape_of(str(tmp_path))


def test_assumed_lengths_keep_to_the_recipes_limits(make_recipe):
    recipe = make_recipe(model={"backbone": "BAAI/bge-m3", "max_query_tokens": 30, "max_document_tokens": 500})

    assumed = texts_of(recipe, PlanOptions())
    told = texts_of(recipe, PlanOptions(mean_query_tokens=20, mean_document_tokens=900))

    assert "ASSUMED" in assumed.source
    assert [(one.query.tokens, one.document.tokens) for one in assumed.datasets] == [(30, 200)]
    assert [(one.query.tokens, one.document.tokens) for one in told.datasets] == [(20, 500)]


@pytest.fixture
def mined(make_recipe, tiny_qwen2):
    """A recipe whose run has been mined: three datasets of 30 examples."""
    kinds = {"facts": "title_body", "alike": "scored_pair", "kinds": "labeled"}
    recipe = make_recipe(
        model={"backbone": str(tiny_qwen2), "max_query_tokens": 9, "max_document_tokens": 12},
        datasets=[
            {"name": name, "reader": "jsonl", "rule": rule, "paths": ["x"], "instruction": "Find"}
            for name, rule in kinds.items()
        ],
        training={"negatives_per_query": 2},
    )
    stage = Folder.open(recipe.run.storage) / "tiny" / "mining"
    sides = [("the sea " * (number % 5 + 1), "a red tree is green " * (number % 4 + 1)) for number in range(30)]
    negatives = (Negative(text="the list of paris", origin="mined"),)
    rows = {
        "retrieval/facts": [
            RetrievalExample(id=str(n), dataset="facts", query=a, positives=(b,), negatives=negatives * (n % 4))
            for n, (a, b) in enumerate(sides)
        ],
        "pair/alike": [
            PairExample(id=str(n), dataset="alike", text_a=a, text_b=b, score=1) for n, (a, b) in enumerate(sides)
        ],
        "classification/kinds": [
            LabeledExample(id=str(n), dataset="kinds", text=a, label=str(n % 3)) for n, (a, _) in enumerate(sides)
        ],
    }
    for place, records in rows.items():
        write_records(stage / "examples" / place, records, type(records[0]))
    stage.write_json(MANIFEST, {})
    return recipe, rows


def test_lengths_are_counted_in_the_runs_own_examples(mined):
    from transformers import AutoTokenizer

    recipe, rows = mined
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.backbone)
    asked, answered, negatives = [], [], 0
    for one in rows["retrieval/facts"]:
        asked.append(min(9, len(tokenizer("Instruct: Find\nQuery: " + one.query)["input_ids"])))
        kept = one.negatives[:2]
        negatives += len(kept)
        for text in (one.positives[0], *(negative.text for negative in kept)):
            answered.append(min(12, len(tokenizer(text)["input_ids"])))
    sides = [
        min(12, len(tokenizer("Instruct: Find\nQuery: " + text)["input_ids"]))
        for one in rows["pair/alike"]
        for text in (one.text_a, one.text_b)
    ]

    found = texts_of(recipe, PlanOptions())

    facts, alike, kinds = found.datasets
    assert "by the backbone's tokenizer" in found.source
    assert [one.rows for one in found.datasets] == [30, 30, 30]
    assert facts.query.tokens == pytest.approx(sum(asked) / 30)
    assert facts.document.tokens == pytest.approx(sum(answered) / len(answered))
    assert facts.document.squares == pytest.approx(sum(one * one for one in answered) / len(answered))
    assert facts.negatives == pytest.approx(negatives / 30)
    assert alike.document.tokens == pytest.approx(sum(sides) / 60)
    assert kinds.negatives == 2


def test_the_command_line_has_the_last_word_on_lengths(mined):
    recipe, _ = mined

    facts, alike, kinds = texts_of(recipe, PlanOptions(mean_query_tokens=5)).datasets

    assert (facts.query.tokens, alike.document.tokens, facts.rows) == (5, 5, 30)
    assert facts.document.tokens != 5
    assert kinds.document.tokens != 5


def test_the_estimate_of_the_papers_run_is_printed_without_torch_and_ray():
    """From the repository as it is: no hub, no bucket, in a second or two."""
    said = without_torch_and_ray("jobs/plan.py", "recipes/qzhou-7b.toml", "--stage", "training")

    # stage 1: 32,000 steps of 256 queries of 40 tokens and 1,280 documents of 200, four forward passes each
    tokens, squares = 32_000 * (256 * 40 + 1280 * 200), 32_000 * (256 * 40**2 + 1280 * 200**2)
    flops = 4 * (2 * 6_525_288_448 * tokens + 4 * 28 * 3584 * squares)
    assert f"32,000 steps (32,000 retrieval): 49,152,000 texts, {tokens:.3g} tokens, {flops:.3g} FLOPs" in said
    assert "7,070,619,136 parameters" in said
    assert "gradient checkpointing is on" in said
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["8"], ["32"], ["64"])]
    # a step has 266,240 tokens, and 8 GPUs hold 262,144; layers' inputs of all that is held, and one layer of a pass
    largest = 256 * 6 * 200  # a step of classification
    of_layer = 8 * 18_944 + 16 * 3584 + 4 * (3584 + 512)
    bytes_of = [
        16 * 7_070_619_136 / count
        + 2 * 3584 * 28 * min(largest / count, 32_768)
        + of_layer * min(largest / count, 16_384)
        for count in (8, 32, 64)
    ]
    assert [float(row[-1]) for row in rows] == pytest.approx([one / 2**30 for one in bytes_of], rel=0.01)
    assert [row[1] for row in rows] == ["1.8%", "0.0%", "0.0%"]
    # ZeRO 1: gradients are reduced and weights gathered, 2 bytes each, at 200 GB/s
    hours = [
        32_000 * 2 * 2 * 7_070_619_136 * (count - 1) / count / 200e9 / 3600
        + flops * more / (989e12 * 0.4) / 3600 / count
        for count, more in ((8, 1 + (1 - 262_144 / 266_240) / 4), (32, 1), (64, 1))
    ]
    assert [row[4] for row in rows] == [f"{one:.1f}" for one in hours]
    assert "MFU 30%" in said
