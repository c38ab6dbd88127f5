"""Small things made on the spot: models of a few thousand weights, and recipes for them."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from qzhou.config.recipe import parse_recipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# not 2: most training here takes seconds
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
# as for each cluster that `ray.init` starts, but from the beginning: this process keeps the mode that it begins with
os.environ["RAY_AUTH_MODE"] = "token"

WORDS = ["the", "a", "of", "to", "sum", "list", "word", "red", "blue", "green", "query", "text", "answer", "paris"]
WORDS += ["london", "sea", "tree", "is", "are", "what", "where"]


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory):
    """The token that Ray guards its clusters with lies in a home folder of the tests, not in the user's."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield


@pytest.fixture(scope="session")
def head(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of jobs that join the one Ray head of all tests which need none of their own."""
    from tests.e2e.clusters import shared_head

    with shared_head(tmp_path_factory.mktemp("head")) as environment:
        yield environment


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory) -> Path:
    """A random Qwen2 of two layers with a byte-level BPE tokenizer: the paper's kind of backbone."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import Qwen2Config, Qwen2Model, Qwen2Tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen2")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(WORDS)] * 9, vocab_size=400, special_tokens=["<|endoftext|>"])
    trained.save_model(str(folder))
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # far from the usual 0.02, whose texts are all alike before training
    )
    Qwen2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT of two layers with a word tokenizer, dropout included."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe(tmp_path):
    """A small valid recipe; keyword arguments replace or extend whole settings of its sections."""
    return recipe_in(tmp_path)


def recipe_in(folder: Path):
    """Makes recipes whose runs lie in a folder."""

    def make(**sections):
        stage = {"steps": 4, "learning_rate": 1e-3, "warmup_steps": 1, "batch_size": 4, "cosent_batch_size": 6}
        content = {
            "run": {"name": "tiny", "storage": str(folder / "runs"), "seed": 1},
            "model": {"backbone": "unused", "max_query_tokens": 16, "max_document_tokens": 24},
            "datasets": [{"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}],
            "mining": {"rank_from": 1, "rank_to": 8, "negatives_per_query": 2},
            "training": {"negatives_per_query": 1, "stage1": stage, "stage2": {**stage, "retrieval_share": 1.0}},
        }
        for name, section in sections.items():
            content[name] = section if name == "datasets" else {**content.get(name, {}), **section}
        return parse_recipe(content, place="test")

    return make
