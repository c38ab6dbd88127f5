"""docs/own-data.md and docs/getting-started.md as readers type them, on made-up texts in a folder of their own."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, call
from tests.e2e.pages import (
    blocks,
    commands_of,
    estimates,
    is_a_request,
    is_a_target,
    resolves_its_recipe,
    script_of,
)

OWN_DATA, STARTED = ((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("own-data", "getting-started"))
COMMANDS = commands_of(OWN_DATA)
ROWS = 40


def write_data(folder: Path) -> None:
    """The rows that the page shows, and more of their kind."""
    (tickets,), judgements = blocks(OWN_DATA, "csv"), blocks(OWN_DATA, "text")[0]
    queries, documents = blocks(OWN_DATA, "json")
    for n in range(ROWS):
        tickets += f'"Which part number has filter {n}?","Filter {n} is listed as part {n * 7 + 1000}."\n'
        queries += json.dumps({"id": f"filter{n}", "text": f"filter {n}"}) + "\n"
        documents += (
            json.dumps({"id": f"part{n}", "title": f"Part {n * 7}", "text": f"It holds filter {n}."}) + "\n"
        )
        judgements += f"filter{n}\tpart{n}\t1\n"
    files = {
        "tickets.csv": tickets,
        "queries.jsonl": queries,
        "documents.jsonl": documents,
        "judgements.tsv": judgements,
    }
    for name, text in files.items():
        assert "mine/" + name in OWN_DATA  # the folder of the page
        (folder / name).write_text(text, "utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Looks like the root of the project, and holds the reader's files."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    own = folder.joinpath("mine")
    own.mkdir()
    write_data(own)
    (recipe,) = blocks(OWN_DATA, "toml")
    (folder / "support.toml").write_text(recipe, "utf-8")
    return folder


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_each_command_of_the_page_runs_or_runs_dry(command, checkout, head):
    words = shlex.split(command)
    if words[0] == "make":
        is_a_target(words)
    elif words[0] == "curl":
        is_a_request(words)
    elif "--stage" in words:
        estimates(words, checkout)
    elif words[1] == "transform":
        transforms(words, checkout, head)
    else:
        assert words[0] == "qzhou", f"no test knows how to try: {command}"
        gated = words.index("--no-worse-than") if "--no-worse-than" in words else len(words)
        resolves_its_recipe(words[:gated] + words[gated + 2 :], checkout)


def transforms(words: list[str], folder: Path, head: dict[str, str]) -> None:
    """For real: every row is kept or held out, and lies where the page says."""
    done = call(*script_of(words), folder=folder, **head)
    assert done.status == 0, done.text
    counts = {
        name: int(kept) + int(held)
        for name, kept, held in re.findall(r"(\w+): (\d+) kept, (\d+) held out", done.out)
    }
    assert counts == {"tickets": ROWS + 2, "manual": ROWS + 1}
    assert re.search(r"done in .* 0 dropped rows", done.out), "as the page prints it"
    made = folder / "runs" / "support" / "transform"
    assert list((made / "examples" / "retrieval" / "tickets").glob("*.parquet"))
    assert (made / "manifest.json").exists()


def test_the_page_starts_with_its_data_and_ends_with_a_request():
    assert [shlex.split(one)[0] for one in COMMANDS][-3:] == ["make", "curl", "qzhou"]
    assert all("support" in one for one in COMMANDS)


@pytest.mark.parametrize("command", commands_of(STARTED))
def test_each_command_of_the_first_page_is_known(command):
    words = shlex.split(command)
    (is_a_target if words[0] == "make" else is_a_request)(words)
