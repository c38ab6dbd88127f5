"""What makes a finished stage run again: a change of what its code computes, anywhere in its import closure."""

import shutil
from pathlib import Path

import pytest

import qzhou
from qzhou.run.code import code_of_stage

TRAINING = ["qzhou.training.worker"]
LOSSES, OUTSIDE = "training/losses.py", "serving/limits.py"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package, to be changed."""
    copy = tmp_path_factory.mktemp("copy") / "qzhou"
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(qzhou.__file__).parent, copy, ignore=ignored))


def changed(package: Path, file: str, change, *, prepare=lambda text: text) -> set[str]:
    """The modules of the training stage whose version differs after the text of a file was changed."""
    path = package / file
    original = path.read_text("utf-8")
    prepared = prepare(original)
    assert change(prepared) != prepared
    try:
        path.write_text(prepared, "utf-8")
        old = code_of_stage(TRAINING, root=package)
        path.write_text(change(prepared), "utf-8")
        new = code_of_stage(TRAINING, root=package)
    finally:
        path.write_text(original, "utf-8")
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def replaced(before, after):
    return lambda text: text.replace(before, after, 1)


def with_line(line):
    return lambda text: f"{text}\n\ndef f() -> None:\n    {line}\n"


def with_constant(text):
    return f"{text}\nADDED_CONSTANT = 1\n"


def test_the_closure_holds_what_the_stage_calls_and_not_what_only_runs_it():
    found = set(code_of_stage(TRAINING))

    assert {"qzhou.training.losses", "qzhou.encoder.pooling", "qzhou.data.prompts"} <= found
    assert not [name for name in found if name.startswith(("qzhou.cluster", "qzhou.telemetry"))]
    assert not [name for name in found if name.startswith(("qzhou.serving", "qzhou.estimate"))]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def info_nce(", "# a comment\ndef info_nce("),
        ('"""', '"""Another docstring. '),
        ("def info_nce(", "\n\n\ndef info_nce("),
    ],
    ids=["comment", "docstring", "layout"],
)
def test_text_that_computes_nothing_changes_nothing(package, before, after):
    assert changed(package, LOSSES, replaced(before, after)) == set()


@pytest.mark.parametrize(
    "line",
    [
        'raise ValueError("said before")',
        'log_event("said before", "event")',
        'line = f"said before {1 + 1}"; log_event(line, "event")',
        'problem = "said before"; raise ValueError(problem)',
        'more = "said before" if LossSection else ""; line = f"a{more}"; log_event(line + more, "event")',
    ],
)
def test_the_message_of_an_error_and_a_line_of_the_log_change_nothing(package, line):
    change = replaced("said before", "said after")
    assert changed(package, LOSSES, change, prepare=with_line(line)) == set()


def test_a_coroutine_s_line_of_the_log_changes_nothing(package):
    line = with_line('line = "said before"; log_event(line, "event")')
    change = replaced("said before", "said after")
    found = changed(package, LOSSES, change, prepare=lambda text: line(text).replace("def f()", "async def f()"))
    assert found == set()


def test_a_text_counts_that_more_than_the_log_reads(package):
    line = 'line = "said before"; log_event(line, "event"); return line'
    change = replaced("said before", "said after")
    assert changed(package, LOSSES, change, prepare=with_line(line)) == {"qzhou.training.losses"}


def test_the_message_of_a_private_error_counts_because_it_may_be_kept_with_a_dropped_row(package):
    change, line = replaced('"old"', '"new"'), 'raise _Refused("old")'
    found = changed(package, LOSSES, change, prepare=with_line(line))
    assert found == {"qzhou.training.losses"}


def test_code_outside_the_closure_changes_nothing(package):
    assert changed(package, OUTSIDE, with_line("return 1")) == set()


def test_the_declaration_of_a_setting_changes_nothing_and_what_is_computed_from_settings_does(package):
    place = "class LossSection(Section):\n"
    setting = '    added: int = Field(1, description="What it is.")\n'
    share = replaced("RETRIEVAL_SHARE = 0.72", "RETRIEVAL_SHARE = 0.73")

    assert changed(package, "config/training.py", replaced(place, place + setting)) == set()
    assert changed(package, "config/training.py", share) == {"qzhou.config.training"}


def test_a_changed_constant_in_any_module_of_the_closure_makes_the_stage_run_again(package):
    modules = [name for name in code_of_stage(TRAINING) if name.startswith("qzhou.")]
    assert len(modules) > 20
    for module in modules:
        file = Path(*module.split(".")[1:]).with_suffix(".py")
        if not (package / file).exists():
            file = file.with_suffix("") / "__init__.py"
        change = replaced("ADDED_CONSTANT = 1", "ADDED_CONSTANT = 2")
        found = changed(package, str(file), change, prepare=with_constant)
        assert found == {module}


def test_a_prompt_beside_the_modules_counts(package):
    before = code_of_stage(["qzhou.synthesis.pipeline"], root=package)
    prompt = next((package / "synthesis" / "prompts").glob("*.md"))
    prompt.write_text("another")

    after = code_of_stage(["qzhou.synthesis.pipeline"], root=package)
    differ = {name for name in before if before[name] != after[name]}
    assert differ == {f"synthesis/prompts/{prompt.name}"}


def test_a_module_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"qzhou.training.nothing is no module"):
        code_of_stage(["qzhou.training.nothing"])
