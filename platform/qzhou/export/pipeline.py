"""The stage ``export``: the trained model as a sentence-transformers folder."""

from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.model_files import read_metadata
from qzhou.run.files import EXPORT, MODELS_OF_STAGES, TRAINING_STAGE2
from qzhou.run.model_card import CARD, write_model_card
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event


def export(recipe: Recipe) -> Manifest:
    """The manifest of the exported model, which gives the same vectors in sentence-transformers as in the encoder.

    Raises:
        DataError: Training has not finished.
        TrainingError: The exported folder does not give the encoder's vectors.
    """
    run = Run.open(recipe)
    manifest = run.stage(
        Stage(
            name=EXPORT,
            settings={"model": recipe.model.settings_for(), "prompts": recipe.prompts},
            inputs={"stage2": run.manifest(TRAINING_STAGE2).fingerprint},
            code_of=("qzhou.export.pipeline",),
        ),
        lambda folder: _export(run, folder),
    )
    if not (run.folder / EXPORT).exists(CARD):
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
