"""How the commands of a page are tried: whole where that takes seconds, otherwise as far as they go without work."""

import json
import re
import subprocess
from pathlib import Path

from qzhou.serving.schemas import EmbeddingRequest, parse_request
from tests.e2e.commands import QZHOU, ROOT, call


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def commands_of(page: str) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


def is_a_target(words: list[str]) -> None:
    """`make` would run it: its recipe is printed instead."""
    shown = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout


def script_of(words: list[str]) -> list[str | Path]:
    """A command of the project as Python is given it."""
    return [QZHOU, *words[1:]] if words[0] == "qzhou" else [*words[1:]]


def resolves_its_recipe(words: list[str], folder: Path = ROOT) -> None:
    dry = [] if "--dry-run" in words else ["--dry-run"]
    done = call(*script_of(words), *dry, folder=folder)
    assert done.status == 0, done.text
    assert json.loads(done.out)["run"]["name"]


def writes_a_recipe(words: list[str], folder: Path) -> str:
    """`qzhou init` on the project's own pages; the recipe that it writes is valid. Returns what it says."""
    (folder / "docs").symlink_to(ROOT / "docs")
    done = call(*script_of(words), folder=folder)
    assert done.status == 0, done.text
    resolves_its_recipe(["qzhou", "run", f"{words[-1]}.toml"], folder)
    return done.out


def is_a_request(words: list[str]) -> None:
    """The endpoint is asked the same in tests/ray/test_endpoint.py; here, that its body is a request."""
    assert words[1].endswith("/v1/embeddings")
    assert parse_request(EmbeddingRequest, words[words.index("-d") + 1].encode()).input


def estimates(words: list[str], folder: Path = ROOT) -> None:
    done = call(*script_of(words), folder=folder)
    assert done.status == 0, done.text
    assert "GPU hours" in done.out
