"""The model card: a ``README.md`` in the model's folder that says what it is, how it was made, and how to use it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder
from qzhou.run.files import EXPORT, ONNX, ONNX_FILE, STAGES, RunFiles
from qzhou.run.models import HUB_ID

CARD = "README.md"
STAGE2, BACKBONE = "stage2", "backbone"


def write_model_card(recipe: Recipe, run_folder: Folder) -> None:
    """Write the card of a run's model; what is not there yet, scores for instance, is left out.

    Args:
        recipe: Of the run.
        run_folder: Of the run.
    """
    model = run_folder / EXPORT
    if model.exists("config.json"):
        files = RunFiles(run_folder)
        config = model.read_json("config.json")
        parts = _parts(recipe, files, files.output(EXPORT, "dimensions"), config)
        model.write_bytes(CARD, ("\n\n".join(parts) + "\n").encode())


def _parts(recipe: Recipe, files: RunFiles, width: int | None, config: Mapping[str, Any]) -> Iterator[str]:
    name, backbone = recipe.run.name, recipe.model.backbone
    yield "\n".join(_front_matter(recipe))
    yield f"# {name}"
    yield (
        f"A text-embedding model: texts become unit vectors of {width} dimensions, which are compared by cosine. "
        f"It was trained from `{backbone}` on the data below. Longer texts are cut at "
        f"{recipe.model.max_document_tokens} tokens."
    )
    yield "## Use"
    yield from _usage(recipe, config)
    if (files.folder / EXPORT).exists(f"{ONNX}/{ONNX_FILE}"):
        yield (
            f"`{ONNX}/{ONNX_FILE}` gives the last hidden state in float32, for ONNX Runtime, Transformers.js, "
            'text-embeddings-inference and sentence-transformers 5 (`backend="onnx"`). The direction of attention is '
            "part of it; pooling and normalisation are not."
        )
    if any(recipe.prompts.values()):
        yield "## Prompts"
        yield 'A prompt stands directly before its text. In sentence-transformers, name it: `prompt_name="query"`.'
        rows = [f"| `{name}` | `{text!r}` |" for name, text in recipe.prompts.items() if text]
        yield "\n".join(["| name | prefix |", "|---|---|", *rows])
    yield "## Data"
    yield "\n".join(_data(recipe, files))
    if scores := list(_scores(files)):
        yield "## Scores"
        yield (
            "On data that was held out, by mteb, with 95 % intervals. The last column is the difference from the "
            "model before training, by a paired bootstrap; * where its interval leaves out zero."
        )
        yield "\n".join(scores)
    yield "## How it was made"
    yield "\n".join(_origin(recipe, files))


def _front_matter(recipe: Recipe) -> Iterator[str]:
    yield "---"
    yield "library_name: sentence-transformers"
    yield "pipeline_tag: sentence-similarity"
    yield "tags: [sentence-transformers, feature-extraction, sentence-similarity]"
    if HUB_ID.fullmatch(recipe.model.backbone) and not Path(recipe.model.backbone).exists():
        yield f"base_model: {recipe.model.backbone.partition('@')[0]}"
    if licenses := sorted({one.license for one in recipe.trained_datasets if one.license}):
        yield f"# licences of the data: {', '.join(licenses)}"
    yield "---"


def _usage(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("PATH")\n'
        'queries = model.encode(["how to sort a list"], prompt_name="query")\n'
        'documents = model.encode(["Return the sorted list."], prompt_name="document")\n'
        "print(model.similarity(queries, documents))\n```"
    )
    yield (
        "sentence-transformers 3 and later, vLLM (`vllm serve PATH --runner pooling`) and text-embeddings-inference "
        "(`--model-id PATH`) read the pooling and the normalisation from the folder. With transformers alone, "
        "pool the last hidden state as `1_Pooling/config.json` says, and normalise."
    )
    if config.get("is_causal") is False:
        yield (
            "Attention goes in both directions: `config.json` says so in both spellings, `is_causal` (transformers 5.2 "
            "and later, vLLM, llama.cpp) and `use_bidirectional_attention` (text-embeddings-inference). A program that "
            "reads neither gives other vectors."
        )
    if widths := recipe.training.loss.matryoshka_dimensions:
        yield f"Trained for vectors that are cut, too, to {', '.join(map(str, widths))} dimensions; normalise after."


def _data(recipe: Recipe, files: RunFiles) -> Iterator[str]:
    yield "| data set | task | rows | licence |"
    yield "|---|---|---|---|"
    for one in recipe.trained_datasets:
        counts = files.transform.get("datasets", {}).get(one.name, {})
        rows = counts.get("written", {}).get("examples", "")
        yield f"| {one.name} | {one.task} | {rows} | {one.license or 'not recorded'} |"


def _scores(files: RunFiles) -> Iterator[str]:
    rows = [row for row in files.comparison.get("rows", ()) if row["model"] == STAGE2]
    differences = {
        one["task"]: one
        for one in files.comparison.get("differences", ())
        if (one["model"], one["against"]) == (STAGE2, BACKBONE)
    }
    if rows:
        yield "| task | metric | n | score | 95 % | difference |"
        yield "|---|---|---|---|---|---|"
    for row in rows:
        gain = differences.get(row["task"])
        mark = "*" if gain and (gain["low"] > 0 or gain["high"] < 0) else ""
        change = f"{gain['difference']:+.4f}{mark}" if gain else ""
        limits = f"{row['low']:.4f} to {row['high']:.4f}" if row["high"] > row["low"] else ""
        yield f"| {row['task']} | {row['metric']} | {row['n']} | {row['score']:.4f} | {limits} | {change} |"


def _origin(recipe: Recipe, files: RunFiles) -> Iterator[str]:
    stages = {stage: files.manifests[stage] for stage in STAGES if stage in files.manifests}
    version = next((one.code_version for one in reversed(stages.values())), "")
    yield f"By qzhou ({version}), after QZhou-Embedding (arXiv:2508.21632): retrieval first, then all tasks."
    yield ""
    yield "| stage | finished | fingerprint |"
    yield "|---|---|---|"
    for stage, manifest in stages.items():
        yield f"| {stage} | {manifest.finished_at} | `{manifest.fingerprint}` |"
    yield ""
    steps = " and ".join(f"{getattr(recipe.training, name).steps:,}" for name in recipe.training.stages)
    yield f"Steps: {steps}. The whole recipe is `recipe.json` in the folder of the run."
