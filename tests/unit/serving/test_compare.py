"""Whether an engine that reads a model's files in its own way is found out, and told what it does."""

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qzhou.cli.main import cli
from qzhou.encoder.backbone import load_backbone
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.export import save_sentence_transformer
from qzhou.errors import ModelError
from qzhou.serving.compare import compare
from tests.embedding_server import serving

MOST = 120


@pytest.fixture(scope="module")
def model(tiny_qwen2, tmp_path_factory):
    """A bidirectional decoder with mean pooling and prompts, as a run exports it."""
    folder = tmp_path_factory.mktemp("compared") / "model"
    found = load_backbone(str(tiny_qwen2), pooling="mean", attention="bidirectional", dtype=torch.float32)
    prompts = {"query": "search: ", "document": ""}
    save_sentence_transformer(found.model, found.tokenizer, folder, max_tokens=MOST, prompts=prompts)
    return folder


def engine(model, *, prefix="", most=MOST, noise=0.0, width=None, **other):
    """The reply of an engine that takes ``other`` in place of what the files say."""
    encoder = encoder_of(load_backbone(str(model), dtype=torch.float32, **other), max_tokens=most, device="cpu")

    def reply(body, _):
        vectors = encoder.encode([prefix + text for text in body["input"]])
        vectors = vectors + noise * np.random.default_rng(0).normal(size=vectors.shape) / vectors.shape[1] ** 0.5
        data = [
            {"object": "embedding", "index": n, "embedding": one[:width].tolist()} for n, one in enumerate(vectors)
        ]
        return 200, {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}

    return reply


ENGINES = {
    "the same": ({}, "the vectors are the model's"),
    "eight bits": ({"noise": 0.07}, "near the model's, as of weights in fewer bits"),
    "causal": ({"attention": "causal"}, "it attends causal, and the model bidirectional"),
    "first token": ({"pooling": "cls"}, "it pools by 'cls', and the model by 'mean'"),
    "last token": ({"pooling": "last"}, "it pools by 'last', and the model by 'mean'"),
    "causal and last": ({"attention": "causal", "pooling": "last"}, "it attends causal.*and it pools by 'last'"),
    "a default prompt": ({"prefix": "search: "}, "puts the model's prompt 'query' before every text"),
    "a short limit": ({"most": 60}, "it reads about 6[0-9] tokens of a long text, and the model 120"),
    "noise": ({"noise": 1.0}, "nothing that was tried explains them"),
}


@pytest.mark.parametrize("case", ENGINES)
def test_what_an_engine_does_otherwise_is_found(model, case):
    other, said = ENGINES[case]
    with serving(engine(model, **other)) as url:
        found = CliRunner().invoke(cli, ["compare", str(model), url], catch_exceptions=False)

    assert found.exit_code == (0 if case in {"the same", "eight bits"} else 1), found.output
    lines = found.output.splitlines()
    assert len(lines) == 9
    assert re.search(said, lines[-1]), lines[-1]


def test_a_run_is_compared_by_its_last_model(model, tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "model").symlink_to(model)
    (model / "manifest.json").write_text("{}")
    with serving(engine(model)) as url:
        assert compare(str(run), url).lowest > 0.9999


def test_another_width_is_another_model(model):
    with serving(engine(model, width=16)) as url, pytest.raises(ModelError, match=r"16 dimensions, and .* has 32"):
        compare(str(model), url)
