"""The ONNX file of a model's folder: the encoder's vectors without torch, or none."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config, XLMRobertaConfig

from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.attention import Padded
from qzhou.encoder.backbone import load_backbone
from qzhou.encoder.export import save_sentence_transformer
from qzhou.encoder.pooling import pool
from qzhou.errors import ModelError, SetupError
from qzhou.export.pipeline import export
from qzhou.run.models import weights_fingerprint
from tests.unit.encoder.test_any_model import ARCHITECTURES, GROUPED, SIZES, bare  # noqa: F401  (bare is a fixture)

SAME = 0.9999
# texts and tokens: one of each, more than what was traced, and more than Gemma's window
SHAPES = [(1, 1), (1, 9), (2, 1), (4, 23), (5, 90)]
SMALL = SIZES | {"num_hidden_layers": 1}  # each layer is traced for a second
TRACED = {
    "xlm-r": (XLMRobertaConfig(**SMALL, type_vocab_size=1), None),  # as the published ones
    "qwen2": (ARCHITECTURES["qwen2"], "causal"),
    "qwen3": (Qwen3Config(**SMALL, **GROUPED, head_dim=8), "causal"),
    "llama": (LlamaConfig(**SMALL, **GROUPED), "causal"),
    "gemma3": (ARCHITECTURES["gemma3"], "causal"),
    "gemma3, bidirectional": (ARCHITECTURES["gemma3"], "bidirectional"),
}
OFTEN = ("xlm-r", "qwen2", "gemma3, bidirectional")
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
REFUSED = {
    "longrope": Phi3Config(**SMALL, **GROUPED, original_max_position_embeddings=64, rope_parameters=LONGROPE),
    "dynamic": LlamaConfig(**SMALL, **GROUPED, rope_parameters=DYNAMIC),
}
REASONS = {
    "longrope": r"'tiny' \(phi3\).*more than 64 tokens .*max_document_tokens is 90",
    "dynamic": r"'tiny' \(llama\) cannot be exported to ONNX: Could not guard on data-dependent",
}


@pytest.fixture(scope="module")
def write_onnx():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'qzhou[onnx]'")
    from qzhou.export.onnx_model import write_onnx

    return write_onnx


@pytest.fixture(scope="module")
def bert(bare, write_onnx, tmp_path_factory):  # noqa: F811
    """The folder of an encoder, its ONNX file with weights beside it, and their lowest cosine."""
    root = tmp_path_factory.mktemp("bert")
    (root / "onnx").mkdir()
    folder = saved(bare / "bert", root / "model")
    lowest = write_onnx(folder, root / "onnx", name="tiny", max_tokens=90, inline_bytes=10_000)
    return folder, root / "onnx", lowest


def made(config, bare, folder):  # noqa: F811
    """The folder of a random model with the tokenizer of the others."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    for file in (bare / "bert").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def saved(bare, folder, *, pooling="mean", attention=None, dtype=torch.float32):  # noqa: F811
    found = load_backbone(str(bare), pooling=pooling, attention=attention, dtype=dtype)
    save_sentence_transformer(found.model, found.tokenizer, folder, max_tokens=90, prompts={})
    return folder


def batch(texts, tokens, *, left):
    """Random tokens: the first text is as long as the batch, each of the others shorter."""
    generator = torch.Generator().manual_seed(texts * tokens)
    lengths = [max(1, tokens - number * tokens // texts) for number in range(texts)]
    mask = torch.tensor([[1] * length + [0] * (tokens - length) for length in lengths])
    mask = mask.flip(1) if left else mask
    ids = torch.randint(3, SIZES["vocab_size"], (texts, tokens), generator=generator)
    return Padded(torch.where(mask == 1, ids, torch.tensor(SIZES["pad_token_id"])), mask)


def session_of(file: Path):
    from onnxruntime import InferenceSession

    return InferenceSession(file)


def lowest_cosine(session, folder):
    """Over batches of other shapes than the traced one, padded on either side, and over three poolings."""
    model, found = load_backbone(str(folder), dtype=torch.float32).model.eval(), []
    for texts in (batch(*shape, left=left) for shape in SHAPES for left in (False, True)):
        given = {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask}
        given["token_type_ids"] = torch.zeros_like(texts.input_ids)
        (hidden,) = session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})
        for model.pooling in ("mean", "cls", "last"):
            with torch.inference_mode():
                expected = model(texts)
            vector = pool(torch.from_numpy(hidden), texts.attention_mask, model.pooling)
            found.append((torch.nn.functional.normalize(vector, dim=-1) * expected).sum(1).min())
    return float(torch.stack(found).min())


def inputs_of(session):
    assert [one.name for one in session.get_outputs()] == ["last_hidden_state"]
    assert {tuple(one.shape) for one in session.get_inputs()} == {("batch_size", "sequence_length")}
    return [one.name for one in session.get_inputs()]


def test_the_file_of_an_encoder_gives_its_vectors_and_takes_types_of_tokens(bert):
    folder, written, lowest = bert
    session = session_of(written / "model.onnx")

    assert inputs_of(session) == ["input_ids", "attention_mask", "token_type_ids"]
    assert lowest >= SAME
    assert lowest_cosine(session, folder) >= SAME


def test_weights_that_no_protobuf_holds_lie_beside_the_graph_under_the_name_that_readers_know(bert):
    import onnx

    _, written, _ = bert
    graph = onnx.load(written / "model.onnx", load_external_data=False).graph

    assert {file.name for file in written.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert {one.value for tensor in graph.initializer for one in tensor.external_data if one.key == "location"} == {
        "model.onnx_data"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.long) for name in TRACED]
)
def test_the_file_of_every_architecture_gives_its_vectors(bare, write_onnx, tmp_path, name):  # noqa: F811
    config, attention = TRACED[name]
    folder = saved(made(config, bare, tmp_path / "bare"), tmp_path / "model", attention=attention)
    (tmp_path / "onnx").mkdir()

    assert write_onnx(folder, tmp_path / "onnx", name="tiny", max_tokens=90) >= SAME

    session = session_of(tmp_path / "onnx" / "model.onnx")
    assert inputs_of(session) == ["input_ids", "attention_mask"]
    assert lowest_cosine(session, folder) >= SAME


@pytest.fixture
def trained(bare, tmp_path, make_recipe):  # noqa: F811
    """The recipe of a run whose training has finished: a bidirectional decoder in 16 bits."""
    backbone = made(Qwen2Config(**SMALL, **GROUPED), bare, tmp_path / "bare")
    recipe = make_recipe(model={"backbone": str(backbone), "max_document_tokens": 90})
    stage2 = Folder.open(recipe.run.storage) / recipe.run.name / "training/stage2"
    saved(backbone, tmp_path / "trained", attention="bidirectional", dtype=torch.bfloat16)
    (stage2 / "model").upload(tmp_path / "trained")
    done = Manifest(
        stage="training/stage2", fingerprint="f00d", inputs={}, outputs={}, settings={}, code_version="",
        finished_at="today", wall_s=0.0,
    )  # fmt: skip
    stage2.write_json("manifest.json", dataclasses.asdict(done))
    return recipe


@pytest.mark.usefixtures("write_onnx")
def test_the_command_adds_the_file_to_a_finished_model_once(trained, capsys):
    """It lies beside what is there, changes no fingerprint, and the model card names it."""
    model = Folder.open(trained.run.storage) / trained.run.name / "model"
    manifest, before = export(trained), weights_fingerprint(model.path)
    assert not model.exists("onnx")

    assert export(trained, onnx=True) == manifest

    file = Path(model.path) / "onnx" / "model.onnx"
    session = session_of(file)
    assert inputs_of(session) == ["input_ids", "attention_mask"]
    assert lowest_cosine(session, model.path) >= SAME
    assert b"site-packages" not in file.read_bytes()  # paths of the machine that made it
    assert weights_fingerprint(model.path) == before
    assert "`onnx/model.onnx` gives the last hidden state" in model.read_bytes("README.md").decode()
    assert "ONNX Runtime and the encoder agree" in capsys.readouterr().out

    export(trained, onnx=True)
    assert "model: onnx/model.onnx is there, skipped" in capsys.readouterr().out


def test_without_the_packages_nothing_is_begun(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(SetupError, match=r"^--onnx needs onnx, onnxscript, onnxruntime: .*'qzhou\[onnx\]'$"):
        export(trained, onnx=True)

    assert not (Folder.open(trained.run.storage) / trained.run.name).exists("model")


@pytest.mark.parametrize("rotation", REFUSED)
def test_a_model_that_no_graph_describes_is_refused_with_the_way_out(
    bare, write_onnx, tmp_path, capfd, rotation  # noqa: F811
):  # fmt: skip
    """Of longrope torch would write a graph, which gives other vectors of long texts alone."""
    folder = saved(made(REFUSED[rotation], bare, tmp_path / "bare"), tmp_path / "model")
    (tmp_path / "onnx").mkdir()
    capfd.readouterr()

    with pytest.raises(ModelError, match=REASONS[rotation]) as refused:
        write_onnx(folder, tmp_path / "onnx", name="tiny", max_tokens=90)

    assert "leave --onnx out" in str(refused.value)
    assert "def forward" not in "".join(capfd.readouterr())  # torch prints what it could not export
    assert not list((tmp_path / "onnx").iterdir())


@pytest.mark.parametrize("number", [0.0, float("nan")])
def test_a_file_with_other_vectors_is_refused(bert, write_onnx, tmp_path, number):
    import onnx_ir

    folder, written, _ = bert

    def with_other_weights(backbone, shown):
        del backbone, shown
        model = onnx_ir.external_data.load_to_model(onnx_ir.load(written / "model.onnx"))
        (embedding,) = (one for name, one in model.graph.initializers.items() if "word_embeddings" in name)
        embedding.const_value = onnx_ir.tensor(embedding.const_value.numpy() * number, name=embedding.name)
        return model

    with pytest.raises(ModelError, match=r"'tiny' \(bert\): .* other vectors .*lowest cosine (nan|\d)"):
        write_onnx(folder, tmp_path, name="tiny", max_tokens=90, exporter=with_other_weights)
