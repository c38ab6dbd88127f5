"""Every command and snippet of the README runs, or runs dry."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.commands import QZHOU, ROOT, call, run
from tests.e2e.pages import (
    blocks,
    commands_of,
    estimates,
    is_a_request,
    is_a_target,
    resolves_its_recipe,
    script_of,
    writes_a_recipe,
)

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = commands_of(README)


def is_understood_by_ray(words: list[str]) -> None:
    """`ray` knows the options; the files exist; the job's own command runs dry."""
    if words[0] != "ray":  # RAY_AUTH_MODE=token
        words = words[1:]
    command = words[1:3] if words[1] == "job" else words[1:2]
    known = run("-m", "ray.scripts.scripts", *command, "--help")
    assert known.status == 0, known.text
    own, _, inner = " ".join(words).partition(" -- ")
    assert not [option for option in re.findall(r"(?<= )--[a-z-]+", own) if option not in known.out]
    for file in re.findall(r"\S+\.yaml", own):
        assert (ROOT / file).exists()
    if inner:
        resolves_its_recipe(inner.split())


def loads_a_model(words: list[str], model: Path) -> None:
    done = run("-c", words[2].replace("runs/quickstart/model", str(model)))
    assert done.status == 0, done.text
    assert re.fullmatch(r"\(\d+,\)", done.out.strip())


def merges_models(words: list[str], finished: Path, into: Path) -> None:
    """It merges whatever runs it names."""
    place = words.index("--into") + 1
    models = [finished if word.startswith("runs/") else word for word in words[2:place]]
    done = run(QZHOU, "merge", *models, into, *words[place + 1 :])
    assert done.status == 0, done.text
    assert (into / "merge.json").exists()


def embeds_texts(words: list[str], finished: Path, folder: Path, head: dict[str, str]) -> None:
    """It takes a run, and texts of that name."""
    texts = folder / words[3]
    texts.write_text('{"text": "a text"}\n{"text": "another"}\n')
    done = call(QZHOU, "embed", finished, texts, folder / words[4], **head)
    assert done.status == 0, done.text
    assert "2 vectors written" in done.out


def examines_this_machine(words: list[str]) -> None:
    done = run(*script_of(words))
    assert done.status == 0, done.text
    assert re.search(r"^ +ok +recipe: recipes/quickstart.toml: 3 datasets", done.out, flags=re.MULTILINE)
    assert "no failure" in done.out.splitlines()[-1]


def plans_trials(words: list[str]) -> None:
    done = run(*script_of(words), "--dry-run")
    assert done.status == 0, done.text
    assert "(baseline)" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs_or_runs_dry(command, submitted, tmp_path, head):
    words = shlex.split(command)
    if words[0] == "make":
        is_a_target(words)
    elif words[0] == "curl":
        is_a_request(words)
    elif words[:2] == ["python", "-c"]:
        loads_a_model(words, submitted[0].parent / "runs" / "tiny" / "model")
    elif words[:2] == ["qzhou", "merge"]:
        merges_models(words, submitted[0].parent / "runs" / "tiny", tmp_path / "merged")
    elif words[:2] == ["qzhou", "embed"]:
        embeds_texts(words, submitted[0].parent / "runs" / "tiny", tmp_path, head)
    elif "--stage" in words:
        estimates(words)
    elif words[:2] == ["qzhou", "experiment"]:
        plans_trials(words)
    elif words[:2] == ["qzhou", "doctor"]:
        examines_this_machine(words)
    elif words[:2] == ["qzhou", "init"]:
        writes_a_recipe(words, tmp_path)
    elif words[-1] == "handbook.toml":
        writes_a_recipe(next(shlex.split(one) for one in COMMANDS if "init" in one), tmp_path)
        resolves_its_recipe(words, tmp_path)
    elif words[0] == "qzhou":
        resolves_its_recipe(words)
    else:
        assert "ray" in words, f"no test knows how to try: {command}"
        is_understood_by_ray(words)


def test_the_readme_names_the_two_commands_first():
    assert COMMANDS[:2] == ["make quickstart", "make test"]


def test_the_python_of_every_page_compiles():
    found = [
        (page, block)
        for page in (ROOT / "docs").glob("*.md")
        for block in blocks(page.read_text("utf-8"), "python")
    ]
    assert found
    for page, block in found:
        compile(block, page.name, "exec")


def test_what_the_readme_points_at_exists():
    headings = {
        "#" + heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert target in headings or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:jobs|serve|recipes|platform|tests|docs)/[\w./-]*)`", README):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


def test_each_make_target_says_what_it_does():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for target in ("quickstart", "test", "check", "serve"):
        assert re.search(rf"make {target} +\w", shown)
    assert shutil.which("make")
