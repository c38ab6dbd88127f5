"""What a worker does that judges: one model on one task at a time. No ray in here; all that loads mteb is."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mteb

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.encoder import TextEncoder, load_encoder, load_teacher
from qzhou.encoder.vectors import VectorStore
from qzhou.errors import DataError, QzhouError, first_line
from qzhou.evaluation.candidates import BM25
from qzhou.evaluation.instructions import prompt_of
from qzhou.evaluation.messages import Candidate, Judged, Planned
from qzhou.evaluation.models import MtebEncoder, bm25, documents_of, health
from qzhou.evaluation.outcomes import items_of
from qzhou.evaluation.plan import built, corpora, planned, task_name
from qzhou.evaluation.tasks import sizes
from qzhou.evaluation.texts import texts_of
from qzhou.evaluation.vectors import chunk_rows

VERSION = 2  # of what is kept of a judged task
HEALTH_TEXTS = 600
UNDEFINED = "mteb gives no {metric}, as it does where every text has the same vector or every pair the same cosine"
BATCH_TEXTS = 2000  # that mteb hands over at once; the encoder makes its own batches


class Judge:
    """Holds the model and the task of its last call, because the next one often has the same.

    Args:
        recipe: Of the run.
        run_uri: The run's folder.
    """

    def __init__(self, recipe: Recipe, run_uri: str) -> None:
        warnings.filterwarnings("ignore")
        logging.getLogger("mteb").setLevel(logging.ERROR)
        self._recipe, self._run = recipe, Folder.open(run_uri)
        self._folder = self._run / "evaluation"
        self._task: tuple[str, Any] = ("", None)
        self._model: tuple[str, Any] = ("", None)
        self._prompts: dict[str, Prompt] = {}

    def plan(self) -> tuple[list[Planned], dict[str, str]]:
        """See :func:`qzhou.evaluation.plan.planned`."""
        return planned(self._recipe, self._run)

    def load(self, candidate: Candidate) -> None:
        """Have a model ready."""
        self._judged(candidate)

    def encode(self, candidate: Candidate, plan: Planned, start: int, count: int) -> int:
        """Write the vectors of some documents of a task's corpora, counted through all of them.

        A run of documents belongs to whoever has its first one.
        """
        model = self._judged(candidate)
        prompt, store = self._prompt_of(plan), model.store
        before, end = store.encoded, start + count
        for corpus in corpora(self._loaded(plan)):
            for first in range(0, len(corpus), store.rows):
                if start <= first < end:
                    texts = documents_of(
                        corpus.select(range(first, min(first + store.rows, len(corpus))))
                    )
                    store.vectors([prompt.document(text) for text in texts])
            start, end = start - len(corpus), end - len(corpus)
        return int(store.encoded - before)

    def judge(self, candidate: Candidate, plan: Planned) -> Judged:
        """The score of a model on a task, from the run's folder where it is there already.

        Raises:
            DataError: mteb cannot load or judge the task.
        """
        place = self._folder / "judged" / candidate.name
        key = self._key(candidate, plan)
        name = f"{plan.name}.json"
        if place.exists(name) and (known := place.read_json(name))["key"] == key:
            return replace(Judged(**known), again=False)
        started = time.monotonic()
        try:
            found = self._evaluated(candidate, plan, key, started)
        except QzhouError:
            raise
        except Exception as error:  # each task has its own code, and its own way to fail
            raise DataError(
                f"evaluation: mteb cannot judge '{candidate.name}' on '{plan.name}': {first_line(error)}"
            ) from error
        place.create().write_json(name, asdict(found))
        return found

    def health(self, candidate: Candidate, plan: Planned) -> dict[str, float]:
        """How a model's embeddings of a task's texts fill their space (:func:`qzhou.evaluation.models.health`)."""
        model = self._judged(candidate)
        texts = sorted(set(texts_of(self._loaded(plan))), key=lambda text: digest(text))[
            :HEALTH_TEXTS
        ]
        prompt = self._prompt_of(plan)
        return health(model.encoder.encode([prompt.document(text) for text in texts]))

    def _evaluated(self, candidate: Candidate, plan: Planned, key: str, started: float) -> Judged:
        model, task = self._judged(candidate), self._loaded(plan)
        self._prompts[plan.name] = self._prompt_of(plan)
        before = getattr(model, "store", None) and model.store.encoded
        with tempfile.TemporaryDirectory(prefix="qzhou-mteb-") as temporary, _silent():
            cache = mteb.ResultCache(temporary)
            found = mteb.evaluate(
                model,
                task,
                cache=cache,
                overwrite_strategy="always",
                encode_kwargs={"batch_size": BATCH_TEXTS, "show_progress_bar": False},
                prediction_folder=Path(temporary) / "predictions",
                show_progress_bar=False,
                co2_tracker=False,
            )
            result = found.task_results[0]
            score = float(result.get_score())
            items = items_of(task, Path(temporary) / "predictions", score)
            for path in (Path(temporary) / "results").rglob("*.json"):
                inside = path.relative_to(temporary)
                (self._folder / inside.parent.as_posix()).create().write_bytes(
                    inside.name, path.read_bytes()
                )
        return Judged(
            key=key,
            task=plan.name,
            type=plan.type,
            metric=task.metadata.main_score,
            score=score if math.isfinite(score) else 0.0,
            undefined=""
            if math.isfinite(score)
            else UNDEFINED.format(metric=task.metadata.main_score),
            n=sum(len(part.values) for part in items.parts) if items else sizes(task),
            data=str(task.metadata.dataset["revision"]),
            items=items.plain() if items else {},
            seconds=round(time.monotonic() - started, 3),
            encoded=model.store.encoded - before if before is not None else 0,
        )

    def _key(self, candidate: Candidate, plan: Planned) -> str:
        """Digest of weights, prompt, data and judge."""
        revision = self._bare(plan).metadata.dataset["revision"]
        if candidate.name == BM25:
            return digest([VERSION, version("mteb"), version("bm25s"), revision])
        prompt = asdict(self._prompt_of(plan))
        return digest(
            [
                VERSION,
                version("mteb"),
                self._judged(candidate).mteb_model_meta.revision,
                prompt,
                revision,
            ]
        )

    def _bare(self, plan: Planned) -> Any:
        """The task; one of mteb's without its data, which takes long and is not needed for what is judged already."""
        if self._task[0] != plan.name:
            self._task = plan.name, built(plan, self._recipe, self._run)
        return self._task[1]

    def _loaded(self, plan: Planned) -> Any:
        task = self._bare(plan)
        if not task.data_loaded:
            try:
                task.load_data()
            except QzhouError:
                raise
            except Exception as error:  # each task loads in its own way
                raise DataError(
                    f"evaluation.tasks: the data of '{plan.name}' cannot be loaded: {first_line(error)}. Run where a "
                    "hub can be reached (HF_ENDPOINT, HF_TOKEN), or take the task out."
                ) from None
        return task

    def _judged(self, candidate: Candidate) -> Any:
        if self._model[0] != candidate.name:
            self._model = ("", None)  # the old one's memory is free before the new one is loaded
            self._model = (
                candidate.name,
                bm25() if candidate.name == BM25 else self._encoder_of(candidate),
            )
        return self._model[1]

    def _encoder_of(self, candidate: Candidate) -> MtebEncoder:
        encoder = self._opened(candidate)
        rows = chunk_rows(self._recipe.evaluation.split_documents)
        store = VectorStore(self._folder / "vectors", encoder, rows=rows)
        return MtebEncoder(
            encoder,
            self._prompts,
            name=f"{self._recipe.run.name}-{candidate.name}",
            revision=store.key,
            store=store,
        )

    def _opened(self, candidate: Candidate) -> TextEncoder:
        own, settings = self._recipe.model, self._recipe.evaluation
        most = settings.max_tokens or own.max_document_tokens
        if candidate.trained:
            with (self._run / candidate.spec).local_copy() as place:
                return load_encoder(
                    str(place),
                    max_tokens=most,
                    dtype=own.encodes_in,
                    library=own.arithmetic,
                    compiled=own.compiled,
                )
        model = own.model_copy(update={"max_document_tokens": most})
        return load_teacher(candidate.spec, model, api_key_env=settings.api_key_env)

    @cached_property
    def _own_prompts(self) -> dict[str, Prompt]:
        return {
            task_name(one, kind): one.prompt for one in self._recipe.datasets for kind in one.kinds
        }

    def _prompt_of(self, plan: Planned) -> Prompt:
        return prompt_of(self._bare(plan), self._own_prompts, self._recipe.evaluation.instructions)


@contextlib.contextmanager
def _silent() -> Any:
    """The bars of mteb and bm25s do not know that there is no terminal."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def mteb_result(folder: Folder, judged: Judged) -> dict[str, Any]:
    """mteb's own result of a judged task, from the run's folder."""
    (found,) = [
        name for name in folder.files(f"/{judged.task}.json", recursive=True) if "results/" in name
    ]
    return dict(json.loads(folder.read_bytes(found)))
