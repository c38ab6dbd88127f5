"""The sdist and the wheel: what is in them, and that the wheel works where nothing else of the project is."""

import json
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT
from tests.e2e.installed import build, install, typed

PACKAGE = ROOT / "platform" / "qzhou"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
FILES = sorted(
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
DATA = [name for name in FILES if not name.endswith(".py")]
RECIPES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "recipes").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
PACKED = [f"qzhou/cli/{name}" for name in RECIPES]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    return install(built, tmp_path_factory.mktemp("venv"))


def says(python: Path, code: str) -> str:
    return typed(python, python.parent, "python", "-c", code)


def test_the_wheel_holds_the_package_its_data_and_its_licence_and_nothing_else(built):
    (wheel,) = built.glob(f"qzhou-{VERSION}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    inside = {name for name in names if not name.startswith(f"qzhou-{VERSION}.dist-info/")}
    assert inside == {*FILES, *PACKED}, "package-data of pyproject.toml names each kind of file"
    assert f"qzhou-{VERSION}.dist-info/licenses/LICENSE" in names
    assert {Path(name).suffix for name in DATA} >= {".html", ".j2", ".css", ".js", ".md", ".toml"}


def test_the_sdist_holds_what_a_wheel_is_built_from(built):
    (sdist,) = built.glob(f"qzhou-{VERSION}.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {f"platform/{name}" for name in FILES} <= names
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", *RECIPES} <= names
    assert not [name for name in names if name.startswith(("tests", "jobs"))]


def test_the_installed_wheel_loads_a_recipe_without_torch(python):
    recipe = ROOT / "recipes" / "quickstart.toml"
    code = (
        "import sys, importlib.metadata, qzhou; from qzhou.config.recipe import load_recipe; "
        f"name = load_recipe({str(recipe)!r}).run.name; heavy = {{'torch', 'ray'}} & set(sys.modules); "
        "print(qzhou.__file__, qzhou.__version__, importlib.metadata.version('qzhou'), name, heavy)"
    )

    place, *said = says(python, code).split()

    assert Path(place).is_relative_to(python.parents[1])
    assert said == [VERSION, VERSION, "quickstart", "set()"]


def test_the_installed_wheel_reads_its_data(python):
    code = (
        "from importlib.resources import files; root = files('qzhou'); "
        f"print(sum(len(root.joinpath(*name.split('/')[1:]).read_text('utf-8')) > 0 for name in {DATA}))"
    )
    page = "from qzhou.evaluation.report import page; from qzhou.synthesis import techniques; print('loaded')"

    assert int(says(python, code)) == len(DATA) - 1, "all but py.typed hold something"
    assert says(python, page) == "loaded"


def test_the_command_of_the_wheel_finds_the_recipes_that_ship(python, tmp_path):
    done = json.loads(typed(python, tmp_path, "qzhou", "run", "quickstart", "--dry-run"))

    assert done["run"] == {
        "name": "quickstart", "storage": "runs", "seed": done["run"]["seed"], "share_stages": False,
    }  # fmt: skip
    assert "(baseline)" in typed(python, tmp_path, "qzhou", "experiment", "eta", "--dry-run")
    assert list(tmp_path.iterdir()) == []
