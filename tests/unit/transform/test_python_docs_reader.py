import importlib.util
import os
import sys
from pathlib import Path

import pytest

from qzhou.errors import DataError
from qzhou.transform.reading.columns import RejectedRow

RECIPES = Path(__file__).parents[3] / "recipes"


def load_reader():
    spec = importlib.util.spec_from_file_location("python_docs_reader", RECIPES / "python_docs_reader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = load_reader()

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


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of one module, "qz_one.thing", whose source a test writes."""
    (tmp_path / "qz_one").mkdir()
    (tmp_path / "qz_one" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    reader._ROOTS.clear()
    return tmp_path / "qz_one" / "thing.py"


def rows_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with path.open("rb") as stream:
        return list(reader.docstrings(stream, packages=["qz_one"]))


def test_each_docstring_is_a_row_with_summary_and_body(package):
    rows = rows_of(package, SOURCE)

    assert [(row["name"], row["summary"], row["body"]) for row in rows] == [
        ("qz_one.thing", "Module summary on two lines.", "Its body,\n\n    with an indented block."),
        ("qz_one.thing.Box", "Holds things.", ""),
        ("qz_one.thing.Box.__init__", "Start empty.", "No argument is needed."),
        ("qz_one.thing.Box.fill.inner", "Nested.", ""),
    ]
    assert {(row["package"], row["module"]) for row in rows} == {("qz_one", "qz_one.thing")}


def test_sources_are_parsed_and_never_executed(package, monkeypatch):
    monkeypatch.delenv("QZHOU_EXECUTED", raising=False)

    assert rows_of(package, SOURCE)

    assert "QZHOU_EXECUTED" not in os.environ


@pytest.mark.parametrize("content", [b"def broken(:\n", b"x = '\xff'\n", b"x = 1\x00"])
def test_a_file_that_does_not_parse_is_refused_with_its_path(package, content):
    [refused] = rows_of(package, content)

    assert isinstance(refused, RejectedRow)
    assert refused.reason == "not_parsed"
    assert str(package) in refused.detail


def test_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    reader._ROOTS.clear()
    package = tmp_path / "qz_sample"
    (package / "inner").mkdir(parents=True)
    (package / "tests").mkdir()
    for name in ("__init__.py", "a.py", "inner/__init__.py", "tests/test_a.py"):
        (package / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    found = list(reader.files(["qz_sample"], eval_fraction=0.1))

    names = [reader._names(file, ("qz_sample",)) for file in found]
    modules = ["qz_sample", "qz_sample.a", "qz_sample.inner"]
    assert names == [("qz_sample", module) for module in modules]
    assert "qz_sample" not in sys.modules


def test_the_standard_library_comes_without_its_tests_and_site_packages():
    modules = {reader._names(file, ("stdlib",))[1] for file in reader.files(["stdlib"])}

    assert {"json", "json.decoder", "textwrap"} <= modules
    assert not [
        module for module in modules if module.split(".")[0] in {"test", "site-packages"} or ".tests" in module
    ]


@pytest.mark.parametrize("package", ["no_such_package_here", "json.decoder"])
def test_a_package_that_is_not_installed_is_named_with_the_way_out(package):
    with pytest.raises(DataError, match=f"'{package}' is not installed here; .* 'packages'"):
        list(reader.files([package]))


def nothing_held_out(_module):
    return False


def documented_modules():
    names = [f"{package}.{module}" for package in ("one", "two") for module in ("a", "a.x", "b")]
    return [
        {"package": name.split(".")[0], "module": name, "name": f"{name}.f{i}", "summary": f"{name} does {i}"}
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

    drawn = list(reader.draw_pairs(documented_modules(), nothing_held_out))

    assert {pair["shared_path"] for pair in drawn} >= {0, 1, 2}
    for pair in drawn:
        assert pair["shared_path"] == shared_components(module_of[pair["name_a"]], module_of[pair["name_b"]])
        assert pair["module"] == module_of[pair["name_a"]]
    unordered = [frozenset((pair["name_a"], pair["name_b"])) for pair in drawn]
    assert len(set(unordered)) == len(unordered)
    assert all(len(names) == 2 for names in unordered)


def test_pairs_never_cross_the_split_and_do_not_depend_on_the_order_of_rows():
    def held_out(module):
        return module.endswith("b")

    rows = documented_modules()
    drawn = list(reader.draw_pairs(rows, held_out))

    assert drawn == list(reader.draw_pairs(rows[::-1], held_out))
    for pair in drawn:
        sides = {held_out(name.rpartition(".")[0]) for name in (pair["name_a"], pair["name_b"])}
        assert len(sides) == 1


def test_pairs_of_sources_hold_the_split_and_the_refusals(package):
    rows_of(package, SOURCE)
    (package.parent / "broken.py").write_text("def broken(:")
    found = list(reader.files(["qz_one"]))
    streams = [path.open("rb") for path in found]

    refused, *drawn = reader.pairs(streams, packages=["qz_one"], eval_fraction=0.0)

    assert refused.reason == "not_parsed"
    assert {pair["shared_path"] for pair in drawn} == {2}
    assert len(drawn) == len({frozenset((pair["name_a"], pair["name_b"])) for pair in drawn})


def test_rows_without_a_summary_are_not_paired():
    rows = [{"package": "one", "module": "one", "name": f"one.f{i}", "summary": ""} for i in range(3)]

    assert list(reader.draw_pairs(rows, nothing_held_out)) == []
