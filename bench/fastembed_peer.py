"""fastembed's part of bench/encode.py; runs in an environment of its own.

It needs `fastembed onnx onnxscript torch transformers`. It exports the model to ONNX, reads {case: texts} from a file,
writes the vectors of each case beside the exported model, and its median seconds in the last line of its output.
"""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fastembed import TextEmbedding  # type: ignore[import-not-found]
from fastembed.common.model_description import ModelSource, PoolingType  # type: ignore[import-not-found]
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export(source: Path, folder: Path, max_tokens: int) -> None:
    """A folder that fastembed loads: the graph of the backbone, and its tokenizer with our length."""
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": max_tokens}), "utf-8")
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens", max=max_tokens)
    torch.onnx.export(
        model,
        # one tensor for all is one input
        kwargs={name: torch.ones(2, 8, dtype=torch.int64) for name in INPUTS},
        f=folder / "model.onnx",
        input_names=list(INPUTS),
        dynamic_shapes={name: {0: texts, 1: tokens} for name in INPUTS},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def main() -> None:
    source, folder, texts_of = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        json.loads(Path(sys.argv[3]).read_text("utf-8")),
    )
    max_tokens, threads, rounds = map(int, sys.argv[4:])
    export(source, folder, max_tokens)
    width = json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]
    TextEmbedding.add_custom_model(
        model="bench",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="none/none"),
        dim=width,
        model_file="model.onnx",
    )
    model = TextEmbedding("bench", specific_model_path=str(folder), threads=threads)
    seconds = {}
    for number, (case, texts) in enumerate(texts_of.items()):
        np.save(folder / f"{number}.npy", np.stack(list(model.embed(texts))))  # a warm-up, too
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            list(model.embed(texts))
            taken.append(time.perf_counter() - started)
        seconds[case] = statistics.median(taken)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
