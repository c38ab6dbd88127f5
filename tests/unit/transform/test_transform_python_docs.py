import os
import sys

import pytest

from qzhou.errors import DataError
from qzhou.transform.lines import Refused
from qzhou.transform.python_docs import SourceFile, docstrings, pairs, source_files

SOURCE = '''"""Module summary
on two lines.

Its body,

    with an indented block.
"""
import os
os.environ["QZHOU_EXECUTED"] = "yes"
raise SystemExit("this file must never run")

class Box:
    """Holds things."""

    def __init__(self):
        """Start empty.

        No argument is needed."""

    if True:
        async def fill(self):
            def inner():
                \'\'\'Nested.\'\'\'

def bare():
    return "\\d"
'''


def write_source(tmp_path, text, name="thing.py"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return SourceFile("package", "package.thing", str(path))


def test_each_docstring_is_a_row_with_summary_and_body(tmp_path):
    rows = docstrings(write_source(tmp_path, SOURCE))

    assert [(row["name"], row["summary"], row["body"]) for row in rows] == [
        (
            "package.thing",
            "Module summary on two lines.",
            "Its body,\n\n    with an indented block.",
        ),
        ("package.thing.Box", "Holds things.", ""),
        ("package.thing.Box.__init__", "Start empty.", "No argument is needed."),
        ("package.thing.Box.fill.inner", "Nested.", ""),
    ]
    assert {(row["package"], row["module"]) for row in rows} == {("package", "package.thing")}


def test_sources_are_parsed_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.delenv("QZHOU_EXECUTED", raising=False)

    assert docstrings(write_source(tmp_path, SOURCE))

    assert "QZHOU_EXECUTED" not in os.environ


@pytest.mark.parametrize("content", [b"def broken(:\n", b"x = '\xff'\n", b"x = 1\x00"])
def test_a_file_that_does_not_parse_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "broken.py"
    path.write_bytes(content)

    [refused] = docstrings(SourceFile("package", "package.broken", str(path)))

    assert isinstance(refused, Refused)
    assert refused.reason == "not_parsed"
    assert str(path) in refused.detail


def test_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    package = tmp_path / "qz_sample"
    (package / "inner").mkdir(parents=True)
    (package / "tests").mkdir()
    for name in ("__init__.py", "a.py", "inner/__init__.py", "tests/test_a.py"):
        (package / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    files = source_files(["qz_sample"])

    assert [file.module for file in files] == ["qz_sample", "qz_sample.a", "qz_sample.inner"]
    assert "qz_sample" not in sys.modules


def test_the_standard_library_comes_without_its_tests_and_site_packages():
    modules = {file.module for file in source_files(["stdlib"])}

    assert {"json", "json.decoder", "textwrap"} <= modules
    assert not [
        module
        for module in modules
        if module.split(".")[0] in {"test", "site-packages"} or ".tests" in module
    ]


@pytest.mark.parametrize("package", ["no_such_package_here", "json.decoder"])
def test_a_package_that_is_not_installed_is_named_with_the_way_out(package):
    with pytest.raises(DataError, match=f"'{package}' is not installed here; .* 'packages'"):
        source_files([package])


def nothing_held_out(_module):
    return False


def documented_modules():
    names = [f"{package}.{module}" for package in ("one", "two") for module in ("a", "a.x", "b")]
    return [
        {
            "package": name.split(".")[0],
            "module": name,
            "name": f"{name}.f{i}",
            "summary": f"{name} does {i}",
        }
        for name in names
        for i in range(4)
    ]


def shared_components(a, b):
    shared = 0
    for left, right in zip(a.split("."), b.split("."), strict=False):
        if left != right:
            break
        shared += 1
    return shared


def test_a_pair_says_how_much_of_the_module_path_its_docstrings_share():
    module_of = {row["name"]: row["module"] for row in documented_modules()}

    drawn = list(pairs(documented_modules(), nothing_held_out))

    assert {pair["shared_path"] for pair in drawn} >= {0, 1, 2}
    for pair in drawn:
        assert pair["shared_path"] == shared_components(
            module_of[pair["name_a"]], module_of[pair["name_b"]]
        )
        assert pair["module"] == module_of[pair["name_a"]]
    unordered = [frozenset((pair["name_a"], pair["name_b"])) for pair in drawn]
    assert len(set(unordered)) == len(unordered)
    assert all(len(names) == 2 for names in unordered)


def test_pairs_never_cross_the_split_and_do_not_depend_on_the_order_of_rows():
    def held_out(module):
        return module.endswith("b")

    rows = documented_modules()
    drawn = list(pairs(rows, held_out))

    assert drawn == list(pairs(rows[::-1], held_out))
    for pair in drawn:
        sides = {held_out(name.rpartition(".")[0]) for name in (pair["name_a"], pair["name_b"])}
        assert len(sides) == 1


def test_rows_without_a_summary_are_not_paired():
    rows = [
        {"package": "one", "module": "one", "name": f"one.f{i}", "summary": ""} for i in range(3)
    ]

    assert list(pairs(rows, nothing_held_out)) == []
