"""What each stage of a run has to do, and how long it takes by the table of assumptions.

    stage                    its work                                       grows with
    transform                raw rows                                       their bytes
    synthesis                requests, and the teacher that scores answers  requests; operations
    mining                   the teachers on every text once, and search    operations; queries and scores
    training, two stages     steps, gradient caching included               operations
    export                   one model                                      -
    evaluation               all models on all held-out texts               operations; models and tasks

Workers, models and tasks of mteb also have a start, which does not grow with the rows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from qzhou.config.recipe import Recipe
from qzhou.config.training import StageSection, TrainingStageName
from qzhou.errors import ModelError
from qzhou.estimate.assumptions import Assumptions
from qzhou.estimate.cluster_spec import ClusterSpec, MachineGroup
from qzhou.estimate.llm import llm_price, llm_tokens, seconds_per_request
from qzhou.estimate.model_shape import ModelShape, published_shapes, shape_of
from qzhou.estimate.rows import DatasetRows
from qzhou.estimate.training import (
    DatasetTexts,
    EncodedTexts,
    TrainingMethod,
    TrainingStageCost,
    expected_steps,
    forward_flops,
)
from qzhou.estimate.workload import HOUR_S, Workload
from qzhou.run.files import EVALUATION, EXPORT, MINING, SYNTHESIS, TRAINING_STAGES, TRANSFORM

SEARCH_WIDTH = 384  # of the vectors that search was measured with
# for a teacher whose size is not known: the teacher of the paper is a large BERT too
LIKE_A_TEACHER = "BAAI/bge-large-zh-v1.5"
VECTOR_BYTES = 4
# bytes of a weight in a checkpoint: itself, its copy in float32, two moments
BFLOAT16_STATE, FLOAT32_STATE = 14, 12


@dataclasses.dataclass(slots=True)
class StageEstimator:
    """Computes the workload of every stage.

    Attributes:
        rows: Rows of every dataset.
        texts: Dataset -> its texts; only their lengths count.
        llm_tokens: Prompt and answer tokens per request, as counted in a finished run.
        notes: Sizes that are taken for others.

    Raises:
        ModelError: The size of the backbone is not known.
        DataError: A training stage has no dataset to draw from.
    """

    recipe: Recipe
    rows: Sequence[DatasetRows]
    texts: Mapping[str, DatasetTexts]
    assumed: Assumptions
    cluster: ClusterSpec
    llm_tokens: tuple[float, float] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    method: TrainingMethod = dataclasses.field(init=False)
    teachers: list[ModelShape] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.method = TrainingMethod.of(self.recipe)
        self.teachers = [self._teacher(name) for name in self.recipe.mining.teachers]

    def stages(self) -> list[Workload]:
        """All stages in the order of the pipeline."""
        found = [
            self._transform(),
            self._synthesis(),
            self._mining(),
            *map(self._training, self.recipe.training.stages),
            self._export(),
            self._evaluation(),
        ]
        return [self._with_storage(one) for one in found] if self.cluster.rented else found

    def s_per_flop(self, utilisation: str) -> float:
        """Seconds per operation of the machines that train and encode."""
        group = self.cluster.gpu
        if group.gpu is not None:
            return 1 / (group.gpus * group.gpu.flops * self.assumed[utilisation])
        utilised = self.assumed["cpu_flops"] * self.assumed[f"cpu_{utilisation}"]
        return 1 / (group.cpus * utilised)

    @property
    def requests(self) -> float:
        """First requests to an LLM."""
        return sum(one.requests for one in self.rows)

    def _with_storage(self, one: Workload) -> Workload:
        """On rented machines bytes pass through an object store; without work, none do."""
        if not one.start_s:
            return one
        bytes_per_s = one.machines.count * self.assumed["storage_bytes_per_s"]
        return dataclasses.replace(one, storage_s=(one.read_bytes + one.written_bytes) / bytes_per_s)

    def _transform(self) -> Workload:
        read = sum(one.raw * self._example_bytes(one) for one in self.rows)
        cpus = _effective_cpus(self.cluster.cpu, self.assumed)
        return Workload(
            name=TRANSFORM,
            machines=self.cluster.cpu,
            rows_in=sum(one.raw for one in self.rows),
            rows_out=sum(one.kept for one in self.rows),
            unit="examples",
            read_bytes=read,
            written_bytes=self._parquet_bytes(lambda one: one.kept + one.held_out),
            start_s=self.assumed["stage_start_s"],
            work_s=read / (self.assumed["transform_bytes_per_cpu_s"] * cpus),
        )

    def _synthesis(self) -> Workload:
        """One machine waits for the answers; a teacher scores them on those with GPUs."""
        settings, requests = self.recipe.synthesis, self.requests
        written = self._parquet_bytes(lambda one: one.trained)
        prompt = answer = flops = start_s = work_s = scoring_s = llm_usd = 0.0
        if requests:
            text = sum(one.requests * self._example(one).tokens for one in self.rows)
            prompt, answer = llm_tokens(settings, requests, text, self.assumed)
            if self.llm_tokens is not None:
                prompt, answer = (requests * one for one in self.llm_tokens)
            llm_usd = llm_price(settings, prompt, answer, self.assumed)
            written += (prompt + answer) * self.assumed["chars_per_token"]  # cached answers
            start_s = self.assumed["stage_start_s"]
            tokens = (prompt + answer) / requests
            work_s = requests * seconds_per_request(settings, tokens, self.assumed)
        if requests and settings.is_on and settings.filters.scores:
            scored = sum((self._example(one) * one.requests for one in self.rows), EncodedTexts())
            flops = forward_flops(self.teachers[0], scored)
            encode_s = flops * self.s_per_flop("encode_utilisation")
            scoring_s = self.assumed["worker_start_s"] + encode_s
            start_s += self.assumed["worker_start_s"]
            work_s += encode_s
        return Workload(
            name=SYNTHESIS,
            machines=self.cluster.cpu.one,
            rows_in=sum(one.kept for one in self.rows),
            rows_out=sum(one.trained for one in self.rows),
            unit="examples",
            tokens=prompt + answer,
            flops=flops,
            read_bytes=self._parquet_bytes(lambda one: one.kept),
            written_bytes=written,
            start_s=start_s,
            work_s=work_s,
            llm_usd=llm_usd,
            scoring_usd=self.cluster.gpu.price * scoring_s / HOUR_S,
        )

    def _mining(self) -> Workload:
        encoded, search_s, vector_bytes = EncodedTexts(), 0.0, 0.0
        for one in self.rows:
            if one.task != "retrieval" or not one.trained:
                continue
            own = self.texts[one.name]
            documents = one.trained * (self.assumed["texts_per_example"] - 1)
            texts = own.query * one.trained + own.document * documents
            encoded += texts
            for teacher in self.teachers:
                # the time of a product of vectors grows with their width
                scores = one.trained * documents * teacher.width / SEARCH_WIDTH
                search_s += one.trained * self.assumed["search_s_per_query"]
                search_s += scores * self.assumed["search_s_per_score"]
                vector_bytes += texts.texts * teacher.width * VECTOR_BYTES
        # query and positive are about one half of an example each, and so is a negative
        growth = 1 + self.recipe.mining.negatives_per_query / 2
        examples = self._parquet_bytes(lambda one: one.trained * (growth if one.task == "retrieval" else 1))
        flops = sum(forward_flops(teacher, encoded) for teacher in self.teachers)
        search_s /= _effective_cpus(self.cluster.gpu, self.assumed)
        trained = sum(one.trained for one in self.rows)
        return Workload(
            name=MINING,
            machines=self.cluster.gpu,
            rows_in=trained,
            rows_out=trained,
            unit="examples",
            tokens=encoded.tokens * len(self.teachers),
            flops=flops,
            read_bytes=self._parquet_bytes(lambda one: one.trained) + vector_bytes * 2,
            written_bytes=vector_bytes + examples,
            start_s=self._load_s + self.assumed["stage_start_s"] if flops else 0.0,
            work_s=flops * self.s_per_flop("encode_utilisation") + search_s,
        )

    def _trained_rows(self, name: TrainingStageName) -> list[DatasetRows]:
        names = {one.name for one in self.recipe.trained_datasets if name == "stage2" or one.task == "retrieval"}
        return [one for one in self.rows if one.trained and one.name in names]

    def _training_cost(self, name: TrainingStageName) -> TrainingStageCost:
        training = self.recipe.training
        datasets = [
            dataclasses.replace(self.texts[one.name], rows=max(1, round(one.trained)))
            for one in self._trained_rows(name)
        ]
        return TrainingStageCost(expected_steps(datasets, training, getattr(training, name)), self.method)

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations on a GPU, in the largest step of both stages."""
        largest = max(self._training_cost(name).largest_step for name in self.recipe.training.stages)
        return self.method.activation_bytes(largest / max(1, self.cluster.gpu.gpus))

    def _training(self, name: TrainingStageName) -> Workload:
        training, shape = self.recipe.training, self.method.shape
        stage: StageSection = getattr(training, name)
        cost = self._training_cost(name)
        flops = cost.flops_on(max(1, self.cluster.gpu.gpus))
        trained = shape.adapter_parameters(training.lora.rank) or shape.parameters
        checkpoint = trained * (FLOAT32_STATE if self.recipe.model.dtype == "float32" else BFLOAT16_STATE)
        saves = -(-stage.steps // training.save_every_steps)
        return Workload(
            name=TRAINING_STAGES[name],
            machines=self.cluster.gpu,
            rows_in=sum(max(1, round(one.trained)) for one in self._trained_rows(name)),
            rows_out=stage.steps,
            unit="steps",
            tokens=cost.texts.tokens,
            flops=flops,
            read_bytes=self._parquet_bytes(lambda one: one.trained) + shape.parameters * 2,
            written_bytes=saves * checkpoint + self._model_bytes,
            deleted_bytes=max(0, saves - training.keep_checkpoints) * checkpoint,
            start_s=self._load_s,
            work_s=flops * self.s_per_flop("train_utilisation") + self._sending_s(cost),
        )

    def _sending_s(self, cost: TrainingStageCost) -> float:
        """Seconds in which GPUs exchange weights and gradients, as if they computed nothing meanwhile."""
        gpus = self.cluster.gpu.gpus
        if gpus < 2:
            return 0.0
        sent = cost.sent_bytes(gpus, zero_stage=self.recipe.training.zero_stage)
        return sent / self.assumed["all_reduce_bytes_per_s"]

    def _export(self) -> Workload:
        return Workload(
            name=EXPORT,
            machines=self.cluster.gpu,
            rows_in=1,
            rows_out=1,
            unit="model",
            read_bytes=self._model_bytes,
            written_bytes=self._model_bytes,
            start_s=self._load_s,
        )

    def _evaluation(self) -> Workload:
        settings = self.recipe.evaluation
        models = 1 + len(self.recipe.training.stages) + len(settings.models)  # 1: the backbone
        texts, tasks, scores = EncodedTexts(), 0, 0
        for one in self.rows:
            own = self.texts.get(one.name)
            if not one.held_out or own is None:
                continue
            tasks, scores = tasks + 1, scores + models
            if one.task == "retrieval":
                scores += settings.bm25
                texts += own.query * min(one.held_out, settings.max_queries)
                texts += own.document * min(one.held_out, settings.max_documents)
            else:
                texts += own.bare_example * min(one.held_out, settings.max_rows)
        if settings.tasks:
            known = list(self.texts.values())
            own = next((one for one in known if one.task == "retrieval"), known[0])
            # instructions are set task by task, also for those of a benchmark
            named = max(len(settings.tasks), len(settings.instructions))
            texts += own.document * (named * self.assumed["named_task_texts"])
            tasks, scores = tasks + named, scores + named * models
        flops = forward_flops(self.method.shape, texts) * models
        # tasks are shared by the workers, but not each task
        workers = max(1, min(self.cluster.gpu.gpus, tasks))
        start_s = self._load_s + self.assumed["evaluated_task_s"] * scores / workers
        return Workload(
            name=EVALUATION,
            machines=self.cluster.gpu,
            rows_in=texts.texts,
            rows_out=scores,
            unit="scores",
            tokens=texts.tokens * models,
            flops=flops,
            read_bytes=self._model_bytes * models if scores else 0.0,
            written_bytes=texts.texts * models * self.method.shape.width * VECTOR_BYTES,
            start_s=start_s if scores else 0.0,
            work_s=flops * self.s_per_flop("encode_utilisation"),
        )

    def _teacher(self, name: str) -> ModelShape:
        if not name:
            return self.method.shape
        try:
            return shape_of(name)
        except ModelError:
            self.notes.append(f"the size of the teacher '{name}' is not known: counted as {LIKE_A_TEACHER}")
            return published_shapes()[LIKE_A_TEACHER]

    @property
    def _load_s(self) -> float:
        """The start of workers with a model; rented machines load it from storage."""
        seconds = self.assumed["worker_start_s"]
        if self.cluster.rented:
            seconds += self.method.shape.parameters * 2 / self.assumed["load_bytes_per_s"]
        return seconds

    @property
    def _model_bytes(self) -> float:
        return self.method.shape.parameters * (4.0 if self.recipe.model.saved_dtype == "float32" else 2.0)

    def _example(self, rows: DatasetRows) -> EncodedTexts:
        """One example's texts, no negatives; none if no text of its dataset is known."""
        own = self.texts.get(rows.name)
        return EncodedTexts() if own is None else own.bare_example

    def _example_bytes(self, rows: DatasetRows) -> float:
        return self._example(rows).tokens * self.assumed["chars_per_token"]

    def _parquet_bytes(self, count: Callable[[DatasetRows], float]) -> float:
        """Bytes of so many examples of each dataset."""
        return sum(count(one) * self._example_bytes(one) for one in self.rows) * self.assumed["parquet_share"]


def _effective_cpus(group: MachineGroup, assumed: Assumptions) -> float:
    """CPUs, less the loss on several machines."""
    return group.cpus * (assumed["scaling"] if group.count > 1 else 1.0)
