"""Works out what there is to do, stage by stage: :func:`workload_of`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from qzhou.config.recipe import Recipe
from qzhou.config.training import StageSection
from qzhou.costs.shapes import PUBLISHED, Shape, shape_of
from qzhou.costs.training import (
    DatasetTexts,
    StageCost,
    Work,
    expected_steps,
    forward_flops,
    memory_of,
    method_of,
)
from qzhou.errors import ModelError
from qzhou.planning.amounts import Amount, Counted, Workload
from qzhou.planning.assumptions import Assumptions
from qzhou.planning.sizes import DatasetRows

SEARCH_WIDTH = 384  # of the vectors that search was measured with
OWN_MODELS = 3  # that evaluation judges besides those the recipe names: backbone and both stages
# for a teacher whose size is not known: the paper's is a large BERT too
LIKE_A_TEACHER = "BAAI/bge-large-zh-v1.5"
VECTOR_BYTES = 4
# bytes of a weight in a checkpoint: itself, its copy in float32, two moments
BFLOAT16_STATE, FLOAT32_STATE = 14, 12


def workload_of(
    recipe: Recipe,
    rows: Sequence[DatasetRows],
    texts: Mapping[str, DatasetTexts],
    assumed: Assumptions,
    *,
    gpus: int,
    counted: Counted | None = None,
) -> Workload:
    """What a run of so many rows has to do.

    Args:
        texts: Dataset -> lengths of its texts; rows are taken from ``rows``.
        gpus: That training is shared by: the more, the less of a batch is encoded twice. 1 on a CPU.
        counted: By a finished run.

    Raises:
        ModelError: The backbone's size is not known.
        DataError: A stage of training has no dataset to draw from.
    """
    return _Work(recipe, rows, texts, assumed, gpus, counted or Counted()).all()


class _Work:
    """The stages one after the other."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Sequence[DatasetRows],
        texts: Mapping[str, DatasetTexts],
        assumed: Assumptions,
        gpus: int,
        counted: Counted,
    ) -> None:
        self.recipe, self.rows, self.assumed, self.gpus = recipe, rows, assumed, gpus
        self.texts = texts
        self.per_example = counted.texts_per_example or assumed["texts_per_example"]
        self.llm_tokens = counted.llm_tokens
        self.notes: list[str] = []
        self.parts: dict[str, float] = {}
        self.shape = shape_of(recipe.model.backbone).shape
        self.teachers = [self._teacher(name) for name in recipe.mining.teachers]
        distilled = recipe.training.distillation.teacher
        self.method = method_of(
            recipe.training, self.shape, shape_of(distilled).shape if distilled else None
        )

    def all(self) -> Workload:
        stages = {
            "transform": self._transform(),
            "synthesis": self._synthesize(),
            "mining": self._mine(),
            "training/stage1": self._train(
                "training/stage1", self.recipe.training.stage1, only_retrieval=True
            ),
            "training/stage2": self._train(
                "training/stage2", self.recipe.training.stage2, only_retrieval=False
            ),
            "model": self._export(),
            "evaluation": self._evaluate(),
        }
        raw = sum(one.raw for one in self.rows)
        requests = sum(one.requests for one in self.rows)
        return Workload(
            rows=self.rows,
            stages=stages,
            parts=self.parts,
            row_bytes=sum(one.raw * self._bytes(one) for one in self.rows) / raw if raw else 0.0,
            shape=self.shape,
            teacher=self.teachers[0],
            memory=memory_of(self.recipe, self.method),
            tasks=self._tasks(),
            requests=requests,
            request_tokens=stages["synthesis"].tokens / requests if requests else 0.0,
            notes=self.notes,
        )

    def _transform(self) -> Amount:
        self.parts["transform.rows"] = raw = sum(one.raw for one in self.rows)
        kept = (
            sum((one.kept + one.held_out) * self._bytes(one) for one in self.rows)
            * self.assumed["parquet_share"]
        )
        return Amount(
            rows_in=raw,
            rows_out=sum(one.kept for one in self.rows),
            out="examples",
            read=sum(one.raw * self._bytes(one) for one in self.rows),
            written=kept,
            kept=kept,
        )

    def _synthesize(self) -> Amount:
        settings = self.recipe.synthesis
        requests = sum(one.requests for one in self.rows)
        self.parts["synthesis.requests"] = requests
        self.parts["synthesis.score"] = 0.0
        prompt, answer = self._llm_tokens(requests) if requests else (0.0, 0.0)
        if settings.is_on and settings.gates.scores:
            judged = sum((self._example(one).times(one.requests) for one in self.rows), Work())
            self.parts["synthesis.score"] = forward_flops(self.teachers[0], judged)
        out = self._example_bytes(lambda one: one.trained)
        journal = (prompt + answer) * self.assumed["chars_per_token"] if requests else 0.0
        return Amount(
            rows_in=sum(one.kept for one in self.rows),
            rows_out=sum(one.trained for one in self.rows),
            out="examples",
            tokens=prompt + answer,
            flops=self.parts["synthesis.score"],
            read=self._example_bytes(lambda one: one.kept),
            written=out + journal,
            kept=out + journal,
            money=self._money(prompt, answer) if requests else 0.0,
        )

    def _llm_tokens(self, requests: float) -> tuple[float, float]:
        """Of prompts and answers: as counted, else instructions and an example each, and an example answered."""
        if self.llm_tokens is not None:
            return requests * self.llm_tokens[0], requests * self.llm_tokens[1]
        settings = self.recipe.synthesis
        retries = not settings.is_builtin and settings.parse_retries > 0
        again = 1 + (self.assumed["asked_again"] if retries else 0.0)
        text = sum(one.requests * self._example_tokens(one) for one in self.rows) * again
        return requests * again * self.assumed["prompt_tokens"] + text, text

    def _money(self, prompt: float, answer: float) -> float:
        """At the recipe's prices; a model without any is taken to cost what the table says."""
        pool, found = self.recipe.synthesis.pool, 0.0
        if self.recipe.synthesis.is_builtin:
            return 0.0
        weights = sum(one.weight for one in pool)
        for one in pool:
            prices = one.input_price, one.output_price
            if not any(prices):
                prices = self.assumed["llm_input_price"], self.assumed["llm_output_price"]
            found += one.weight / weights * (prompt * prices[0] + answer * prices[1]) / 1e6
        return found

    def _mine(self) -> Amount:
        retrieval = [one for one in self.rows if one.task == "retrieval" and one.trained]
        asked, encoded, search, vectors = Work(), Work(), 0.0, 0.0
        for one in retrieval:
            own = self.texts[one.name]
            documents = one.trained * (self.per_example - 1)
            asked = Work.of(one.trained, own.queries) + Work.of(documents, own.documents)
            encoded += asked
            for teacher in self.teachers:
                scores = one.trained * documents * teacher.width / SEARCH_WIDTH
                search += one.trained * self.assumed["search_s_per_query"]
                search += scores * self.assumed["search_s_per_score"]
                vectors += asked.texts * teacher.width * VECTOR_BYTES
        flops = sum(forward_flops(teacher, encoded) for teacher in self.teachers)
        self.parts |= {"mining.encode": flops, "mining.search": search}
        # of an example half is query and positive
        negatives = 1 + self.recipe.mining.negatives_per_query / 2
        out = self._example_bytes(
            lambda one: one.trained * (negatives if one.task == "retrieval" else 1.0)
        )
        return Amount(
            rows_in=sum(one.trained for one in self.rows),
            rows_out=sum(one.trained for one in self.rows),
            out="examples",
            tokens=encoded.tokens * len(self.teachers),
            flops=flops,
            read=self._example_bytes(lambda one: one.trained) + vectors * 2,
            written=vectors + out,
            kept=vectors + out,
        )

    def _train(self, name: str, stage: StageSection, *, only_retrieval: bool) -> Amount:
        sets = [
            dataclasses.replace(self.texts[one.name], rows=max(1, round(one.trained)))
            for one in self.rows
            if one.trained
            and one.name in self._trained
            and not (only_retrieval and one.task != "retrieval")
        ]
        cost = StageCost(expected_steps(sets, self.recipe.training, stage), self.method)
        self.parts[f"{name}.steps"] = flops = cost.flops_on(self.gpus)
        state = BFLOAT16_STATE if self.recipe.model.dtype != "float32" else FLOAT32_STATE
        parameters = (
            self.method.shape.adapter_parameters(self.recipe.training.lora.rank)
            or self.shape.parameters
        )
        saves = -(-stage.steps // self.recipe.training.save_every_steps)
        model = self._model_bytes
        kept = min(saves, self.recipe.training.keep_checkpoints) * state * parameters + model
        return Amount(
            rows_in=sum(one.rows or 0 for one in sets),
            rows_out=stage.steps,
            out="steps",
            tokens=cost.work.tokens,
            flops=flops,
            read=self._example_bytes(lambda one: one.trained) + self.shape.parameters * 2,
            written=saves * state * parameters + model,
            kept=kept,
        )

    def _export(self) -> Amount:
        self.parts["model.export"] = 1.0
        model = self._model_bytes
        return Amount(rows_in=1, rows_out=1, out="model", read=model, written=model, kept=model)

    def _evaluate(self) -> Amount:
        settings = self.recipe.evaluation
        models = OWN_MODELS + len(settings.models)
        work, scores = Work(), 0
        for one in self.rows:
            own = self.texts.get(one.name)
            if not one.held_out or own is None:
                continue
            scores += models + (settings.bm25 and one.task == "retrieval")
            if one.task == "retrieval":
                work += Work.of(min(one.held_out, settings.max_queries), own.queries)
                work += Work.of(min(one.held_out, settings.max_documents), own.documents)
            else:
                work += Work.of(
                    min(one.held_out, settings.max_rows) * (1 + (one.task == "pair")), own.documents
                )
        if settings.tasks:
            texts = next((own for own in self.texts.values() if own.task == "retrieval"), None)
            assert texts is not None  # stage 1 trains on retrieval
            work += Work.of(len(settings.tasks) * self.assumed["named_task_texts"], texts.documents)
            scores += len(settings.tasks) * models
        flops = forward_flops(self.shape, work) * models
        self.parts["evaluation.judge"] = flops
        vectors = work.texts * models * self.shape.width * VECTOR_BYTES
        return Amount(
            rows_in=work.texts,
            rows_out=scores,
            out="scores",
            tokens=work.tokens * models,
            flops=flops,
            read=self._model_bytes * models if scores else 0.0,
            written=vectors,
            kept=vectors,
        )

    def _tasks(self) -> int:
        return sum(bool(one.held_out) for one in self.rows) + len(self.recipe.evaluation.tasks)

    def _teacher(self, name: str) -> Shape:
        if not name:
            return self.shape
        try:
            return shape_of(name).shape
        except ModelError:
            self.notes.append(
                f"the size of the teacher '{name}' is not known: counted as {LIKE_A_TEACHER}"
            )
            return PUBLISHED[LIKE_A_TEACHER]

    @property
    def _trained(self) -> set[str]:
        return {one.name for one in self.recipe.trained_datasets}

    @property
    def _model_bytes(self) -> float:
        return self.shape.parameters * (4.0 if self.recipe.model.saved_dtype == "float32" else 2.0)

    def _example(self, one: DatasetRows) -> Work:
        """The texts of one example, without negatives."""
        own = self.texts.get(one.name)
        if own is None:
            return Work()
        if one.task == "retrieval":
            return Work.of(1, own.queries) + Work.of(1, own.documents)
        return Work.of(2 if one.task == "pair" else 1, own.documents)

    def _example_tokens(self, one: DatasetRows) -> float:
        return self._example(one).tokens

    def _bytes(self, one: DatasetRows) -> float:
        return self._example_tokens(one) * self.assumed["chars_per_token"]

    def _example_bytes(self, count: Callable[[DatasetRows], float]) -> float:
        """Of all datasets' examples as Parquet."""
        return (
            sum(count(one) * self._bytes(one) for one in self.rows) * self.assumed["parquet_share"]
        )
