"""The sdist and the wheel: what is in them, and that the wheel works where nothing else of the project is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, run

PACKAGE = ROOT / "platform" / "qzhou"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
FILES = sorted(
    path.relative_to(PACKAGE.parent).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
DATA = [name for name in FILES if not name.endswith(".py")]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with both, made of a copy: setuptools leaves things beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for folder in ("platform", "tests", "jobs"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    done = run("-m", "build", "--no-isolation", "--outdir", source / "dist", source)
    assert done.status == 0, done.text
    return source / "dist"


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """Of an environment with the wheel, and with the libraries of this one in place of downloaded ones."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    done = run(
        "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel
    )
    assert done.status == 0, done.text
    (site,) = venv.glob("lib/python*/site-packages")
    # after the wheel's own place
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return python


def says(python: Path, code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code],
        cwd=python.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_package_its_data_and_its_licence_and_nothing_else(built):
    (wheel,) = built.glob(f"qzhou-{VERSION}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    inside = {name for name in names if not name.startswith(f"qzhou-{VERSION}.dist-info/")}
    assert inside == set(FILES), "package-data of pyproject.toml names each kind of file"
    assert f"qzhou-{VERSION}.dist-info/licenses/LICENSE" in names
    assert {Path(name).suffix for name in DATA} >= {".html", ".j2", ".css", ".js", ".md", ".toml"}


def test_the_sdist_holds_what_a_wheel_is_built_from(built):
    (sdist,) = built.glob(f"qzhou-{VERSION}.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {f"platform/{name}" for name in FILES} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
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
