"""A user's mistake ends in one clear message, exit status 2 and no traceback; what was computed stays."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.e2e.commands import Finished, call, on_an_idle_machine, run


@pytest.fixture(scope="module")
def recipe(write_recipe):
    return write_recipe()


def refused(done: Finished, status: int = 2) -> str:
    """The message of a command that refused."""
    assert done.status == status, done.text
    assert "Traceback" not in on_an_idle_machine(done.text)
    assert done.err.count("error: ") == 1, done.err
    return done.err[done.err.index("error: ") :]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--training.stage1.step", "3"), ["training.stage1.step", "did you mean", "training.stage1.steps"]),
        (("--training.stage1.steps", "many"), ["training.stage1.steps", "valid integer", "many"]),
        (
            ("--model.pooling", "middle"),
            ["model.pooling", "'mean', 'last', 'cls', 'weightedmean' or 'max'", "middle"],
        ),
        (("--serving.port", "0"), ["serving.port", "greater than or equal to 1"]),
        (("--training.stage1.steps",), ["training.stage1.steps"]),
    ],
)
def test_an_override_that_cannot_be_is_named(recipe, words, said):
    message = refused(call("jobs/train.py", recipe, *words))

    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[mining]", "[minning]", ["minning", "did you mean 'mining'"]),
        ("rank_to = 20", "rank_too = 20", ["mining.rank_too", "did you mean 'rank_to'"]),
        ("rank_to = 20", 'rank_to = "twenty"', ["mining.rank_to", "twenty"]),
        ("rank_to = 20", "rank_to = 0", ["mining.rank_to", "greater than or equal to 1"]),
        ("negatives_per_query = 1", "negatives_per_query = 3", ["(3)", "(2)", "mine more or train with fewer"]),
    ],
)
def test_a_recipe_that_cannot_be_is_named(recipe, tmp_path, before, after, said):
    wrong = tmp_path / "recipe.toml"
    wrong.write_text(recipe.read_text().replace(before, after, 1), "utf-8")

    message = refused(call("jobs/pipeline.py", wrong))

    for part in said:
        assert part in message


def test_a_recipe_that_is_not_toml_is_named_with_the_line(recipe, tmp_path):
    wrong = tmp_path / "recipe.toml"
    wrong.write_text(recipe.read_text().replace("steps = 6", "steps = ", 1), "utf-8")
    line = 1 + wrong.read_text("utf-8").splitlines().index("steps = ")

    message = refused(call("jobs/pipeline.py", wrong))

    assert f"{wrong}: not a TOML file" in message
    assert f"line {line}" in message


def test_a_recipe_that_is_not_there_is_named():
    """In a process of its own: its exit status is what the message's is."""
    assert "no/such/recipe.toml" in refused(run("jobs/pipeline.py", "no/such/recipe.toml"))


def with_facts(recipe: Path, folder: Path, content: str | None) -> Path:
    """The recipe in a new folder, with other facts in its first dataset, or none."""
    for name in ("alike.csv", "kinds.parquet"):
        shutil.copy(recipe.parent / name, folder)
    if content is not None:
        folder.joinpath("facts.jsonl").write_text(content, "utf-8")
    copy = folder / "recipe.toml"
    copy.write_text(recipe.read_text().replace(str(recipe.parent), str(folder)), "utf-8")
    return copy


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ["facts", "facts.jsonl"]),
        ("", ["facts", "empty"]),
        ('{"question": "a question", "answer": " "}\n' * 3, ["facts", "3", "blank"]),
        ('{"questions": "a question", "answer": "b"}\n', ["facts", "question"]),
    ],
    ids=["missing file", "empty dataset", "no row survives", "wrong columns"],
)
def test_data_that_gives_no_example_is_named_with_the_reasons(head, recipe, tmp_path, content, said):
    message = refused(call("jobs/transform.py", with_facts(recipe, tmp_path, content), **head))

    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("backbone", "said"), [("/no/such/model", "does not exist"), ("package:no_such_package/model", "pip install")]
)
def test_a_backbone_that_is_not_there_is_named_before_any_work(recipe, tmp_path, backbone, said):
    changed = ("--model.backbone", backbone, "--run.storage", tmp_path / "runs")

    message = refused(call("jobs/pipeline.py", recipe, *changed))

    assert backbone in message
    assert said in message
    assert not (tmp_path / "runs" / "tiny" / "transform").exists()


def test_a_storage_path_that_cannot_be_written_is_named(recipe, tmp_path):
    tmp_path.joinpath("file").write_text("not a folder")

    message = refused(call("jobs/transform.py", recipe, "--run.storage", tmp_path / "file" / "runs"))

    assert f"{tmp_path}/file/runs" in message
    assert "run.storage" in message


def test_a_stage_without_the_one_before_it_says_which_job_to_run(recipe, tmp_path):
    message = refused(call("jobs/train.py", recipe, "--run.storage", tmp_path))

    assert "qzhou mine" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("/no/such/a", "/no/such/b"), ["/no/such/a", "does not exist"]),
        (("/no/such/a",), ["1 model is named"]),
        (("/no/such/a", "/no/such/b", "--weights", "0,0"), ["0, 0", "at least one must be above 0"]),
        (("a", "b", "c", "--method", "slerp"), ["slerp is between two models, and 3 are named"]),
        (("a", "b", "--method", "sum"), ["--method", "average", "slerp"]),
    ],
)
def test_models_that_cannot_be_merged_are_named(tmp_path, words, said):
    message = refused(call("jobs/merge.py", *words, "--into", tmp_path / "merged"))

    for part in said:
        assert part in message


def test_a_busy_port_is_named_before_anything_starts(submitted):
    finished, _ = submitted
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(call("serve/app.py", finished, "--serving.port", str(port)))

    assert str(port) in message
    assert "--serving.port" in message


def test_serving_before_training_says_what_to_run(recipe, tmp_path):
    assert "Run `qzhou" in refused(call("serve/app.py", recipe, "--run.storage", tmp_path))


def test_an_endpoint_that_is_down_keeps_what_is_there_and_says_how_to_go_on(head, recipe):
    """Not the user's mistake: exit status 1, of a process of its own."""
    assert call("jobs/transform.py", recipe, **head).status == 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    down = ("--synthesis.endpoint", f"http://127.0.0.1:{port}/v1", "--synthesis.model", "any")

    message = refused(run("jobs/synthesize.py", recipe, *down, "--synthesis.max_retries", "0", **head), status=1)

    assert f"127.0.0.1:{port}" in message
    assert "the same command goes on" in message
    run_folder = recipe.parent / "runs" / "tiny"
    assert json.loads((run_folder / "transform" / "manifest.json").read_text())["outputs"]
    assert not (run_folder / "synthesis" / "manifest.json").exists()


def test_an_error_on_a_worker_comes_out_as_one_message(head, submitted, tmp_path):
    """Ray wraps what a training worker raises several times; people see the inside. Not the user's mistake alone: 1."""
    recipe, _ = submitted
    shutil.copytree(recipe.parent / "runs", tmp_path / "runs")
    changed = ("--training.stage1.learning_rate", "1e30", "--training.max_failures", "0")

    done = call("jobs/train.py", recipe, "--run.storage", tmp_path / "runs", *changed, **head)

    message = refused(done, status=1)

    assert "stage1: the loss is nan at step" in message
    assert "Lower training.stage1.learning_rate (1e+30)" in message
