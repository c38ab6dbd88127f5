"""The stage that makes a run's documents searchable, on Ray Data."""

from collections.abc import Mapping
from functools import partial

import ray

from qzhou.cluster.ray_data import PartSource, backpressure, read_for_actors
from qzhou.cluster.resources import resources_for
from qzhou.cluster.session import session
from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder, row_count
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import DataError
from qzhou.run.files import HELD_OUT_DOCUMENTS
from qzhou.run.run import Run, Stage
from qzhou.serving.index import ENCODED, EncodePart, Part, assemble, read_part
from qzhou.telemetry.progress import progress

STAGE = "index"


def index(recipe: Recipe) -> Manifest:
    """Encode the distinct documents of a finished run with its model, and write what the endpoint searches.

    Raises:
        DataError: The run has no model yet, or no dataset with documents.
    """
    run = with_arithmetic(Run.find(recipe))
    settings = run.recipe.model
    transform, model = run.manifest("transform"), run.manifest("model")
    with session(resources_for(recipe, "mining")):
        return run.stage(
            Stage(
                name=STAGE,
                settings={
                    "max_document_tokens": settings.max_document_tokens,
                    "encodes_in": settings.encodes_in,
                    "arithmetic": settings.arithmetic,
                    "prompts": {one.name: one.prompt.document_prefix for one in searched(recipe)},
                },
                inputs={"transform": transform.fingerprint, "model": model.fingerprint},
                code_of=("qzhou.serving.indexing",),
            ),
            partial(_indexed, run),
        )


def _indexed(run: Run, folder: Folder) -> Mapping[str, int]:
    parts = _parts(run)
    if not parts:
        raise DataError(f"{run.folder.uri} has no documents: none of its datasets is for retrieval")
    encoded = folder / ENCODED
    total = sum(row_count(one.folder, one.name) for one in parts)
    files: list[list[str]] = [[] for _ in parts]
    with progress("index: encode", total=total, unit="documents") as bar, backpressure():
        texts = read_for_actors(PartSource(list(enumerate(parts)), read_part, None))
        done = texts.map_batches(
            EncodePart,
            fn_constructor_args=(run.recipe, (run.folder / "model").uri, encoded),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=min(run.recipe.cluster.encode_workers, len(parts))
            ),
            **resources_for(run.recipe, "mining").options,
        )
        for row in done.iter_rows():
            files[row["id"]] = row["files"]
            bar.advance(row["rows"])
    documents = assemble(parts, files, encoded, folder)
    encoded.delete()
    return {"documents": documents}


def _parts(run: Run) -> list[Part]:
    chosen = searched(run.recipe)
    return [
        Part(folder / one.name, file, one.prompt.document_prefix)
        for one in run.recipe.datasets
        if one in chosen
        for folder in (run.folder / "transform" / "corpora", run.folder / HELD_OUT_DOCUMENTS)
        for file in (folder / one.name).files(".parquet")
    ]


def searched(recipe: Recipe) -> list[Dataset]:
    """The datasets whose documents are to be found: where some are documents and nothing else, these."""
    retrieval = [one for one in recipe.datasets if one.task == "retrieval"]
    documents = [one for one in retrieval if one.rule == "documents"]
    default = documents or retrieval
    return [one for one in retrieval if (one in default if one.index is None else one.index)]
