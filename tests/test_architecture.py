"""The house rules of CONTRIBUTING.md, read from the code: who imports whom, and what must not be there."""

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "qzhou"
LEVELS = (
    ("errors",),
    ("data",),
    ("telemetry", "config", "run"),
    ("cluster", "encoder"),
    ("transform", "synthesis", "mining", "training", "export", "evaluation", "serving", "estimate"),
    ("experiments", "cli"),
)
STAGES = LEVELS[4]  # they never import each other
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
ONLY_IN = {
    "ray": {
        "platform/qzhou/cluster/session.py",
        "platform/qzhou/cluster/interfaces.py",
        "platform/qzhou/cluster/local_head.py",
        "platform/qzhou/cluster/ray_data.py",
        "platform/qzhou/cluster/relay.py",
        "platform/qzhou/cluster/metrics.py",
        "platform/qzhou/cluster/submission.py",
        "platform/qzhou/serving/app.py",
        *(f"platform/qzhou/{stage}/pipeline.py" for stage in (*STAGES, "experiments") if stage != "estimate"),
        "platform/qzhou/evaluation/judge/workers.py",
        "platform/qzhou/mining/encode.py",
        "platform/qzhou/mining/sharded_index.py",
        "platform/qzhou/serving/batch_embed.py",
        "platform/qzhou/serving/indexing.py",
        "platform/qzhou/experiments/rehearsal.py",
        "platform/qzhou/training/probe.py",
        "platform/qzhou/training/signals.py",
    },
    "deepspeed": {"platform/qzhou/training/deepspeed_engine.py"},
    "mteb": {
        f"platform/qzhou/evaluation/judge/{file}.py"
        for file in ("evaluator", "local_tasks", "mteb_models", "mteb_tasks")
    },
    "faiss": {"platform/qzhou/mining/shard.py", "platform/qzhou/serving/index.py"},
    "fastapi": {"platform/qzhou/serving/web.py"},
    "onnxruntime": {"platform/qzhou/export/onnx_model.py"},
    "openai": {
        f"platform/qzhou/{file}.py" for file in ("encoder/remote", "synthesis/batch_api", "synthesis/client")
    },
    "aiohttp": set(),
}
SLIM = (
    "errors",
    "data.records",
    "data.prompts",
    "data.storage",
    "config.recipe",
    "run.run",
    "run.models",
    "cli.main",
)
SLIM += ("cluster.resources", "estimate.command", "synthesis.details", "experiments.settings")
PIPELINES = [f"{path.parent.name}.pipeline" for path in sorted(PACKAGE.glob("*/pipeline.py"))]
STARTED = ["mining.actors", *PIPELINES]  # the searcher first: it loads less than all others
HEAVY = ("torch", "transformers", "sentence_transformers", "deepspeed", "mteb")
PYTHON = [path for folder in ("platform", "jobs", "serve") for path in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def modules_imported_by(path: Path) -> set[str]:
    """Dotted names, those of ``from package import module`` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    """The room, or the single file, that a file of the package belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_packages_of_stages_do_not_import_each_other(path):
    own = part_of(path)
    if own == "__init__":
        return
    for module in modules_imported_by(path):
        if module.startswith("qzhou.") and (other := module.split(".")[1]) != own and other in LEVEL:
            assert LEVEL[other] <= LEVEL[own], f"{own} imports {other}, which is above it"
            assert not (other in STAGES and own in STAGES), f"{own} imports {other}"


def test_every_part_of_the_package_has_a_level():
    assert {part_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_in_its_own_place_only(library):
    users = {
        str(path.relative_to(ROOT)) for path in PYTHON
        if any(module.split(".")[0] == library for module in modules_imported_by(path))
    }  # fmt: skip

    assert users <= ONLY_IN[library]


def test_nothing_imports_jobs_or_serve():
    for path in PYTHON:
        assert not {module.split(".")[0] for module in modules_imported_by(path)} & {"jobs", "serve"}, path


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_are_short_and_load_heavy_things_only_when_they_work(job):
    assert len(job.read_text("utf-8").splitlines()) <= 40
    top = [node for node in ast.parse(job.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in top if str(node.module).startswith("qzhou")} <= {"qzhou.cli.main"}


def python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_recipe_loads_neither_torch_nor_ray():
    """--help, --dry-run and plan must answer at once."""
    names = ", ".join(f"qzhou.{name}" for name in SLIM)
    heavy = "{'torch', 'ray', 'transformers', 'datasets', 'mteb'} & set(sys.modules)"

    assert python(f"import sys, {names}; print({heavy})", PYTHONPATH="platform").strip() == "set()"


@functools.cache
def loaded_heavy() -> dict[str, list[str]]:
    """Heavy libraries that are there after each of the modules has been imported, in the order of the keys."""
    code = (
        "import importlib, json, sys\n"
        f"heavy, found = {HEAVY!r}, {{}}\n"
        f"for name in {STARTED!r}:\n"
        "    importlib.import_module('qzhou.' + name)\n"
        "    found[name] = [one for one in heavy if one in sys.modules]\n"
        "print(json.dumps(found))"
    )
    return json.loads(python(code, PYTHONPATH="platform"))


@pytest.mark.parametrize("words", [["--help"], ["mine", "--help"], ["run", "quickstart", "--dry-run"]])
def test_the_command_answers_without_torch_and_ray(words):
    code = (
        f"import sys; from qzhou.cli.main import cli; cli.main({words!r}, standalone_mode=False); "
        "print('loaded:', {'torch', 'ray', 'transformers', 'datasets', 'mteb'} & set(sys.modules))"
    )

    assert python(code, PYTHONPATH="platform").splitlines()[-1] == "loaded: set()"


@pytest.mark.parametrize("module", STARTED)
def test_searchers_drivers_and_controllers_start_without_models(module):
    """Each is a process of its own, and transformers with all that it loads takes seconds of one."""
    assert set(loaded_heavy()[module]) <= {"torch"}


def test_a_searcher_starts_without_torch():
    assert STARTED[0] == "mining.actors"
    assert loaded_heavy()["mining.actors"] == []


def test_the_source_root_does_not_hide_the_standard_library():
    """A package `platform` would shadow the module that every Ray worker imports first, and hang the job."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.python_version())").startswith("3.")


def test_the_wheel_holds_qzhou_and_never_platform():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

    assert project["tool"]["setuptools"]["packages"]["find"] == {"where": ["platform"]}
    assert {"cpu", "gpu", "quickstart", "dev"} <= set(project["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    "phrase", ["trust_remote_code=True", "pickle.load(", "weights_only=False", "except:", "yaml.load("]
)
def test_what_runs_foreign_code_or_hides_errors_is_not_there(phrase):
    assert not [path for path in PYTHON if phrase in path.read_text("utf-8")]


def test_of_ray_only_documented_names_are_used():
    """Its private ones change without notice."""
    private = re.compile(r"\bray(\.\w+)*\._|_internal\b|_internal_")
    assert not [path for path in PYTHON if private.search(path.read_text("utf-8"))]


def test_tests_end_only_what_they_started():
    """A test must never stop a cluster or a process that is not its own."""
    forbidden = ["ray stop", "pkill", "killall"]
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert not [word for word in forbidden if word in path.read_text("utf-8")], path


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[documented:]
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    """Ruff counts statements; a statement may be long."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": body_lines(node)
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, functions)
    }
    assert {name: lines for name, lines in found.items() if lines > 40} == {}


def test_the_top_of_the_package_is_a_short_list():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(entries) <= 19
