"""docs/documents.md: its commands, and what it says that they print."""

import re
import shlex

import pytest

from tests.e2e.commands import ROOT, call
from tests.e2e.pages import blocks, commands_of, resolves_its_recipe, script_of, writes_a_recipe

PAGE = (ROOT / "docs" / "documents.md").read_text("utf-8")
COMMANDS = commands_of(PAGE)
# numbers, and the kinds of files that are left out: Python may have compiled some of docs/
VARIES = re.compile(r"left out \([^)]*\)|\d[\d,.]*")
EXAMPLES = ("  - ", "    ")  # what is drawn changes with each page that is written


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A folder with the recipe that the first command has written, and what the command said."""
    folder = tmp_path_factory.mktemp("handbook")
    return folder, writes_a_recipe(shlex.split(COMMANDS[0]), folder)


def test_the_first_command_says_what_the_page_shows(said):
    shown = blocks(PAGE, "text")[0].splitlines()
    printed = said[1].splitlines()
    for line in shown:
        if not line.startswith(EXAMPLES):
            parts = (re.escape(part) for part in VARIES.split(line))
            pattern = f"(?:{VARIES.pattern})".join(parts)
            assert any(re.fullmatch(pattern, one) for one in printed), line
    assert any(line.startswith(EXAMPLES) for line in shown)


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_the_others_know_their_recipe(command, said):
    words = shlex.split(command)
    if "--check" in words:
        done = call(*script_of(words), folder=said[0])
        assert done.status == 0, done.text
        assert "next:      qzhou run handbook.toml" in done.out
    else:
        resolves_its_recipe(words, said[0])
