"""The stage ``export``: the trained model as a sentence-transformers folder, and in it as an ONNX file."""

import tempfile
from importlib import import_module
from pathlib import Path

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
    # loads torch, which a driver whose export is finished can do without
    from qzhou.encoder.export import checked_parity

    with (run.folder / MODELS_OF_STAGES[TRAINING_STAGE2]).local_copy() as trained:
        folder.upload(trained)
        lowest = checked_parity(trained, name=folder.uri, max_tokens=run.recipe.model.max_document_tokens)
        dimensions = read_metadata(str(trained)).dimensions
        assert dimensions is not None, "every encoder that is trained says its width"
    line = f"model: SentenceTransformer and the encoder agree in float32 (lowest cosine {lowest:.6f})"
    log_event(line, "exported", lowest_cosine=lowest)
    return {"dimensions": dimensions}


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
    from qzhou.export.publishing import publish

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
