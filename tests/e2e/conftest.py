"""A tiny run of every stage, as a user starts it: a recipe file, and commands at the root of the project."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import Finished, run

COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++", "nvcc")

RECIPE = """
[run]
name = "tiny"
storage = "{storage}"
seed = 3

[model]
backbone = "{backbone}"
max_query_tokens = 24
max_document_tokens = 48
dtype = "float32"

[[datasets]]
name = "facts"
reader = "jsonl"
rule = "question_answer"
paths = ["{data}/facts.jsonl"]
columns = {{ query = "question", positive = "answer" }}
instruction = "Find the answer"
eval_fraction = 0.25

[[datasets]]
name = "alike"
reader = "csv"
rule = "scored_pair"
paths = ["{data}/alike.csv"]
columns = {{ text_a = "0", text_b = "1", score = "2" }}
eval_fraction = 0.25

[[datasets]]
name = "kinds"
reader = "parquet"
rule = "labeled"
paths = ["{data}/kinds.parquet"]
columns = {{ text = "text", label = "kind" }}
eval_fraction = 0.5

[synthesis]
endpoint = "builtin"
paraphrase_rows = 10
augment_rows = 5
hard_negative_rows = 20

[synthesis.filters]
max_ngram_overlap = 1.0       # rules change words where they stand
scores = false         # a random backbone judges nothing

[mining]
rank_from = 1
rank_to = 20
negatives_per_query = 2

[cluster]
encode_workers = 1            # each loads torch and a model, on two cores

[training]
workers = 1                   # two are the subject of tests/ray/test_train_stage.py and of the quickstart
negatives_per_query = 1
save_every_steps = 4

[training.stage1]
steps = 6
learning_rate = 1e-3
warmup_steps = 2
batch_size = 8

[training.stage2]
steps = 10
learning_rate = 1e-3
warmup_steps = 2
batch_size = 8
cosent_batch_size = 12
retrieval_share = 0.72
"""


def write_data(folder: Path) -> None:
    """Facts about numbers: JSONL, CSV without a heading, and Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    colours = ["red", "blue", "green"]
    things = ["tree", "sea", "list", "text"]
    facts = [
        {
            "question": f"What is the sum of {n} and {n + 1}?",
            "answer": f"The sum is {2 * n + 1}, which is a number.",
        }
        for n in range(160)
    ]
    folder.joinpath("facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts), "utf-8")
    pairs = [
        f"the {colours[n % 3]} {things[n % 4]} {n},a {colours[n % 2]} {things[n % 4]} {n},{n % 5}"
        for n in range(120)
    ]
    folder.joinpath("alike.csv").write_text("\n".join(pairs) + "\n", "utf-8")
    texts = [f"{n}: {things[n % 4]} of the {colours[n % 3]}" for n in range(120)]
    table = pa.table({"text": texts, "kind": [things[n % 4] for n in range(120)]})
    pq.write_table(table, folder / "kinds.parquet")


@pytest.fixture(scope="session")
def write_recipe(tmp_path_factory, tiny_qwen2):
    """Data and a recipe for it in a new folder; gives the recipe's path."""

    def write() -> Path:
        folder = tmp_path_factory.mktemp("tiny")
        write_data(folder)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(storage=folder / "runs", backbone=tiny_qwen2, data=folder), "utf-8")
        return recipe

    return write


@pytest.fixture(scope="session")
def path_without_compiler(tmp_path_factory) -> str:
    """This Python's folder, and every program of the PATH but those that compile."""
    tools = tmp_path_factory.mktemp("tools")
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in folder.iterdir() if folder.is_dir() else ():
            compiles = any(program.name == name or program.name.startswith(f"{name}-") for name in COMPILERS)
            if not compiles and "-linux-gnu-" not in program.name and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    return f"{Path(sys.executable).parent}{os.pathsep}{tools}"


@pytest.fixture(scope="session")
def submitted(write_recipe, path_without_compiler) -> tuple[Path, Finished]:
    """The tiny recipe, run by ``jobs/submit.py``: its path and what the command said. It is read, or copied first."""
    recipe = write_recipe()
    return recipe, run("jobs/submit.py", recipe, PATH=path_without_compiler, CC="", CXX="")
