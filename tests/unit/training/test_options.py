"""What the paper lacks: adapters, a soft mask, a teacher."""

import copy

import pytest
import torch

from qzhou.config.training import DistillationSection, LoraSection
from qzhou.data.storage import Folder
from qzhou.encoder import load_backbone
from qzhou.encoder.attention import Padded, soft_causal_mask
from qzhou.encoder.backbone import load_recipe_model
from qzhou.encoder.encoder import Encoder
from qzhou.errors import TrainingError
from qzhou.training.backbone_mix import mix_best
from qzhou.training.distillation import Teacher
from qzhou.training.lora import add_adapters, merge_adapters
from qzhou.training.validation import PairSet
from qzhou.training.worker import write_model
from tests.ranks.problem import COLOURS, model_of, run, stage_plan, three_tasks, with_training
from tests.torch_engine import TorchEngine

CPU = torch.device("cpu")
IDS = [[5, 9, 11, 3], [7, 8]]


def vectors(model, tokenizer):
    with torch.no_grad():
        return model.eval()(Padded.of(IDS, CPU, pad_token=tokenizer.pad_token_id))


def test_adapters_learn_and_the_rest_stays_and_the_merged_model_is_the_trained_one(make_recipe, tiny_qwen2):
    recipe = three_tasks(make_recipe, lora=LoraSection(rank=4))
    found = model_of(tiny_qwen2)
    before = copy.deepcopy(found.model.state_dict())
    engine = TorchEngine(add_adapters(found.model, recipe.training.lora), found.tokenizer, recipe.training)
    losses = run(engine, recipe, stage_plan(recipe), found.tokenizer)
    trained = vectors(engine.model, found.tokenizer)

    again = add_adapters(model_of(tiny_qwen2).model, recipe.training.lora)
    again.load_state_dict(engine.full_state())
    plain = merge_adapters(again)

    assert losses[-1] != losses[0]
    assert not torch.allclose(trained, vectors(model_of(tiny_qwen2).model, found.tokenizer), atol=1e-3)
    assert torch.allclose(vectors(plain, found.tokenizer), trained, atol=1e-5)
    assert plain.state_dict().keys() == before.keys()
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith("proj.weight") for name in changed)


def test_a_layer_that_the_model_does_not_have_is_named(tiny_qwen2):
    with pytest.raises(TrainingError, match="no_such_layer"):
        add_adapters(model_of(tiny_qwen2).model, LoraSection(rank=4, target_modules=("no_such_layer",)))


def attended(tiny_qwen2, attention, soft_mask_weight=None):
    found = load_backbone(str(tiny_qwen2), attention=attention, dtype=torch.float32)
    texts = Padded.of(IDS, CPU, pad_token=found.tokenizer.pad_token_id)
    if soft_mask_weight is not None:
        bias = soft_causal_mask(texts.attention_mask, soft_mask_weight, torch.float32)
        texts = Padded(texts.input_ids, texts.attention_mask, bias)
    with torch.no_grad():
        return found.model.eval()(texts)


def test_a_closed_mask_is_causal_attention_and_an_open_one_bidirectional(tiny_qwen2):
    causal, bidirectional = (attended(tiny_qwen2, kind) for kind in ("causal", "bidirectional"))

    assert not torch.allclose(causal, bidirectional, atol=1e-3)
    assert torch.allclose(attended(tiny_qwen2, "bidirectional", 0.0), causal, atol=1e-5)
    assert torch.allclose(attended(tiny_qwen2, "bidirectional", 1.0), bidirectional, atol=1e-5)


def test_a_half_open_mask_halves_the_attention_to_later_tokens():
    """The formula in loops: weights are proportional to e^score, times the soft_mask_weight for later tokens."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 4, 8)
    mask = soft_causal_mask(torch.tensor([[1, 1, 1, 0]]), 0.5, torch.float32)

    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)[0, 0]

    for i in range(3):
        weight = [
            float(torch.exp(query[0, 0, i] @ key[0, 0, j] / 8**0.5)) * (0.5 if j > i else 1) for j in range(3)
        ]
        expected = sum(weight[j] / sum(weight) * value[0, 0, j] for j in range(3))
        assert torch.allclose(found[i], expected, atol=1e-5)


@pytest.mark.slow
def test_a_stage_with_a_soft_mask_trains(make_recipe, tiny_qwen2):
    recipe = three_tasks(make_recipe)
    stage = recipe.training.stage2.model_copy(update={"soft_mask_steps": 4})
    recipe = three_tasks(make_recipe, stage2=stage)
    losses = []
    for wanted in (recipe, three_tasks(make_recipe)):
        found = model_of(tiny_qwen2)
        engine = TorchEngine(found.model, found.tokenizer, wanted.training)
        losses.append(run(engine, wanted, stage_plan(wanted), found.tokenizer))

    assert len(losses[0]) == 6
    assert losses[0][0] != losses[1][0]


@pytest.mark.slow
def test_a_teacher_that_is_the_model_itself_changes_nothing_at_the_first_step(make_recipe, tiny_qwen2):
    teacher = Teacher.load(str(tiny_qwen2), device=CPU, dtype=torch.float32)
    found = load_backbone(str(tiny_qwen2), dtype=torch.float32)
    alone, taught = (
        three_tasks(make_recipe, distillation=DistillationSection(teacher=name)) for name in ("", "itself")
    )
    losses = []
    for recipe, who in ((alone, None), (taught, teacher)):
        engine = TorchEngine(copy.deepcopy(found.model), found.tokenizer, recipe.training)
        losses.append(run(engine, recipe, stage_plan(recipe), found.tokenizer, teacher=who))

    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    assert losses[0][1:] != pytest.approx(losses[1][1:], abs=1e-5)
    assert not any(one.requires_grad for one in teacher.model.parameters())


@pytest.mark.parametrize("expected", [0.0, 0.5, 1.0])
def test_the_share_that_validates_best_is_taken(make_recipe, tiny_qwen2, expected):
    """The gold scores of pairs are the cosines of one mix of the weights, in loops; so this mix orders them best."""
    backbone = {"backbone": str(tiny_qwen2), "dtype": "float32", "attention": "bidirectional"}
    recipe = three_tasks(make_recipe)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=backbone)})
    untouched, trained = (load_recipe_model(recipe.model, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for weight in trained.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    before = copy.deepcopy(trained.model.state_dict())
    left = [f"the {colour} is a text" for colour in COLOURS]
    right = [f"{colour} {other}" for colour, other in zip(COLOURS, COLOURS[3:] + COLOURS[:3], strict=True)]
    mixed = copy.deepcopy(trained.model)
    with torch.no_grad():
        for name, weight in mixed.state_dict().items():
            weight.copy_((1 - expected) * before[name] + expected * untouched.model.state_dict()[name])
    a, b = (Encoder(mixed, trained.tokenizer, max_tokens=64).encode(texts) for texts in (left, right))
    gold = PairSet(left, right, [float(one @ other) for one, other in zip(a, b, strict=True)])

    found, scores = mix_best(recipe, trained, [gold], (0.0, 0.5, 1.0))

    assert (found, scores[expected]) == (expected, 1.0)
    assert all(score < 1.0 for share, score in scores.items() if share != expected)
    for name, weight in trained.model.state_dict().items():
        assert torch.allclose(weight, mixed.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("lora", [LoraSection(), LoraSection(rank=4)])
def test_a_share_of_the_backbone_is_in_the_model_that_a_stage_ends_with(make_recipe, tiny_qwen2, tmp_path, lora):
    """In loops over the weights; the share of one stage is not that of the other."""
    recipe = three_tasks(make_recipe, lora=lora)
    backbone = {"backbone": str(tiny_qwen2), "dtype": "float32", "saved_dtype": "float32"}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=backbone)})
    stage2 = recipe.training.stage2.model_copy(update={"backbone_share": 0.25})
    recipe = with_training(recipe, stage2=stage2)
    untouched = load_recipe_model(recipe.model, dtype=torch.float32).model
    before = copy.deepcopy(untouched.state_dict())
    trained = add_adapters(untouched, lora)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    state = copy.deepcopy(trained.state_dict())
    alone = merge_adapters(trained).state_dict()

    for stage, share in (("stage1", 0.0), ("stage2", 0.25)):
        write_model(recipe, stage, str(tiny_qwen2), state, Folder.open(str(tmp_path / stage)))
        written = load_recipe_model(
            recipe.model, spec=str(tmp_path / stage), dtype=torch.float32
        ).model.state_dict()
        assert written.keys() == before.keys()
        for name, weight in written.items():
            expected = (1 - share) * alone[name] + share * before[name]
            assert torch.allclose(weight, expected, atol=1e-6), (stage, name)
