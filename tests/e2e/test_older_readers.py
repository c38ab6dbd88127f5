"""An exported folder in older versions of sentence-transformers, each in an environment of its own."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, LlamaConfig, Qwen2Config

from qzhou.encoder.backbone import load_backbone
from qzhou.encoder.encoder import encoder_of
from qzhou.encoder.export import save_sentence_transformer
from tests.unit.encoder.test_any_model import ARCHITECTURES, DECODERS, GROUPED, SIZES, TEXTS, bare  # noqa: F401  (bare is a fixture)

pytestmark = pytest.mark.bench

VERSIONS = ("3.4.1", "5.1.2")
# angles of rotation that are not the default's: read under another name, they are others without a word
ROTATIONS = {
    "qwen2, theta 1e6": Qwen2Config(**SIZES, **GROUPED, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    "llama3": LlamaConfig(
        **SIZES,
        **GROUPED,
        rope_parameters={
            "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}  # fmt: skip
ENCODES = """
import json, sys
from sentence_transformers import SentenceTransformer
texts, folders = json.load(sys.stdin)
print(json.dumps({one: SentenceTransformer(one, device="cpu").encode(texts).tolist() for one in folders}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def older(request, tmp_path_factory):
    """The python of an environment with an older sentence-transformers and transformers 4."""
    place = tmp_path_factory.mktemp(f"st-{request.param}")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    wanted = [
        f"torch=={torch.__version__.split('+')[0]}",
        f"sentence-transformers=={request.param}",
        "transformers<5",
    ]
    subprocess.run([place / "bin" / "pip", "install", "--quiet", *wanted], check=True)
    return place / "bin" / "python"


@pytest.fixture(scope="module")
def exported(bare, tmp_path_factory):  # noqa: F811
    """Folder -> our vectors, of every architecture and pooling; decoders as they are, causal."""
    root, found = tmp_path_factory.mktemp("exported"), {}
    for name, config in ROTATIONS.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(bare / name)
        for file in (bare / "qwen2").glob("tokenizer*"):
            (bare / name / file.name).write_bytes(file.read_bytes())
    for name in (*ARCHITECTURES, *ROTATIONS):
        for pooling in ("mean", "last", "cls"):
            attention = "causal" if name in (*DECODERS, *ROTATIONS) else None
            model = load_backbone(str(bare / name), pooling=pooling, attention=attention, dtype=torch.float32)
            folder = root / f"{name}-{pooling}"
            save_sentence_transformer(model.model, model.tokenizer, folder, max_tokens=90, prompts={})
            found[str(folder)] = encoder_of(model, max_tokens=90, device="cpu").encode(TEXTS)
    return found


def test_every_exported_model_has_the_same_vectors_there(older, exported):
    asked = json.dumps([TEXTS, list(exported)])
    done = subprocess.run([older, "-c", ENCODES], input=asked, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])

    lowest = {
        name: min((torch.tensor(theirs[name]) * torch.tensor(ours)).sum(1)) for name, ours in exported.items()
    }

    assert len(lowest) == 3 * (len(ARCHITECTURES) + len(ROTATIONS))
    assert not {name: float(one) for name, one in lowest.items() if one < 0.9999}
