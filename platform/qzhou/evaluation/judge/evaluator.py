"""What an evaluation worker does: it scores one model on one task at a time. Loads mteb, and no ray."""

import contextlib
import copy
import io
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mteb

from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt
from qzhou.data.records import digest
from qzhou.data.storage import Folder
from qzhou.encoder import TextEncoder, load_encoder, load_text_encoder
from qzhou.encoder.vectors import VectorStore
from qzhou.errors import DataError, QzhouError, first_line
from qzhou.evaluation.judge.local_tasks import example_count
from qzhou.evaluation.judge.model_specs import BM25, ModelSpec
from qzhou.evaluation.judge.mteb_models import BM25_MODEL, MtebEncoder, embedding_health
from qzhou.evaluation.judge.mteb_tasks import corpora, corpus_texts, load, texts_of
from qzhou.evaluation.judge.predictions import answers_of, per_example_scores_of
from qzhou.evaluation.judge.prompts import prompt_of_model, prompt_of_trained
from qzhou.evaluation.judge.task_scores import EvalTask, TaskScore
from qzhou.evaluation.judge.tasks import SETTING, build_task, eval_tasks, query_instructions, task_name
from qzhou.run.code import code_of_stage
from qzhou.run.files import EVALUATION, SCORES, RunFiles

HEALTH_TEXTS = 600
UNDEFINED = "mteb gives no {metric}, as it does where every text has the same vector or every pair the same cosine"
MTEB_ROWS = 50_000  # documents that mteb asks for at a time; chunks begin anew there
CHUNK_ROWS = 2000  # documents in a file of vectors
BATCH_TEXTS = 2000  # that mteb hands over at once; the encoder makes batches of its own


class Evaluator:
    """Scores models; keeps the model and the task of its last call, because the next call often has the same.

    Args:
        recipe: The recipe of the run.
        run_uri: The folder of the run.
    """

    def __init__(self, recipe: Recipe, run_uri: str) -> None:
        warnings.filterwarnings("ignore")
        logging.getLogger("mteb").setLevel(logging.ERROR)
        self._recipe, self._run = recipe, Folder.open(run_uri)
        self._folder = self._run / EVALUATION
        self._task: tuple[str, Any] = ("", None)
        self._random: tuple[Any, Any] = (None, None)
        self._model: tuple[str, Any] = ("", None)
        self._prompts: dict[str, Prompt] = {}
        self._instructions: dict[str, Mapping[str, str]] = {}
        self._asked_with: tuple[str, Mapping[str, str]] = ("", {})
        self._code = code_of_stage([__name__], without=("qzhou.config", "qzhou.data"))
        datasets = recipe.datasets
        self._own_prompts = {task_name(one, kind): one.prompt for one in datasets for kind in one.kinds}

    def tasks(self) -> tuple[list[EvalTask], dict[str, str]]:
        """See :func:`qzhou.evaluation.judge.tasks.eval_tasks`."""
        return eval_tasks(self._recipe, self._run)

    def load(self, model: ModelSpec) -> None:
        """Have a model ready."""
        self._loaded(model)

    def encode(self, model: ModelSpec, task: EvalTask, start: int, count: int) -> int:
        """Write the vectors of some documents of a task, and return how many were encoded.

        A file of vectors is written by the caller whose range has its first document.

        Args:
            model: The model that encodes.
            task: The task to which the documents belong.
            start: The first document, counted through all corpora of the task.
            count: The number of documents.
        """
        loaded = self._loaded(model)
        prompt, store = self._prompt(model, task), loaded.store
        before, end = store.encoded, start + count
        for corpus in corpora(self._loaded_task(task)):
            for first in range(0, len(corpus), store.rows):
                if start <= first < end:
                    rows = corpus.select(range(first, min(first + store.rows, len(corpus))))
                    texts = [prompt.document(text) for text in corpus_texts(rows)]
                    store.vectors(texts)
            start, end = start - len(corpus), end - len(corpus)
        return int(store.encoded - before)

    def score(self, model: ModelSpec, task: EvalTask) -> TaskScore:
        """The score of a model on a task, from the run folder where it was computed before.

        Raises:
            DataError: mteb cannot load or score the task.
        """
        key = self._key(model, task)
        known = TaskScore.read(RunFiles(self._run), model.name, task.name)
        if known is not None and known.key == key:
            return replace(known, computed=False)
        try:
            found = self._computed(model, task, key)
        except QzhouError:
            raise
        except Exception as error:  # every task of mteb has code of its own, which fails in its own way
            raise DataError(
                f"evaluation: mteb cannot judge '{model.name}' on '{task.name}': {first_line(error)}"
            ) from error
        (self._run / SCORES / model.name).create().write_json(f"{task.name}.json", asdict(found))
        return found

    def embedding_health(self, model: ModelSpec, task: EvalTask) -> dict[str, float]:
        """How well a model's embeddings of a task's texts use their space.

        See :func:`qzhou.evaluation.judge.mteb_models.embedding_health`.
        """
        prompt, encoder = self._prompt(model, task), self._loaded(model).encoder
        texts = sorted(set(texts_of(self._loaded_task(task))), key=digest)[:HEALTH_TEXTS]
        return embedding_health(encoder.encode([prompt.document(text) for text in texts]))

    def _computed(self, model: ModelSpec, task: EvalTask, key: str) -> TaskScore:
        started = time.monotonic()
        loaded, mteb_task = self._loaded(model), self._loaded_task(task)
        if model.name != BM25:
            self._prompts[task.name] = self._prompt(model, task)
            self._instructions[task.name] = self._query_instructions(model, task)
        # mteb samples texts and classes by these; another model must get the same
        mteb_task.rng_state, mteb_task.np_rng = copy.deepcopy(self._random)
        store = getattr(loaded, "store", None)  # BM25 has none
        before = store.encoded if store else 0
        with tempfile.TemporaryDirectory(prefix="qzhou-mteb-") as temporary:
            predictions = Path(temporary) / "predictions"
            score = _score(loaded, mteb_task, Path(temporary), predictions)
            examples = per_example_scores_of(mteb_task, predictions, score)
            answers = answers_of(mteb_task, predictions) if task.dataset else ()
            self._keep_results(Path(temporary))
        metric, is_number = mteb_task.metadata.main_score, math.isfinite(score)
        return TaskScore(
            key=key,
            task=task.name,
            type=task.type,
            metric=metric,
            score=score if is_number else 0.0,
            undefined="" if is_number else UNDEFINED.format(metric=metric),
            n=examples.count if examples else example_count(mteb_task),
            data_revision=str(mteb_task.metadata.dataset["revision"]),
            per_example=examples,
            seconds=round(time.monotonic() - started, 3),
            encoded_texts=store.encoded - before if store else 0,
            answers=answers,
        )

    def _keep_results(self, temporary: Path) -> None:
        """Copy mteb's result files into the run folder, where its tools can read them."""
        for path in (temporary / "results").rglob("*.json"):
            folder = self._folder / path.relative_to(temporary).parent.as_posix()
            folder.create().write_bytes(path.name, path.read_bytes())

    def _key(self, model: ModelSpec, task: EvalTask) -> str:
        """Digest of weights, prompt, data, libraries and our own code."""
        revision = self._bare_task(task).metadata.dataset["revision"]
        parts: list[object] = [self._code, version("mteb"), task.subsets, task.splits]
        if model.name == BM25:
            return digest([*parts, version("bm25s"), revision])
        weights = self._loaded(model).mteb_model_meta.revision
        prompts = asdict(self._prompt(model, task)), self._query_instructions(model, task)
        return digest([*parts, weights, prompts, revision])

    def _loaded(self, model: ModelSpec) -> Any:
        """The model as mteb calls it."""
        if self._model[0] != model.name:
            self._model = ("", None)  # frees the old model's memory before the new one is loaded
            found = mteb.get_model(BM25_MODEL) if model.name == BM25 else self._mteb_encoder(model)
            self._model = model.name, found
        return self._model[1]

    def _bare_task(self, task: EvalTask) -> Any:
        """The task, perhaps without data: that loads slowly; a stored score needs none."""
        if self._task[0] != task.name:
            self._task = task.name, build_task(task, self._recipe, self._run)
            self._random = copy.deepcopy((self._task[1].rng_state, self._task[1].np_rng))
        return self._task[1]

    def _loaded_task(self, task: EvalTask) -> Any:
        found = self._bare_task(task)
        load(found, setting=SETTING)
        return found

    def _mteb_encoder(self, model: ModelSpec) -> MtebEncoder:
        encoder = self._encoder(model)
        name = f"{self._recipe.run.name}-{model.name}"
        rows = chunk_rows(self._recipe.evaluation.split_documents)
        store = VectorStore(self._folder / "vectors", encoder, rows=rows)
        return MtebEncoder(encoder, self._prompts, self._instructions, name=name, revision=store.key, store=store)

    def _encoder(self, model: ModelSpec) -> TextEncoder:
        own, settings = self._recipe.model, self._recipe.evaluation
        most = settings.max_tokens or own.max_document_tokens
        if model.trained:
            with (self._run / model.source).local_copy() as place:
                return load_encoder(
                    str(place), max_tokens=most, dtype=own.encodes_in, library=own.arithmetic, compiled=own.compiled
                )
        limited = own.model_copy(update={"max_document_tokens": most})
        return load_text_encoder(model.source, limited, api_key_env=settings.api_key_env)

    def _prompt(self, model: ModelSpec, task: EvalTask) -> Prompt:
        """The prompt of a task's texts: the recipe's for what it trained, and the model's own for other models."""
        bare, declared = self._bare_task(task), self._declared_prompts(model)
        if declared is not None:
            return prompt_of_model(bare, declared)
        return prompt_of_trained(bare, self._own_prompts, self._recipe, [*dict(task.aggregates)])

    def _query_instructions(self, model: ModelSpec, task: EvalTask) -> Mapping[str, str]:
        """Query -> its own instruction, for models that are judged with the recipe's prompts."""
        if self._declared_prompts(model) is not None:
            return {}
        if self._asked_with[0] != task.name:
            self._asked_with = task.name, query_instructions(task, self._recipe, self._run)
        return self._asked_with[1]

    def _declared_prompts(self, model: ModelSpec) -> Mapping[str, str] | None:
        """The prompts of a model that is judged with its own; None where the recipe's are used."""
        if model.trained or model.name in self._recipe.evaluation.models_with_recipe_prompts:
            return None
        declared: Mapping[str, str] | None = self._loaded(model).encoder.prompts
        return declared


def _score(model: Any, task: Any, results: Path, predictions: Path) -> float:
    """The main score of a model on a task; mteb leaves its files in both folders."""
    # mteb and bm25s draw progress bars even where there is no terminal
    with contextlib.redirect_stderr(io.StringIO()):
        found = mteb.evaluate(
            model,
            task,
            cache=mteb.ResultCache(results),
            overwrite_strategy="always",
            encode_kwargs={"batch_size": BATCH_TEXTS, "show_progress_bar": False},
            prediction_folder=predictions,
            show_progress_bar=False,
            co2_tracker=False,
        )
    return float(found.task_results[0].get_score())


def chunk_rows(split_documents: int) -> int:
    """Documents in a file of vectors: a divisor of what mteb asks for at a time, at most what a worker encodes."""
    most = min(CHUNK_ROWS, split_documents, MTEB_ROWS)
    return next(rows for rows in range(most, 0, -1) if MTEB_ROWS % rows == 0)
