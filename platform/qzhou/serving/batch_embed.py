"""``qzhou embed`` on Ray Data: texts are read, encoded by a pool of actors and written as Parquet with vectors.

    PartSource -> repartition -> map_batches(EmbedBlock) -> TableSink

The source leaves out the rows whose vectors are there, so a run that was killed goes on
with what was under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data

from qzhou.cluster.ray_data import PartSource, TableSink, backpressure, watched
from qzhou.cluster.session import session
from qzhou.data.prompts import EMPTY_TEXT, Prompt, declared_prompt
from qzhou.data.storage import Folder, write_table
from qzhou.encoder.arithmetic import dtype_for, library_for, this_processor
from qzhou.encoder.model_files import read_metadata
from qzhou.errors import DataError, RecipeError, SetupError
from qzhou.run.models import find_model, local_model, weights_fingerprint
from qzhou.serving.batch_texts import (
    CUT,
    ID,
    TEXT,
    VECTOR,
    Part,
    TextInput,
    files_of,
    rows_of,
    without_what_is_done,
)
from qzhou.serving.outputs import OutputDtype, quantized, shortened
from qzhou.telemetry.events import log_event
from qzhou.telemetry.progress import Progress, progress

if TYPE_CHECKING:
    from qzhou.encoder.backbone import Dtype
    from qzhou.encoder.encoder import Encoder

RECORD = "_embed.json"  # readers of Parquet leave out names that begin so
MAX_TOKENS = 512  # of a model whose files do not say
PRECISIONS: Mapping[str, tuple[OutputDtype, pa.DataType]] = {
    "float32": ("float", pa.float32()),
    "float16": ("float", pa.float16()),
    "int8": ("int8", pa.int8()),
    "ubinary": ("ubinary", pa.uint8()),
}
TASK_CPUS = 0.25  # of tasks that read and write, so that actors which hold every CPU do not keep them out


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """How texts become vectors; the same on every worker.

    Attributes:
        model: Folder, URI or hub id.
        prefix: Stands before each text.
        max_tokens: Texts are truncated here.
        dtype, library: What multiplies.
        dimensions: The first so many are kept; None for all.
        precision: One of ``PRECISIONS``.
        gpu: Whether each worker has a GPU.
    """

    model: str
    prefix: str
    max_tokens: int
    dtype: Dtype
    library: str
    dimensions: int | None
    precision: str
    gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """What a user may ask for; None is the model's own.

    Attributes:
        side: ``query`` or ``document``: whose prompt of the model stands before each text.
        prompt: A text to stand there in its place.
    """

    side: str = "document"
    prompt: str | None = None
    precision: str = "float32"
    dimensions: int | None = None
    max_tokens: int | None = None
    gpu: bool = False


class EmbedBlock:
    """Holds the model; adds the column ``vector`` to a block."""

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings

    @cached_property
    def _encoder(self) -> Encoder:
        # torch takes seconds to load, and the driver has no use for it
        from qzhou.encoder import load_encoder

        one = self._settings
        with local_model(one.model) as place:
            return load_encoder(
                place,
                max_tokens=one.max_tokens,
                dtype=one.dtype,
                library=one.library,
                device=None if one.gpu else "cpu",
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows with their vectors, of the precision and dimensions asked for."""
        kind, of = PRECISIONS[self._settings.precision]
        texts = [self._settings.prefix + (text or EMPTY_TEXT) for text in table.column(TEXT).to_pylist()]
        truncated = self._encoder.truncated
        vectors_ND = self._encoder.encode(texts)
        if not np.isfinite(vectors_ND).all():
            (wrong, *_) = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
            raise DataError(
                f"{self._settings.model} gives no finite vector for the text '{table.column(ID)[int(wrong)]}'"
            )
        values = quantized(shortened(vectors_ND, self._settings.dimensions or vectors_ND.shape[1]), kind)
        flat = pa.array(values.astype(of.to_pandas_dtype(), copy=False).ravel(), of)
        cut = [self._encoder.truncated - truncated] + [0] * (len(texts) - 1)  # for the sink to add up
        table = table.append_column(CUT, pa.array(cut, pa.int64()))
        return table.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))


def write_vectors(folder: Folder, tables: Iterable[pa.Table]) -> Counter[str]:
    """Write tables of texts and vectors, each file whole or not at all.

    Returns: ``rows`` written, and how many of them had no text (``empty``) or were ``truncated``.
    """
    done = Counter[str]()
    filled = (one for one in tables if one.num_rows)  # an empty one has no columns either
    for name, table in (file for one in filled for file in files_of(one)):
        write_table(folder, name, table.drop_columns([CUT]))
        done["rows"] += table.num_rows
        done["empty"] += sum(not text for text in table.column(TEXT).to_pylist())
        done["truncated"] += sum(table.column(CUT).to_pylist())
    return done


def embed(texts: TextInput, into: str, settings: EmbedSettings, *, workers: int | None = None) -> int:
    """Write the vectors of texts into a folder; rows written by this call.

    Args:
        texts: What to encode.
        into: Folder or URI; may hold what an earlier call left unfinished.
        settings: How.
        workers: Actors at the most; default: the cluster's GPUs, or half its CPUs.

    Raises:
        DataError: The folder holds vectors of another model or input, or texts cannot be read.
        ModelError: The model cannot be loaded.
    """
    target = Folder.open(into)
    known = target.files(".parquet")
    begun = target.read_json(RECORD) if known and target.exists(RECORD) else {}  # without a file nothing is decided
    if target.uri == texts.folder.uri:
        raise DataError(f"{target.uri} is where the texts lie: name another folder for the vectors.")
    if begun:
        # decided where the work was begun, perhaps on another processor
        decided = {name: begun["settings"][name] for name in ("dtype", "library")}
        settings = replace(settings, **decided)
    record = {
        "settings": asdict(settings) | {"model": weights_fingerprint(settings.model)},
        "texts": _texts_of(texts),
    }
    if begun:
        _refuse_other(target, record, begun)
    elif known:
        raise DataError(f"{target.uri} holds Parquet files of something else ({known[0]}): name a new folder.")
    every = texts.parts()
    parts = without_what_is_done(every, known)
    for part in parts[:1] if texts.kind != "documents" else ():
        next(texts.blocks(part), None)  # a wrong column is said at once
    target.create().write_json(RECORD, record)
    if len(parts) < len(every) or any(part.done for part in parts):
        log_event(f"embed: {len(known):,} files of {target.uri} are there already", "resumed", files=len(known))
    prompt = f"'{settings.prefix}' before each text" if settings.prefix else "no prompt"
    line = f"embed: {settings.model} with {prompt}, {settings.max_tokens:,} tokens at the most"
    log_event(line, "embed_started", model=settings.model, max_tokens=settings.max_tokens)
    sink = TableSink(partial(write_vectors, target))
    if parts:
        with session(), _shown(target, known):
            _run(texts, parts, settings, sink, workers)
    done = sum(sink.written, Counter[str]())
    _say(done, settings, target)
    return done["rows"]


def _say(done: Mapping[str, int], settings: EmbedSettings, target: Folder) -> None:
    if done["empty"]:
        line = (
            f"embed: {done['empty']:,} rows have no text; they were encoded as '{EMPTY_TEXT}', as by the endpoint"
        )
        log_event(line, "empty_texts", level="warning", rows=done["empty"])
    if done["truncated"]:
        line = (
            f"embed: {done['truncated']:,} texts are longer than {settings.max_tokens:,} tokens and were truncated"
        )
        log_event(line, "truncated", level="warning", rows=done["truncated"])
    line = f"embed: {done['rows']:,} vectors written to {target.uri}"
    log_event(line, "embedded", rows=done["rows"], folder=target.uri)


def _texts_of(texts: TextInput) -> dict[str, Any]:
    """What a vector file depends on besides the settings; files may be added."""
    return {
        "folder": texts.folder.uri, "kind": texts.kind, "column": texts.column, "id": texts.id_column,
        "keep": list(texts.keep), "chunk_tokens": texts.chunk_tokens,
    }  # fmt: skip


def _refuse_other(target: Folder, asked: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for table in asked:
        for name, value in asked[table].items():
            if known[table].get(name) != value:
                raise DataError(
                    f"{target.uri} was begun with {name} = {known[table].get(name)!r}, and now it is {value!r}: name a "
                    "new folder, or give the same command again."
                )


@contextmanager
def _shown(target: Folder, known: Sequence[str]) -> Iterator[None]:
    """Show how many vectors there are; the names of files say it."""
    shown = sum(map(rows_of, known))

    def look(bar: Progress) -> None:
        nonlocal shown
        rows = sum(map(rows_of, target.files(".parquet")))
        if rows > shown:
            bar.advance(rows - shown)
            shown = rows

    with progress("embed", total=None, unit="texts") as bar, watched(partial(look, bar)):
        yield


def _run(
    texts: TextInput, parts: Sequence[Part], settings: EmbedSettings, sink: TableSink, workers: int | None
) -> None:
    resources = ray.cluster_resources()
    there = int(resources.get("GPU", 0)) if settings.gpu else int(resources.get("CPU", 0)) // 2
    if settings.gpu and not there and not workers:
        raise SetupError("--gpu: the cluster has no GPU yet; --workers says how many it may start.")
    most = max(1, workers or there)
    with backpressure():  # reading waits for encoding, where one has to
        read = ray.data.read_datasource(
            PartSource(parts, TextInput.blocks, texts), num_cpus=TASK_CPUS, override_num_blocks=len(parts)
        )
        encoded = read.repartition(target_num_rows_per_block=texts.sizes.rows).map_batches(
            EmbedBlock,
            fn_constructor_args=(settings,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
            num_gpus=1 if settings.gpu else 0,
        )
        encoded.write_datasink(sink, ray_remote_args={"num_cpus": TASK_CPUS})


def settings_of(model: str, asked: EmbedOptions) -> EmbedSettings:
    """The settings for a model: its own prompt of a side and its own limit, and an arithmetic for all workers.

    Raises:
        ModelError: There is no such model.
        RecipeError: It has fewer dimensions.
    """
    place = find_model(model)
    with local_model(place) as local:
        metadata = read_metadata(local)
    if asked.dimensions and metadata.dimensions and asked.dimensions > metadata.dimensions:
        raise RecipeError(f"--dimensions is {asked.dimensions}, and '{model}' has {metadata.dimensions}")
    declared = declared_prompt(metadata.prompts or {}) or Prompt()
    prefix = declared.query_prefix if asked.side == "query" else declared.document_prefix
    limits = (asked.max_tokens, metadata.max_tokens, asked.max_tokens or MAX_TOKENS)
    processor = this_processor()
    return EmbedSettings(
        model=place,
        prefix=prefix if asked.prompt is None else asked.prompt,
        max_tokens=min(limit for limit in limits if limit),
        dtype="auto" if asked.gpu else cast("Dtype", dtype_for("auto", processor)),
        library="torch" if asked.gpu else library_for("auto", processor),
        dimensions=asked.dimensions,
        precision=asked.precision,
        gpu=asked.gpu,
    )
