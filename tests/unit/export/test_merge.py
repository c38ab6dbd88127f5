"""Merging: the formulas again in loops, what is refused, and folders that sentence-transformers loads."""

import gc
import json
import math
import shutil
import weakref

import pytest
import torch

from qzhou.encoder.backbone import load_backbone
from qzhou.encoder.export import save_sentence_transformer
from qzhou.errors import ModelError, RecipeError, StorageError
from qzhou.export.merge_models import merge_models
from qzhou.export.merge_weights import BLOCK, merge_states, slerp
from qzhou.run.models import weights_fingerprint

TEXTS = ["the sea is green", "what is the sum of a list", "paris"]


def states(count, seed=0):
    """Weights of some models of two tensors."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"matrix": torch.randn(3, 4, generator=generator), "bias": torch.randn(4, generator=generator)}
        for _ in range(count)
    ]


def named(found):
    return [(f"model {number}", state) for number, state in enumerate(found)]


@pytest.mark.parametrize("weights", [[1, 1], [0.7, 0.3], [2, 0, 5], [0, 0, 3, 1], [1] * 7])
def test_the_average_is_the_weighted_sum_of_each_number(weights):
    models = states(len(weights))

    merged = merge_states(named(models), weights)

    for key in ("matrix", "bias"):
        for place in range(merged[key].numel()):
            expected = sum(
                weight / sum(weights) * float(state[key].flatten()[place])
                for weight, state in zip(weights, models, strict=True)
            )
            assert float(merged[key].flatten()[place]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def slerp_by_hand(one, other, t):
    """Shoemake's formula over lists of Python's floats."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    angle = math.acos(dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other)))
    mine, theirs = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    return [mine * a + theirs * b for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("apart", [1.0, 0.01])
def test_slerp_is_the_formula_for_each_tensor(t, apart):
    first, change = states(2)
    second = {key: value + apart * change[key] for key, value in first.items()}

    merged = merge_states(named([first, second]), [1 - t, t], method="slerp")

    for key, value in merged.items():
        by_hand = slerp_by_hand(first[key].double().flatten().tolist(), second[key].double().flatten().tolist(), t)
        assert value.flatten().tolist() == pytest.approx(by_hand, rel=1e-6, abs=1e-7)
        assert value.shape == first[key].shape


def test_a_tensor_of_several_blocks_is_one_vector():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(BLOCK + 5, generator=generator) for _ in range(2))
    angle = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0).acos()

    expected = (0.3 * angle).sin() / angle.sin() * one + (0.7 * angle).sin() / angle.sin() * other

    assert torch.allclose(slerp(one, other, 0.7), expected, atol=1e-6)


def test_slerp_begins_and_ends_at_its_inputs():
    first, second = (state["matrix"].double() for state in states(2))

    assert torch.equal(slerp(first, second, 0.0), first)
    assert torch.equal(slerp(first, second, 1.0), second)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_of_unit_vectors_is_a_unit_vector_and_divides_the_angle(t):
    first, second = (
        torch.nn.functional.normalize(state["matrix"].double().flatten(), dim=0) for state in states(2)
    )

    found = slerp(first, second, t)

    assert float(found.norm()) == pytest.approx(1.0, abs=1e-12)
    assert math.acos(min(1.0, float(found @ first))) == pytest.approx(
        t * math.acos(float(first @ second)), abs=1e-7
    )


@pytest.mark.parametrize("factor", [1.0, 2.5, 0.0, -1.0])
def test_without_an_angle_slerp_is_the_straight_line(factor):
    first = states(1)[0]["matrix"]

    found = slerp(first, factor * first, 0.25)

    assert torch.allclose(found, (0.75 + 0.25 * factor) * first)


@pytest.mark.parametrize("method", ["average", "slerp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_merged_with_itself_is_itself(method, dtype):
    model = {key: value.to(dtype) for key, value in states(1)[0].items()}
    count = 2 if method == "slerp" else 7

    merged = merge_states(named([model] * count), [1.0] * (count - 1) + [0.3], method=method)

    for key, value in model.items():
        assert merged[key].dtype == torch.float32
        assert torch.equal(merged[key].to(dtype), value)


def test_inputs_are_left_as_they_are():
    models = states(3)
    before = [{key: value.clone() for key, value in state.items()} for state in models]

    merge_states(named(models), [1, 2, 3])

    for state, old in zip(models, before, strict=True):
        assert all(torch.equal(state[key], old[key]) for key in state)


@pytest.mark.slow
def test_only_one_model_is_held_at_a_time():
    """Ten 7B models must not have to fit."""
    alive: list[weakref.ref] = []

    class State(dict):
        """A dict that can be watched."""

    def read(number):
        gc.collect()
        assert not [one for one in alive if one() is not None]
        state = State(states(5)[number])
        alive.append(weakref.ref(state))
        return state

    merge_states(((f"model {number}", read(number)) for number in range(5)), [1] * 5)

    assert len(alive) == 5


def replaced(state, key, value):
    return {**state, key: value}


def test_weights_that_do_not_fit_are_named_with_both_models():
    first, second = states(2)
    nan = second["bias"].clone()
    nan[1] = math.nan
    cases = [
        ({"matrix": second["matrix"]}, r"'model 1' lacks weights that 'model 0' has: bias"),
        (replaced(second, "gate", second["bias"]), r"'model 0' lacks weights that 'model 1' has: gate"),
        (
            replaced(second, "matrix", torch.ones(4, 3)),
            r"matrix has the shape \[3, 4\] in 'model 0' and \[4, 3\] in",
        ),
        (replaced(second, "bias", nan), r"'model 1' has weights that are no numbers .*: bias"),
    ]

    for state, said in cases:
        with pytest.raises(ModelError, match=said):
            merge_states(named([first, state]), [1, 1])
    counts = [replaced(first, "steps", torch.tensor([number])) for number in (1, 2)]
    with pytest.raises(ModelError, match=r"steps.*'model 0'.*'model 1'"):
        merge_states(named(counts), [1, 1])
    assert merge_states(named([counts[0]] * 2), [1, 1])["steps"].item() == 1


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, math.nan], [1, math.inf]])
def test_weights_without_a_positive_sum_are_named(weights):
    with pytest.raises(RecipeError, match="the weights are"):
        merge_states(named(states(2)), weights)


def test_slerp_of_three_is_refused_with_the_reason():
    with pytest.raises(RecipeError, match=r"(?s)3 are named.*order.*average"):
        merge_states(named(states(3)), [1, 1, 1], method="slerp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_qwen2):
    """Writes a model as a run leaves it: the same backbone, moved by a seed."""

    def write(seed=0, *, prompts=None, pooling="mean", attention="bidirectional", dtype=torch.float32, widths=()):
        folder = tmp_path_factory.mktemp("trained") / "model"
        found = load_backbone(str(tiny_qwen2), pooling=pooling, attention=attention, dtype=torch.float32)
        torch.manual_seed(seed)
        with torch.no_grad():
            for one in found.model.parameters():
                one += 0.1 * torch.randn_like(one)
        if widths:
            found.model.backbone.config.matryoshka_dimensions = list(widths)
        prompts = {"query": "Instruct: Find\nQuery: ", "document": ""} if prompts is None else prompts
        save_sentence_transformer(found.model.to(dtype), found.tokenizer, folder, max_tokens=48, prompts=prompts)
        return folder

    return write


def vectors(folder, **arguments):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **arguments)


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_merged_models_give_the_vectors_of_weights_merged_by_hand(trained, tmp_path, method):
    one, other = trained(1), trained(2)
    by_hand = load_backbone(str(one), dtype=torch.float32)
    second = load_backbone(str(other), dtype=torch.float32).model.state_dict()
    with torch.no_grad():
        for name, value in by_hand.model.state_dict().items():
            if method == "average":
                value.copy_(0.75 * value + 0.25 * second[name])
            else:
                flat = slerp_by_hand(
                    value.double().flatten().tolist(), second[name].double().flatten().tolist(), 0.25
                )
                value.copy_(torch.tensor(flat).reshape(value.shape))
    save_sentence_transformer(by_hand.model, by_hand.tokenizer, tmp_path / "by_hand", max_tokens=48, prompts={})

    merge_models([str(one), str(other)], str(tmp_path / "merged"), method=method, weights=[3, 1])

    assert vectors(tmp_path / "merged") == pytest.approx(vectors(tmp_path / "by_hand"), abs=1e-6)
    origin = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert origin["method"] == method
    assert [one["weight"] for one in origin["models"]] == [0.75, 0.25]
    assert [one["weights_fingerprint"] for one in origin["models"]] == [
        weights_fingerprint(str(one)), weights_fingerprint(str(other)),
    ]  # fmt: skip
    assert vectors(tmp_path / "merged", prompt_name="query") == pytest.approx(
        vectors(tmp_path / "merged", prompt="Instruct: Find\nQuery: ")
    )


def test_a_merged_folder_is_complete_and_can_be_merged_again(trained, tmp_path):
    one = trained(1, dtype=torch.bfloat16, widths=(16, 8))
    other = trained(2, dtype=torch.bfloat16, widths=(8,))

    merge_models([str(one)] * 3, str(tmp_path / "itself"))
    merge_models([str(tmp_path / "itself"), str(other)], str(tmp_path / "both"))

    before, after = (load_backbone(str(place), dtype=torch.float32) for place in (one, tmp_path / "itself"))
    for name, value in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], value)
    assert after.tokenizer.model_max_length == 48
    files = {path.name for path in (tmp_path / "itself").rglob("*") if path.is_file()}
    assert files == {path.name for path in one.rglob("*") if path.is_file()} | {"merge.json"}
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert (config["dtype"], config["is_causal"], config["matryoshka_dimensions"]) == ("bfloat16", False, [8])


def test_a_run_stands_for_the_last_model_that_it_finished(trained, tmp_path):
    run, other = tmp_path / "run", trained(2)
    shutil.copytree(trained(1), run / "training" / "stage1" / "model")
    (run / "training" / "stage1" / "manifest.json").write_text("{}")
    shutil.copytree(trained(3), run / "model")  # exported halfway: there is no manifest

    merge_models([str(run), str(other)], str(tmp_path / "merged"))

    origin = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert origin["models"][0]["found"] == str(run / "training" / "stage1" / "model")
    with pytest.raises(ModelError, match="qzhou train"):
        merge_models([str(tmp_path), str(other)], str(tmp_path / "another"))


def test_models_that_are_of_another_kind_are_named_with_both_values(trained, tiny_bert, tiny_qwen2, tmp_path):
    one = trained(1)
    wider = tmp_path / "wider"
    shutil.copytree(one, wider)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    bare = tmp_path / "bare"
    shutil.copytree(one, bare)
    modules = json.loads((bare / "modules.json").read_text())
    (bare / "modules.json").write_text(json.dumps(modules[:2]))
    words = tmp_path / "words"
    shutil.copytree(one, words)
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    other_prompt = trained(2, prompts={"query": "Instruct: Look\nQuery: "})
    cases = [
        (tiny_bert, "the architecture is qwen2 .* bert"),
        (wider, "intermediate_size is 64 .* 128"),
        (trained(2, pooling="last"), "pooling is mean .* last"),
        (trained(2, attention="causal"), "attention is bidirectional .* causal"),
        (tiny_qwen2, "attention is bidirectional .* causal"),
        (bare, "normalisation is on .* off"),
        (words, r"the token '[ab]' is \d+ and \d+"),
        (other_prompt, r"the prompt 'query' is 'Instruct: Find.*'Instruct: Look.*--prompts-of"),
    ]

    for other, said in cases:
        with pytest.raises(ModelError, match=rf"(?s){said}") as refused:
            merge_models([str(one), str(other)], str(tmp_path / "merged"))
        assert str(one) in str(refused.value)
        assert str(other) in str(refused.value)


def test_prompts_are_joined_or_those_of_one_model(trained, tmp_path):
    one, other = (
        trained(1, prompts={"query": "a: ", "facts": "b: "}),
        trained(2, prompts={"query": "c: ", "kinds": "d: "}),
    )
    third = trained(3, prompts={"query": "a: ", "kinds": "d: "})

    merge_models([str(one), str(other)], str(tmp_path / "first"), prompts_of=str(other))
    merge_models([str(one), str(third)], str(tmp_path / "second"))

    found = [
        json.loads((tmp_path / name / "config_sentence_transformers.json").read_text())["prompts"]
        for name in ("first", "second")
    ]
    assert found[0] == {"query": "c: ", "kinds": "d: ", "document": ""}
    assert found[1] == {"query": "a: ", "facts": "b: ", "kinds": "d: ", "document": ""}


def test_files_that_lack_weights_are_refused_and_not_made_up(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    one, broken = trained(1), tmp_path / "broken"
    shutil.copytree(one, broken)
    weights = load_file(broken / "model.safetensors")
    key = next(name for name in weights if "down_proj" in name)
    save_file({name: value for name, value in weights.items() if name != key}, broken / "model.safetensors")

    with pytest.raises(ModelError, match=rf"broken.*{key}"):
        merge_models([str(one), str(broken)], str(tmp_path / "merged"))

    save_file(weights | {key: weights[key].T.contiguous()}, broken / "model.safetensors")
    with pytest.raises(ModelError, match=rf"broken.*other shapes.*{key}"):
        merge_models([str(one), str(broken)], str(tmp_path / "merged"))


def test_nothing_is_read_for_a_command_that_cannot_be(tmp_path, monkeypatch):
    names = ["/no/such/model", "/nor/this"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("mining")
    cases = [
        ({"names": names[:1], "into": "x"}, RecipeError, "1 model is named"),
        ({"names": names, "into": "x", "weights": [1]}, RecipeError, "--weights has 1 numbers for 2 models"),
        ({"names": names, "into": "x", "weights": [0, 0]}, RecipeError, "sum to 0"),
        ({"names": [*names, "c"], "into": "x", "method": "slerp"}, RecipeError, "slerp is between two"),
        ({"names": names, "into": "x", "prompts_of": "c"}, RecipeError, "--prompts-of is 'c'"),
        ({"names": names, "into": str(full)}, StorageError, "full.*there are files in it"),
        ({"names": names, "into": str(full / "kept.txt" / "x")}, StorageError, "--into: .*kept.txt/x"),
        ({"names": names, "into": str(tmp_path / "new")}, ModelError, "/no/such/model"),
    ]

    for arguments, error, said in cases:
        with pytest.raises(error, match=said):
            merge_models(**arguments)
    assert (full / "kept.txt").read_text() == "mining"
    uploaded = tmp_path / "working_dir_files" / "job"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    with pytest.raises(StorageError, match="goes with it"):
        merge_models(names, "merged")


def test_a_dry_run_writes_nothing(trained, tmp_path, capsys):
    merge_models([str(trained(1)), str(trained(2))], str(tmp_path / "merged"), dry_run=True)

    assert not (tmp_path / "merged").exists()
    assert "can be merged" in capsys.readouterr().out
