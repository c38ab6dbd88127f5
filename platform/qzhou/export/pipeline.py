"""The stage ``export``: the trained model as a sentence-transformers folder, and in it as an ONNX file."""

import dataclasses
import tempfile
from importlib import import_module
from pathlib import Path

import ray

from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import refuse_what_never_comes, session
from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import SetupError
from qzhou.run.files import EXPORT, MODELS_OF_STAGES, ONNX, ONNX_FILE, TRAINING_STAGE2
from qzhou.run.lock import run_lock
from qzhou.run.model_card import CARD, write_model_card
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(recipe: Recipe, *, onnx: bool = False) -> Manifest:
    """The manifest of the exported model, which gives the same vectors in sentence-transformers as in the encoder.

    Args:
        recipe: Of the run.
        onnx: Write ``onnx/model.onnx`` into its folder too, unless it is there.

    Raises:
        DataError: Training has not finished.
        TrainingError: The exported folder does not give the encoder's vectors.
        SetupError: A package is missing that ``onnx`` needs.
        ModelError: ``onnx`` is asked for, and the architecture cannot be exported, or gives other vectors.
    """
    if onnx:
        _refuse_without_packages()
    run = Run.open(recipe)
    manifest = run.stage(
        Stage(
            name=EXPORT,
            settings={"model": recipe.model.settings_for(), "prompts": recipe.prompts},
            inputs={"stage2": run.manifest(TRAINING_STAGE2).fingerprint},
            code_of=("qzhou.export.pipeline",),
            without=("qzhou.export.onnx_model", "qzhou.export.publishing"),
        ),
        lambda folder: _export(run, folder),
    )
    is_new = onnx and _add_onnx(run)
    if is_new or not (run.folder / EXPORT).exists(CARD):
        write_model_card(recipe, run.folder)
    return manifest


def _export(run: Run, folder: Folder) -> dict[str, int]:
    """Export on a node that trains: a model of 7B in float32 is 28 GB, which few heads of clusters have."""
    asked = dataclasses.replace(resources_for(run.recipe, "training"), workers=1)
    with session():
        refuse_what_never_comes(asked)
        task = ray.remote(_export_model).options(**asked.options)
        lowest, dimensions = ray.get(task.remote(run.recipe, run.folder.uri, folder.uri))
    line = f"model: SentenceTransformer and the encoder agree in float32 (lowest cosine {lowest:.6f})"
    log_event(line, "exported", lowest_cosine=lowest)
    return {"dimensions": dimensions}


def _export_model(recipe: Recipe, run_folder: str, target: str) -> tuple[float, int]:
    """The lowest cosine of the two encoders and the width of a vector, after the model's files are in their place."""
    from qzhou.encoder.export import checked_parity

    trained, exported = Folder.open(run_folder) / MODELS_OF_STAGES[TRAINING_STAGE2], Folder.open(target)
    exported.delete()
    trained.copy_to(exported)  # an object store copies by itself
    with trained.local_copy() as local:
        dimensions = read_metadata(str(local)).dimensions
        assert dimensions is not None, "every encoder that is trained says its width"
        device = "cuda" if recipe.cluster.gpu else "cpu"
        max_tokens = recipe.model.max_document_tokens
        return checked_parity(local, name=target, max_tokens=max_tokens, device=device), dimensions


def _refuse_without_packages() -> None:
    """Before minutes of work.

    Raises:
        SetupError: One cannot be imported.
    """
    try:
        for name in ONNX_PACKAGES:
            import_module(name)
    except ImportError as error:
        raise SetupError(f"--onnx needs {', '.join(ONNX_PACKAGES)}: {error}. pip install 'qzhou[onnx]'") from None


def _add_onnx(run: Run) -> bool:
    """Whether the model's ONNX file was written; a file that is there belongs to the same weights, and stays."""
    model = run.folder / EXPORT
    place = f"{ONNX}/{ONNX_FILE}"
    if model.exists(place):
        log_event(f"model: {place} is there, skipped", "onnx_skipped")
        return False
    from qzhou.export.onnx_model import write_onnx
    from qzhou.run.publishing import publish

    with run_lock(run.folder, EXPORT), model.local_copy() as local, tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / ONNX
        written.mkdir()
        max_tokens = run.recipe.model.max_document_tokens
        lowest = write_onnx(local, written, name=model.uri, max_tokens=max_tokens)
        size = sum(file.stat().st_size for file in written.iterdir())
        publish(written, model / ONNX)
    line = (
        f"model: {place} ({size / 1e6:,.0f} MB): ONNX Runtime and the encoder agree in float32 "
        f"(lowest cosine {lowest:.6f})"
    )
    log_event(line, "onnx_written", lowest_cosine=lowest, bytes=size)
    return True
