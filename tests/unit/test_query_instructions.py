"""Instructions of single queries, as in FlagEmbedding's files: the same bytes wherever a query goes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mteb.types import PromptType

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import parse_recipe
from qzhou.config.synthesis import FiltersSection
from qzhou.data.records import RetrievalExample
from qzhou.data.storage import Folder, write_records
from qzhou.evaluation.judge.evaluator import Evaluator
from qzhou.evaluation.judge.model_specs import ModelSpec
from qzhou.evaluation.judge.mteb_models import MtebEncoder
from qzhou.evaluation.judge.tasks import query_instructions
from qzhou.mining.corpus import chunks_of, read_column
from qzhou.synthesis.chat import Answer
from qzhou.synthesis.embedding_scores import texts_to_score
from qzhou.synthesis.generation import SyntheticRecord
from qzhou.synthesis.parsing import parse
from qzhou.synthesis.techniques import VERSION, SynthesisRequest
from qzhou.training.batch_plan import PlannedBatch, PlannedRows
from qzhou.training.batches import build_batches
from qzhou.training.examples import TrainingSet
from qzhou.training.validation import held_out_examples
from qzhou.transform.deduplication.keys import KeyList
from qzhou.transform.rules.candidates import Converter

CLAIM = "Given a claim, find documents that refute it"
DATASET = {
    "name": "mixed", "reader": "jsonl", "rule": "triplets", "paths": ["x"], "instruction": "Find the answer",
    "columns": {"instruction": "prompt"}, "eval_fraction": 0.5,
}  # fmt: skip
ROWS = [
    {"query": "the earth is flat", "pos": ["It is round."], "neg": ["It is blue."], "prompt": f" {CLAIM} "},
    {"query": "who was Bach", "pos": ["A composer."], "neg": [], "prompt": None},
    {"query": "who was Haydn", "pos": ["His name was Joseph."], "neg": []},
]
ASKED = [
    f"Instruct: {CLAIM}\nQuery: the earth is flat",
    "Instruct: Find the answer\nQuery: who was Bach",
    "Instruct: Find the answer\nQuery: who was Haydn",
]


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(datasets=[DATASET])


@pytest.fixture
def examples(recipe) -> list[RetrievalExample]:
    convert = Converter(recipe.datasets[0], 1000)
    return [convert([row])[0].example for row in ROWS]


def test_a_row_keeps_its_instruction(examples):
    assert [one.instruction for one in examples] == [CLAIM, "", ""]


def test_training_reads_it(recipe, examples):
    data = {"mixed": TrainingSet.of("mixed", recipe.datasets[0].prompt, examples)}
    planned = PlannedBatch(0, (PlannedRows("mixed", "retrieval", np.arange(3)),))

    (batch,) = build_batches(planned, data, negatives_per_query=1, seed=1)

    assert batch.queries == ASKED
    assert batch.documents == ["It is round.", "A composer.", "His name was Joseph.", "It is blue."]


def test_mining_reads_it_unless_the_teacher_has_prompts_of_its_own(recipe, examples, tmp_path):
    folder = Folder.open(str(tmp_path))
    write_records(folder, examples, RetrievalExample)
    prompt = recipe.datasets[0].prompt
    (chunk,) = chunks_of(folder, "query", prompt, are_queries=True)
    texts = read_column(folder, chunk.file, "query")

    own = type(prompt)(prefixes=("query: ", "passage: "))

    assert chunk.prompted(texts) == ASKED
    assert chunk.prompted(texts, own)[0] == "query: the earth is flat"


def test_validation_and_evaluation_read_it(recipe, examples):
    folder = Folder.open(recipe.run.storage) / recipe.run.name
    write_records(folder / "transform" / "held_out" / "retrieval" / "mixed", examples, RetrievalExample)
    assert [prompt.query(one.query) for prompt, one in held_out_examples(recipe, folder)] == ASKED

    seen: list[str] = []
    encoder = SimpleNamespace(
        fingerprint="0", arithmetic="none", probe=None, dimensions=2, truncated=0, prompts={},
        encode=lambda texts, **_: (seen.extend(texts), np.eye(len(texts), 2, dtype=np.float32))[1],
    )  # fmt: skip

    class Judge(Evaluator):
        def _encoder(self, model):
            return encoder if model else None

    judge = Judge(recipe, folder.uri)
    (task,), _ = judge.tasks()
    judge.score(ModelSpec("stage2", "x", trained=True), task)
    assert sorted(seen) == sorted([*ASKED, "It is round.", "A composer.", "His name was Joseph."])

    seen.clear()
    judge.score(ModelSpec("other", "x", trained=False), task)
    assert "the earth is flat" in seen, "a model of its own prompts, which declares none"
    assert query_instructions(task, recipe, folder) == {"the earth is flat": CLAIM}


def test_only_queries_read_it():
    seen: list[str] = []
    encoder = SimpleNamespace(fingerprint="0", dimensions=2, encode=seen.extend)
    prompts, instructions = {"t": Dataset.model_validate(DATASET).prompt}, {"t": {"same text": CLAIM}}
    model = MtebEncoder(encoder, prompts, instructions, name="m")

    for side in (PromptType.query, PromptType.document):
        model.encode([{"text": ["same text"]}], task_metadata=SimpleNamespace(name="t"), prompt_type=side)

    assert seen == [f"Instruct: {CLAIM}\nQuery: same text", "same text"]


def test_what_an_llm_writes_inherits_it(recipe, examples):
    request = SynthesisRequest(
        technique="paraphrase",
        dataset="mixed",
        example_id=examples[0].id,
        prompt=f"paraphrase.en@{VERSION}",
        user="{}",
    )
    written = '{"query": "flat is the earth", "positive": "Round it is."}'
    answer = Answer(key="", model="m", content=written, prompt_tokens=1, completion_tokens=1)

    made = parse(request, examples[0], answer, FiltersSection())

    assert made.instruction == CLAIM
    texts = texts_to_score(
        SyntheticRecord(request=request, seed=examples[0], record=made), recipe.datasets[0].prompt
    )
    assert texts["query"] == f"Instruct: {CLAIM}\nQuery: flat is the earth"
    assert texts["old_query"] == ASKED[0]


def test_rows_that_differ_in_it_alone_are_two_examples(recipe):
    convert = Converter(recipe.datasets[0], 1000)
    rows = [ROWS[0], ROWS[0] | {"prompt": "another"}, ROWS[0] | {"prompt": CLAIM}]
    examples = [convert([row])[0].example for row in rows]
    keys = KeyList(recipe.datasets[0], with_identity=True, with_texts=False)
    keys.add_all([(one, False) for one in examples])

    first, other, again = keys.table()["high"].to_pylist()

    assert first == again != other
    assert examples[0].id == examples[2].id != examples[1].id


def test_a_blank_at_the_end_of_what_stands_before_texts_survives_a_recipe_s_file(make_recipe):
    """Settings are stripped of blanks: 'query: ' of another model was 'query:', and the template lost its own."""
    prefixes = {"intfloat/e5-base-v2": ["query: ", "passage: "]}
    dataset = {
        **DATASET,
        "name": "e5",
        "columns": {},
        "instruction": "",
        "query_prefix": "q: ",
        "document_prefix": "d: ",
    }
    recipe = make_recipe(model={"prefixes_of": prefixes}, datasets=[DATASET, dataset])

    again = parse_recipe(json.loads(recipe.model_dump_json()), place="test")

    for one in (recipe, again):
        assert one.model.prefixes_of == {"intfloat/e5-base-v2": ("query: ", "passage: ")}
        assert one.evaluation.instruction_template.endswith("Query: ")
        assert one.datasets[0].prompt.query("x").endswith("Query: x")
        assert (one.datasets[1].prompt.query("x"), one.datasets[1].prompt.document("x")) == ("q: x", "d: x")
    assert again == recipe


def test_a_model_may_have_a_template_of_its_own():
    """Qwen3-Embedding's has no blank at its end."""
    dataset = Dataset.model_validate(DATASET | {"instruction_template": "Instruct: {instruction}\nQuery:"})

    assert dataset.prompt.with_instruction(CLAIM).query("x") == f"Instruct: {CLAIM}\nQuery:x"
    with pytest.raises(ValueError, match=r"has no \{instruction\} in it"):
        Dataset.model_validate(DATASET | {"instruction_template": "Query: "})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"instruction": ""}, "set 'instruction', too"),
        ({"instruction": "", "query_prefix": "query: "}, "set 'instruction', too"),
        ({"symmetric": True}, "symmetric = true puts the instruction before documents"),
        ({"query_prefix": "query: "}, "keep one of them"),
    ],
)
def test_a_recipe_in_which_it_has_no_meaning_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Dataset.model_validate(DATASET | settings)
