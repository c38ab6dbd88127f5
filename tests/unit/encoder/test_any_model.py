"""Models of other people: what they declare is what is computed, or they are refused before anything is paid."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    XLMRobertaConfig,
)

from qzhou.encoder import load_text_encoder
from qzhou.encoder.attention import Packed, Padded
from qzhou.encoder.backbone import is_causal, load_backbone, load_config, load_recipe_model
from qzhou.encoder.cpu.int8 import to_int8
from qzhou.encoder.encoder import encoder_of, load_encoder, packs_exactly
from qzhou.encoder.export import checked_parity, save_sentence_transformer
from qzhou.encoder.model_check import check_models
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import ModelError, RecipeError
from qzhou.mining.actors import RerankActor
from tests.conftest import WORDS

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.3, "max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
ARCHITECTURES = {
    "bert": BertConfig(**SIZES),
    "xlm-r": XLMRobertaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, **GROUPED),
    "qwen3": Qwen3Config(**SIZES, **GROUPED, head_dim=8),
    # windows of 8 tokens in one layer, as Gemma has them in five of six
    "gemma3": Gemma3TextConfig(
        **SIZES, **GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "llama": LlamaConfig(**SIZES, **GROUPED),
}
DECODERS = ("qwen2", "qwen3", "gemma3", "llama")
OLD_POOLING = {
    "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken", "cls": "pooling_mode_cls_token",
    "weightedmean": "pooling_mode_weightedmean_tokens", "max": "pooling_mode_max_tokens",
}  # fmt: skip
PROMPTS = {"query": "the query ", "document": "a text "}
TEXTS = ["the red tree", "sea", "what is the sum of the list", "paris is the answer " * 9, "query text is green"]
SAME = 0.9999


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Folders of random models without any word of embedding, by architecture."""
    root = tmp_path_factory.mktemp("bare")
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=100,
    )  # fmt: skip
    for name, config in ARCHITECTURES.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(root / name)
        fast.save_pretrained(root / name)
    return root


def declaring(
    bare, folder, *, pooling="mean", is_causal=None, prompts=None, normalised=True, dense=(), **pooling_keys
):
    """A copy of a bare model that declares what sentence-transformers would write for it."""
    shutil.copytree(bare, folder)
    kinds = ["Transformer", "Pooling", *("Dense" for _ in dense), *(["Normalize"] if normalised else [])]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": f"{n}_{kind}" if n else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    write(folder, "modules.json", modules)
    write(
        folder,
        "1_Pooling/config.json",
        {"word_embedding_dimension": 32, OLD_POOLING[pooling]: True, **pooling_keys},
    )
    for number, (width, activation) in enumerate(dense, start=2):
        torch.manual_seed(number)
        layer = torch.nn.Linear(32 if number == 2 else dense[number - 3][0], width)
        of_layer = {"in_features": layer.in_features, "out_features": width, "bias": True}
        write(folder, f"{number}_Dense/config.json", {**of_layer, "activation_function": activation})
        save_file(
            {f"linear.{name}": value for name, value in layer.state_dict().items()},
            folder / f"{number}_Dense" / "model.safetensors",
        )
    if normalised:
        (folder / f"{len(kinds) - 1}_Normalize").mkdir()
    if prompts:
        write(folder, "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})
    if is_causal is not None:
        config = json.loads((folder / "config.json").read_text())
        if "use_bidirectional_attention" in config:
            config |= {"use_bidirectional_attention": not is_causal}
        write(folder, "config.json", {**config, "is_causal": is_causal})
    return folder


def write(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def lowest_cosine(ours, theirs):
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    return (ours * theirs).sum(1).min()


def of_sentence_transformers(folder, texts, prompt=None):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, prompt=prompt)


def recipe_of(make_recipe, folder, **model):
    return make_recipe(model={"backbone": str(folder), "dtype": "float32", "max_document_tokens": 90, **model})


def vectors(found, texts=TEXTS):
    return encoder_of(found, max_tokens=90, device="cpu").encode(texts)


@pytest.mark.parametrize("pooling", OLD_POOLING)
@pytest.mark.parametrize("is_causal", [None, False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_embedding_model_is_computed_as_it_declares_by_every_door(
    bare, tmp_path, make_recipe, architecture, is_causal, pooling
):
    """Backbone, teacher, judged and served model, and the export of what was not trained yet."""
    prompted = pooling in {"mean", "lasttoken"}
    folder = declaring(
        bare / architecture, tmp_path / "model", pooling=pooling, is_causal=is_causal,
        prompts=PROMPTS if prompted else None, normalised=pooling != "cls",
    )  # fmt: skip
    expected = of_sentence_transformers(folder, TEXTS)
    recipe = recipe_of(make_recipe, folder)

    backbone = load_recipe_model(recipe.model, dtype=torch.float32)
    save_sentence_transformer(
        backbone.model, backbone.tokenizer, tmp_path / "export", max_tokens=90, prompts=backbone.prompts
    )
    doors = {
        "backbone": vectors(backbone),
        "judged backbone": load_text_encoder("", recipe.model, api_key_env="").encode(TEXTS),
        "teacher": load_text_encoder(str(folder), recipe.model, api_key_env="").encode(TEXTS),
        "served": load_encoder(str(folder), max_tokens=90, dtype="float32", device="cpu").encode(TEXTS),
        "export": of_sentence_transformers(tmp_path / "export", TEXTS),
        "export, continued": vectors(load_backbone(str(tmp_path / "export"), dtype=torch.float32)),
    }

    assert {door: bool(lowest_cosine(found, expected) >= SAME) for door, found in doors.items()} == dict.fromkeys(
        doors, True
    )
    if prompted:
        asked = of_sentence_transformers(folder, TEXTS, prompt=PROMPTS["query"])
        assert lowest_cosine(vectors(backbone, [PROMPTS["query"] + text for text in TEXTS]), asked) >= SAME
        assert backbone.prompts == PROMPTS


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_recipe_that_contradicts_the_model_is_obeyed_and_the_export_repeats_it(
    bare, tmp_path, make_recipe, architecture, attention, capsys
):
    declared = declaring(
        bare / architecture, tmp_path / "model", pooling="lasttoken", is_causal=attention != "causal"
    )
    wanted = declaring(bare / architecture, tmp_path / "wanted", pooling="mean", is_causal=attention == "causal")
    recipe = recipe_of(make_recipe, declared, attention=attention, pooling="mean")

    found = load_recipe_model(check_models(recipe).model, dtype=torch.float32)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=90, prompts={})

    expected = of_sentence_transformers(wanted, TEXTS)
    assert lowest_cosine(vectors(found), expected) >= SAME
    assert lowest_cosine(of_sentence_transformers(tmp_path / "export", TEXTS), expected) >= SAME
    said = capsys.readouterr().err
    assert "model.pooling 'mean' of the recipe replaces what" in said
    assert f"model.attention '{attention}' of the recipe stands" in said


# what config.json says, and in which direction the model then attends
DIRECTIONS = {
    "nothing": ({}, "causal"),
    "one": ({"is_causal": False}, "bidirectional"),
    "one, causal": ({"is_causal": True}, "causal"),
    "the other": ({"use_bidirectional_attention": True}, "bidirectional"),
    "the other, causal": ({"use_bidirectional_attention": False}, "causal"),
    "both": ({"is_causal": False, "use_bidirectional_attention": True}, "bidirectional"),
    "both, causal": ({"is_causal": True, "use_bidirectional_attention": False}, "causal"),
    "null": ({"is_causal": None}, "bidirectional"),
    "the other null": ({"use_bidirectional_attention": None}, "causal"),
    "null and the other": ({"is_causal": None, "use_bidirectional_attention": True}, "bidirectional"),
    "null against the other": ({"is_causal": None, "use_bidirectional_attention": False}, None),
    "contradiction": ({"is_causal": False, "use_bidirectional_attention": False}, None),
    "contradiction, both": ({"is_causal": True, "use_bidirectional_attention": True}, None),
}


@pytest.mark.parametrize("case", DIRECTIONS)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_either_spelling_of_the_direction_is_obeyed_and_both_are_exported(bare, tmp_path, architecture, case):
    """vLLM and llama.cpp read ``is_causal``, text-embeddings-inference ``use_bidirectional_attention``."""
    said, direction = DIRECTIONS[case]
    folder = declaring(bare / architecture, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | said)
    if direction is None:
        with pytest.raises(ModelError, match=r"is_causal = \w+ and use_bidirectional_attention = .*\n.*Say how"):
            load_backbone(str(folder), dtype=torch.float32)
        for attention in ("causal", "bidirectional"):
            load_backbone(str(folder), dtype=torch.float32, attention=attention)
        return
    wanted = declaring(bare / architecture, tmp_path / "wanted", is_causal=direction == "causal")

    found = load_backbone(str(folder), dtype=torch.float32)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=90, prompts={})

    expected = of_sentence_transformers(wanted, TEXTS)
    assert is_causal(found.model.backbone) == (direction == "causal")
    assert lowest_cosine(vectors(found), expected) >= SAME
    assert lowest_cosine(of_sentence_transformers(tmp_path / "export", TEXTS), expected) >= SAME
    exported = json.loads((tmp_path / "export" / "config.json").read_text())
    if said not in ({}, {"use_bidirectional_attention": None}):
        assert (exported["is_causal"], exported["use_bidirectional_attention"]) == (
            direction == "causal",
            direction == "bidirectional",
        )


@pytest.mark.parametrize("architecture", DECODERS)
def test_what_a_recipe_makes_bidirectional_says_so_to_every_engine(bare, tmp_path, make_recipe, architecture):
    found = load_recipe_model(check_models(recipe_of(make_recipe, bare / architecture)).model, dtype=torch.float32)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=90, prompts={})

    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (config["is_causal"], config["use_bidirectional_attention"]) == (False, True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bare_language_model_becomes_bidirectional_with_mean_pooling(bare, make_recipe, architecture, capsys):
    recipe = check_models(recipe_of(make_recipe, bare / architecture))

    found = load_recipe_model(recipe.model, dtype=torch.float32)

    first_token = [
        found.model.backbone(torch.tensor([[4, 5, last]])).last_hidden_state[0, 0] for last in (6, 7)
    ]  # fmt: skip
    assert found.model.pooling == "mean"
    assert not torch.allclose(*first_token, atol=1e-4)
    assert not capsys.readouterr().err


TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("dense", [[(48, IDENTITY)], [(48, TANH)], [(64, IDENTITY), (16, IDENTITY)]])
def test_layers_after_pooling_are_computed_trained_and_exported(bare, tmp_path, dense):
    """Of stella, the paper's own teacher (one layer), and of EmbeddingGemma (two)."""
    folder = declaring(bare / "bert", tmp_path / "model", dense=dense)

    found = load_backbone(str(folder), dtype=torch.float32)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=90, prompts={})

    expected = of_sentence_transformers(folder, TEXTS)
    assert found.model.dimensions == expected.shape[1] == dense[-1][0]
    assert read_metadata(str(tmp_path / "export")).dimensions == dense[-1][0]
    assert lowest_cosine(vectors(found), expected) >= SAME
    assert lowest_cosine(of_sentence_transformers(tmp_path / "export", TEXTS), expected) >= SAME
    exported = load_file(tmp_path / "export" / "2_Dense" / "model.safetensors")
    assert torch.equal(exported["linear.weight"], found.model.dense[0][0].weight)
    assert all(weight.requires_grad for weight in found.model.dense.parameters())


REFUSED = {
    "code of its own": ("config.json", {"auto_map": {"AutoModel": "modeling.OwnModel"}}, "brings code of its own"),
    "encoder-decoder": ("config.json", {"is_encoder_decoder": True}, "is an encoder with a decoder"),
    "prompt not pooled": ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt = false"),
    "unknown pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools by median"),
    "two poolings": ("1_Pooling/config.json", {"pooling_mode": ["cls", "max"]}, "pools by cls and max"),
    "root of the length": (
        "1_Pooling/config.json",
        {OLD_POOLING["mean"]: False, "pooling_mode_mean_sqrt_len_tokens": True},
        "pools by pooling_mode_mean_sqrt_len_tokens",
    ),
    "activation": ("2_Dense/config.json", {"activation_function": "own.Swish"}, "has an activation own.Swish"),
    "residual": ("2_Dense/config.json", {"use_residual": True}, "has a module Dense"),
    "of tokens": (
        "2_Dense/config.json",
        {"module_input_name": "token_embeddings"},
        "has a module Dense from token",
    ),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}, "lower-cases its texts"),
    "fewer layers": ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "sets config_args in"),
    "another tokenizer": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"add_special_tokens": False}},
        r"sets processing_kwargs in sentence_bert_config.json \(add_special_tokens\)",
    ),
    "queries of a length": ("sentence_bert_config.json", {"query_length": 32}, "sets query_length in"),
    "cut vectors": ("config_sentence_transformers.json", {"truncate_dim": 16}, "cuts its vectors to 16 components"),
    "a prompt before all": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "query"},
        "puts its prompt 'query' before every text",
    ),
    "lower case, older": ("sentence_roberta_config.json", {"do_lower_case": True}, "lower-cases its texts"),
}
KINDS = (
    "LSTM",
    "CNN",
    "WeightedLayerPooling",
    "WordWeights",
    "LayerNorm",
    "Router",
    "StaticEmbedding",
    "SpladePooling",
)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_with_one_sentence_by_every_door(bare, tmp_path, make_recipe, case):
    name, changed, said = REFUSED[case]
    folder = declaring(bare / "qwen2", tmp_path / "model", dense=[(16, IDENTITY)], prompts=PROMPTS)
    before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    write(folder, name, before | changed)
    doors = [
        lambda: check_models(recipe_of(make_recipe, folder)),
        lambda: check_models(make_recipe(mining={"teacher": str(folder)})),
        lambda: check_models(make_recipe(evaluation={"models": [str(folder)]})),
        lambda: load_recipe_model(recipe_of(make_recipe, folder).model, dtype=torch.float32),
        lambda: load_encoder(str(folder), max_tokens=90, device="cpu"),
    ]

    messages = set()
    for door in doors:
        with pytest.raises(ModelError, match=said) as refused:
            door()
        messages.add(str(refused.value))
    assert len(messages) == 1
    assert str(folder) in messages.pop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_is_not_computed_is_refused(bare, tmp_path, kind):
    folder = declaring(bare / "bert", tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": f"2_{kind}", "type": f"sentence_transformers.models.{kind}"})
    write(folder, "modules.json", modules)

    with pytest.raises(ModelError, match=f"has a module {kind}, which this encoder does not compute"):
        read_metadata(str(folder))


def test_a_module_of_a_model_s_own_is_refused(bare, tmp_path):
    folder = declaring(bare / "bert", tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    write(folder, "modules.json", [{**modules[0], "type": "custom_st.Transformer"}, *modules[1:]])

    with pytest.raises(ModelError, match=r"has a module of its own \(custom_st.Transformer\)"):
        read_metadata(str(folder))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_code_of_its_own_is_not_run_and_the_recipe_may_say_how_it_attends(bare, tmp_path, make_recipe, attention):
    """QZhou-Embedding and gte-Qwen2 are Qwen2 whose own code attends in both directions."""
    expected = of_sentence_transformers(
        declaring(bare / "qwen2", tmp_path / "same", is_causal=attention == "causal"), TEXTS
    )
    folder = declaring(bare / "qwen2", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {"auto_map": {"AutoModel": "modeling_qzhou.QZhouModel"}})
    model = {
        "backbone": str(folder), "dtype": "float32", "max_document_tokens": 90, "attention": attention,
        "attention_of": {str(folder): attention},
    }  # fmt: skip
    recipe = check_models(make_recipe(model=model, mining={"teacher": str(folder)}))

    as_backbone = load_recipe_model(recipe.model, dtype=torch.float32)
    as_teacher = load_text_encoder(str(folder), recipe.model, api_key_env="")
    save_sentence_transformer(
        as_backbone.model, as_backbone.tokenizer, tmp_path / "export", max_tokens=90, prompts={}
    )

    assert lowest_cosine(vectors(as_backbone), expected) >= SAME
    assert lowest_cosine(as_teacher.encode(TEXTS), expected) >= SAME
    # what was trained is the class of transformers, and needs no word of its own
    again = load_encoder(str(tmp_path / "export"), max_tokens=90, dtype="float32", device="cpu")
    assert lowest_cosine(again.encode(TEXTS), expected) >= SAME


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_are_packed_where_that_changes_no_vector(bare, tmp_path, architecture, is_causal):
    """Positions that begin at 2 (XLM-R) and windows (Gemma) are not packed: cosine 0.93 to 0.98 in a first version."""
    folder = declaring(bare / architecture, tmp_path / "model", is_causal=is_causal)
    found = load_backbone(str(folder), dtype=torch.float32)

    packed = packs_exactly(found.model, found.tokenizer)

    # a BERT whose config says causal attends in both directions all the same
    assert packed == (architecture not in {"xlm-r", "gemma3"} and not (architecture == "bert" and is_causal))
    if packed:
        ids = [found.tokenizer(text)["input_ids"] for text in TEXTS]
        device = torch.device("cpu")
        rows = [found.model(one) for one in (Packed.of(ids, device), Padded.of(ids, device, pad_token=1))]
        assert (rows[0] * rows[1]).sum(1).min() >= SAME


def test_a_teacher_truncates_where_it_declares(bare, tmp_path, make_recipe):
    folder = declaring(bare / "bert", tmp_path / "model")
    write(folder, "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    recipe = recipe_of(make_recipe, bare / "bert")

    found = load_text_encoder(str(folder), recipe.model, api_key_env="").encode(TEXTS)

    assert lowest_cosine(found, of_sentence_transformers(folder, TEXTS)) >= SAME


@pytest.mark.parametrize("model", [{}, {"max_document_tokens": 90}])
def test_a_backbone_truncates_where_it_declares_unless_the_recipe_says_otherwise(
    bare, tmp_path, make_recipe, model, capsys
):
    """MiniLM's 256 tokens were 1,536 as a backbone: other vectors than as a teacher, and a longer export."""
    folder = declaring(bare / "bert", tmp_path / "model")
    write(folder, "sentence_bert_config.json", {"max_seq_length": 12})
    recipe = make_recipe(model={"backbone": str(folder), "dtype": "float32"} | model)
    unset = {"model": recipe.model.model_copy()}
    unset["model"].model_fields_set.difference_update({"max_query_tokens", "max_document_tokens"} - set(model))

    checked = check_models(recipe.model_copy(update=unset)).model

    assert checked.max_query_tokens == 12
    assert checked.max_document_tokens == model.get("max_document_tokens", 12)
    said = "model.max_document_tokens (90) of the recipe stands, above what"
    assert (said in capsys.readouterr().err) == bool(model)
    if not model:
        found = load_text_encoder("", checked, api_key_env="").encode(TEXTS)
        assert lowest_cosine(found, of_sentence_transformers(folder, TEXTS)) >= SAME


def test_a_model_without_a_length_ends_at_its_positions(bare, tmp_path):
    folder = declaring(bare / "qwen3", tmp_path / "model")
    assert read_metadata(str(folder)).max_tokens == SIZES["max_position_embeddings"]


def test_a_copy_without_its_pooling_is_refused(bare, tmp_path, make_recipe):
    """Half a copy of a last-token model would have been mean-pooled."""
    folder = declaring(bare / "qwen3", tmp_path / "model", pooling="lasttoken")
    shutil.rmtree(folder / "1_Pooling")

    with pytest.raises(ModelError, match=r"has no 1_Pooling/config\.json, which its modules.json names"):
        check_models(recipe_of(make_recipe, folder))
    (folder / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json is no list of modules"):
        check_models(recipe_of(make_recipe, folder))


@pytest.mark.parametrize("attention", [None, "bidirectional"])
def test_code_that_a_model_brings_is_not_run_whoever_answers_yes(bare, tmp_path, monkeypatch, attention):
    folder = shutil.copytree(bare / "bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    write(folder, "config.json", {**config, "model_type": "own", "auto_map": own})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))

    with pytest.raises(ModelError):
        load_backbone(str(folder), attention=attention, dtype=torch.float32)
    with pytest.raises(ModelError):
        load_config(str(folder))
    assert not (tmp_path / "ran").exists()


class _Runs:
    """What a pickle may hold: a call of anything."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def pickled(folder, more):
    """The folder's weights as PyTorch wrote them before there was safetensors."""
    file = folder / "model.safetensors"
    torch.save({**load_file(file), **more}, file.with_name("pytorch_model.bin"))
    file.unlink()


@pytest.fixture(scope="module")
def whole(bare, tmp_path_factory):
    """A folder and what computes with it, by where its weights lie."""
    root = tmp_path_factory.mktemp("whole")
    CrossEncoder(str(bare / "bert"), num_labels=1, device="cpu").save_pretrained(str(root / "reranker"))
    declaring(bare / "bert", root / "embedding", dense=[(16, "torch.nn.modules.activation.Tanh")])
    return {
        "transformers": (root / "embedding", "", embedded),
        "dense layer": (root / "embedding", "2_Dense", embedded),
        "reranker": (
            root / "reranker",
            "",
            lambda made: RerankActor(str(made), 64).scores([("the red tree", "sea")]),
        ),
    }


def embedded(made):
    return vectors(load_backbone(str(made), dtype=torch.float32))


WHERE = pytest.mark.parametrize("where", ["transformers", "dense layer", "reranker"])


@WHERE
@pytest.mark.parametrize("is_evil", [False, True])
def test_weights_in_a_pickle_are_read_and_its_code_is_not_run(whole, tmp_path, where, is_evil):
    source, folder, compute = whole[where]
    made, evidence = shutil.copytree(source, tmp_path / "model"), tmp_path / "it ran"

    pickled(made / folder, {"other": _Runs(evidence)} if is_evil else {})

    if is_evil:
        with pytest.raises(ModelError, match=r"cannot be loaded: .*a pickle that holds more than tensors"):
            compute(made)
    else:
        assert compute(made) == pytest.approx(compute(source), abs=1e-6)
    assert not evidence.exists()


def damages(content):
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one byte less": content[:-1],
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a page": b"<!doctype html><title>Sign in</title>",
    }


@WHERE
@pytest.mark.parametrize("is_pickle", [False, True])
@pytest.mark.parametrize("damage", damages(b""))
def test_damaged_weights_are_named(whole, tmp_path, where, is_pickle, damage):
    source, folder, compute = whole[where]
    made = shutil.copytree(source, tmp_path / "model")
    if is_pickle:
        pickled(made / folder, {})
    file = made / folder / ("pytorch_model.bin" if is_pickle else "model.safetensors")
    file.write_bytes(damages(file.read_bytes())[damage])

    with pytest.raises(ModelError, match=f"{re.escape(str(made))}.* cannot be loaded: .*") as caught:
        compute(made)
    assert "weights_only" not in str(caught.value)
    assert ("run `git lfs pull`" in str(caught.value)) == (damage == "a pointer of Git LFS")


NO_TENSORS = {"a list": [1, 2], "a tensor": torch.zeros(2), "keys of numbers": {1: torch.zeros(2)}, "nothing": None}


@WHERE
@pytest.mark.parametrize("content", NO_TENSORS)
def test_a_pickle_of_something_else_is_named(whole, tmp_path, where, content):
    source, folder, compute = whole[where]
    made = shutil.copytree(source, tmp_path / "model")
    pickled(made / folder, {})
    torch.save(NO_TENSORS[content], made / folder / "pytorch_model.bin")

    with pytest.raises(ModelError, match=re.escape(str(made))):
        compute(made)


GEMMAS = {
    "gemma2, both ways": (Gemma2Config, {"use_bidirectional_attention": True}, "bidirectional"),
    "gemma2": (Gemma2Config, {}, "causal"),
    "gemma3, both ways": (Gemma3TextConfig, {"use_bidirectional_attention": True}, "bidirectional"),
    "gemma3": (Gemma3TextConfig, {}, "causal"),
    "gemma3, contradiction": (Gemma3TextConfig, {"is_causal": True, "use_bidirectional_attention": True}, None),
    "gemma4": (Gemma4TextConfig, {}, "causal"),
    "gemma4, both ways": (Gemma4TextConfig, {"use_bidirectional_attention": "all"}, "bidirectional"),
    "gemma4, images": (Gemma4TextConfig, {"use_bidirectional_attention": "vision"}, "causal"),
}


@pytest.mark.parametrize("asked", [None, "causal", "bidirectional"])
@pytest.mark.parametrize("case", GEMMAS)
def test_gemma_attends_as_it_declares_or_as_it_is_told(bare, tmp_path, case, asked):
    kind, said, declared = GEMMAS[case]
    folder = shutil.copytree(bare / "gemma3", tmp_path / "model")
    more = {"global_head_dim": 8, "hidden_size_per_layer_input": 0} if kind is Gemma4TextConfig else {}
    config = kind(**SIZES, **GROUPED, head_dim=8, **more)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", written | said)
    if declared is None and asked is None:
        with pytest.raises(ModelError, match="one is the other's contrary"):
            load_backbone(str(folder), dtype=torch.float32)
        return

    model = load_backbone(str(folder), dtype=torch.float32, attention=asked).model

    first_token = [model.backbone(torch.tensor([[4, 5, last]])).last_hidden_state[0, 0] for last in (6, 7)]
    is_seen = not torch.allclose(*first_token, atol=1e-5)
    assert is_seen == ((asked or declared) == "bidirectional")
    assert is_causal(model.backbone) != is_seen


def test_layers_that_do_not_fit_and_rerankers_with_code_are_refused(bare, tmp_path, make_recipe):
    folder = declaring(bare / "qwen2", tmp_path / "model", dense=[(16, IDENTITY)])
    layer = json.loads((folder / "2_Dense/config.json").read_text())
    write(folder, "2_Dense/config.json", layer | {"in_features": 99})
    with pytest.raises(ModelError, match="2_Dense takes 99 components, and 32 come before it"):
        check_models(recipe_of(make_recipe, folder))

    reranker = shutil.copytree(bare / "bert", tmp_path / "reranker")
    config = json.loads((reranker / "config.json").read_text())
    own = {
        "architectures": ["OwnForSequenceClassification"],
        "auto_map": {"AutoModelForSequenceClassification": "o.O"},
    }
    write(reranker, "config.json", config | own)
    with pytest.raises(ModelError, match="brings code of its own, which is not run"):
        check_models(make_recipe(mining={"reranker": str(reranker)}))


def test_the_width_of_a_model_has_many_names(bare, tmp_path, make_recipe):
    folder = shutil.copytree(bare / "bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**{k: v for k, v in config.items() if k != "hidden_size"}, "dim": 32})
    recipe = recipe_of(make_recipe, folder)
    loss = recipe.training.loss.model_copy(update={"matryoshka_dimensions": (64,)})
    training = recipe.training.model_copy(update={"loss": loss})

    with pytest.raises(RecipeError, match="have 32 dimensions"):
        check_models(recipe.model_copy(update={"training": training}))


def test_layers_after_pooling_work_in_eight_bits(bare, tmp_path):
    folder = declaring(bare / "bert", tmp_path / "model", dense=[(48, TANH)])
    exact = load_encoder(str(folder), max_tokens=60, dtype="float32", device="cpu", library="torch")
    expected = exact.encode(TEXTS)

    assert lowest_cosine(to_int8(exact).encode(TEXTS), expected) >= 0.98


def test_a_reranker_of_today_s_sentence_transformers_is_one(bare, tmp_path, make_recipe):
    """It writes a modules.json of one module beside the head that scores."""
    folder = shutil.copytree(bare / "bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {"architectures": ["BertForSequenceClassification"]})
    own = "sentence_transformers.base.modules.transformer.Transformer"
    write(folder, "modules.json", [{"idx": 0, "name": "0", "path": "", "type": own}])

    check_models(make_recipe(model={"backbone": str(bare / "bert")}, mining={"reranker": str(folder)}))


def test_a_model_without_a_pooler_has_one_fingerprint(bare, tmp_path):
    """Such encoders are common, and transformers makes up a pooler's weights at each load."""
    folder = shutil.copytree(bare / "bert", tmp_path / "model")
    weights = {name: one for name, one in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    keys = {load_encoder(str(folder), max_tokens=60, dtype="float32", device="cpu").fingerprint for _ in range(2)}

    assert len(keys) == 1


def test_the_length_at_which_a_tokenizer_truncates_belongs_to_the_key(bare, tmp_path):
    keys = set()
    for length in (20, 40, 80):
        folder = shutil.copytree(bare / "qwen3", tmp_path / str(length))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        write(folder, "tokenizer_config.json", settings | {"model_max_length": length})
        keys.add(load_encoder(str(folder), max_tokens=60, dtype="float32", device="cpu").fingerprint)

    assert len(keys) == 3


@pytest.mark.parametrize(
    ("sections", "error", "said"),
    [
        ({"mining": {"teacher": "./nowhere"}}, ModelError, "does not exist"),
        ({"mining": {"extra_teachers": ["./nowhere"]}}, ModelError, "does not exist"),
        ({"mining": {"reranker": "./nowhere"}}, ModelError, "does not exist"),
        ({"mining": {"reranker": "BERT"}}, ModelError, "is no cross-encoder: it is saved as BertModel"),
        ({"evaluation": {"models": ["./nowhere"]}}, ModelError, "does not exist"),
        ({"evaluation": {"models": ["https://host/v1"]}}, ModelError, "names no model"),
        ({"training": {"distillation": {"teacher": "./nowhere"}}}, ModelError, "does not exist"),
        ({"model": {"backbone": "./nowhere"}}, ModelError, "does not exist"),
        ({"training": {"loss": {"matryoshka_dimensions": [4096]}}}, RecipeError, "have 32 dimensions"),
        ({"model": {"prompts": "model"}}, RecipeError, "declares no prompts"),
        ({"synthesis": {"filters": {"teacher": "./nowhere"}}}, ModelError, "does not exist"),
        ({"serving": {"models": {"other": "./nowhere"}}}, ModelError, "does not exist"),
        ({"model": {"attention_of": {"org/x": "causal"}}}, RecipeError, "'org/x' is no model of this recipe"),
        (
            {"mining": {"teacher": "org/model"}, "model": {"prefixes_of": {"org/modle": ["q: ", "d: "]}}},
            RecipeError,
            "did you mean 'org/model'",
        ),
    ],
)
def test_every_model_of_a_recipe_is_opened_before_a_stage_starts(bare, make_recipe, sections, error, said):
    found = {"model": {}, **sections}
    found["model"] = {"backbone": str(bare / "bert"), **found["model"]}
    if found.get("mining", {}).get("reranker") == "BERT":
        found["mining"]["reranker"] = str(bare / "bert")

    with pytest.raises(error, match=said):
        check_models(make_recipe(**found))


def test_a_model_that_compares_by_dot_product_is_no_teacher(bare, tmp_path, make_recipe, capsys):
    folder = declaring(bare / "bert", tmp_path / "model", normalised=False, prompts=PROMPTS)
    write(folder, "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "dot"})

    with pytest.raises(ModelError, match=r"mining.teacher: .* compares vectors by 'dot'"):
        check_models(make_recipe(mining={"teacher": str(folder)}))
    check_models(recipe_of(make_recipe, folder))
    assert "here they get unit length, for cosines" in capsys.readouterr().err


def test_the_prompts_of_a_model_are_those_of_datasets_that_have_none(bare, tmp_path, make_recipe):
    folder = declaring(bare / "bert", tmp_path / "model", prompts=PROMPTS)
    plain = {"name": "plain", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    datasets = [
        plain,
        {**plain, "name": "e5", "query_prefix": "query: ", "document_prefix": "passage: "},
        {**plain, "name": "told", "instruction": "Find it"},
    ]

    recipe = check_models(
        make_recipe(model={"backbone": str(folder), "prompts": "model"}, datasets=datasets)
    )  # fmt: skip

    sides = [(one.prompt.query_prefix, one.prompt.document_prefix) for one in recipe.datasets]
    assert sides == [("the query ", "a text "), ("query: ", "passage: "), ("Instruct: Find it\nQuery: ", "")]
    alone = check_models(make_recipe(model={"backbone": str(folder), "prompts": "model"}, datasets=[plain]))
    assert alone.prompts == {"plain": "the query ", "query": "the query ", "document": "a text "}


@pytest.mark.parametrize("architecture", ["bert", "qwen2", "gemma3"])
def test_the_files_of_an_export_are_what_other_readers_look_for(bare, tmp_path, architecture):
    """vLLM compares the types of modules.json and reads booleans of 1_Pooling, text-embeddings-inference the booleans,
    sentence-transformers 2 to 5 pass the files' keys to constructors that know no others, transformers 4 knows
    ``rope_theta`` and ``torch_dtype``."""
    found = load_backbone(
        str(declaring(bare / architecture, tmp_path / "model", pooling="lasttoken", dense=[(16, TANH)])),
        dtype=torch.bfloat16,
    )
    folder = tmp_path / "export"
    save_sentence_transformer(found.model, found.tokenizer, folder, max_tokens=90, prompts=PROMPTS)

    def read(name):
        return json.loads((folder / name).read_text())

    kinds = ["Transformer", "Pooling", "Dense", "Normalize"]
    assert [one["type"] for one in read("modules.json")] == [f"sentence_transformers.models.{one}" for one in kinds]
    assert [one["path"] for one in read("modules.json")] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    pooling = read("1_Pooling/config.json")
    assert [name for name, value in pooling.items() if value is True] == [
        "pooling_mode_lasttoken",
        "include_prompt",
    ]
    assert set(pooling) - set(OLD_POOLING.values()) == {
        "word_embedding_dimension", "include_prompt", "pooling_mode_mean_sqrt_len_tokens",
    }  # fmt: skip
    assert read("sentence_bert_config.json") == {"max_seq_length": 90, "do_lower_case": False}
    assert read("2_Dense/config.json") == {
        "in_features": 32, "out_features": 16, "bias": True, "activation_function": TANH,
    }  # fmt: skip
    assert read("config_sentence_transformers.json")["prompts"] == PROMPTS
    config = read("config.json")
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert ("rope_theta" in config) == (architecture != "bert")
    assert ("rope_local_base_freq" in config) == (architecture == "gemma3")
    assert read("tokenizer_config.json")["tokenizer_class"] != "TokenizersBackend"


def test_weights_in_several_files_are_one_model(tiny_qwen2, tmp_path):
    found = load_backbone(str(tiny_qwen2), dtype=torch.float32)
    model, tokenizer = found.model, found.tokenizer

    save_sentence_transformer(model, tokenizer, tmp_path, max_tokens=90, prompts={}, file_size="40KB")

    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert checked_parity(tmp_path, name="the model", max_tokens=90) > 0.9999
    saved, known = load_backbone(str(tmp_path), dtype=torch.float32).model.state_dict(), model.state_dict()
    assert all(torch.equal(saved[name], known[name]) for name in known)
