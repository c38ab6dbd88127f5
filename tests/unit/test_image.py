"""deploy/Dockerfile as far as it can be checked without building it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
IN_IMAGE = "/home/ray/qzhou"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def dockerfile():
    return DockerfileParser(fileobj=(ROOT / "deploy" / "Dockerfile").open("rb"))


def steps(dockerfile, instruction):
    return [one["value"] for one in dockerfile.structure if one["instruction"] == instruction]


def copied(dockerfile):
    """Sources and target of every COPY from the build context."""
    return [
        (sources, target)
        for *sources, target in (value.split() for value in steps(dockerfile, "COPY"))
        if not sources[0].startswith("--from")
    ]


def test_the_linter_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_travels_to_the_builder(dockerfile):
    sources = [name for names, _ in copied(dockerfile) for name in names]
    ignored, *wanted = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[0] != "#"]

    assert all((ROOT / name).exists() for name in sources)
    assert ignored == "*"
    assert {line[1:] for line in wanted if line[0] == "!"} == set(sources)


def test_dependencies_are_the_pinned_ones_and_both_extras_exist(dockerfile):
    (install,) = [value for value in steps(dockerfile, "RUN") if "pip install" in value]
    extras = re.search(r'"\.\[\$\{EXTRA\},([\w,]+)\]"', install)[1].split(",")

    assert "--constraint constraints.txt" in install
    assert {"cpu", "gpu", *extras} <= PROJECT["optional-dependencies"].keys()
    bases = [value.split()[0] for value in steps(dockerfile, "FROM")]
    assert set(bases) == {"python:3.11-slim-bookworm"}, "what the first stage installs fits the second"
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_manifests_name_the_ray_that_is_installed():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[1]
    (wanted,) = [one for one in PROJECT["dependencies"] if one.startswith("ray[")]

    assert wanted.partition(">=")[2].split(",")[0] == pinned.rpartition(".")[0]
    for file in ("Dockerfile", "kuberay/images/kustomization.yaml", "kuberay/cluster/cluster.yaml"):
        found = re.findall(r"(?:-ray|rayVersion: )([\d.]+)", (ROOT / "deploy" / file).read_text("utf-8"))
        assert found
        assert set(found) == {pinned}, file


def test_nothing_runs_as_root(dockerfile):
    instructions = [one["instruction"] for one in dockerfile.structure]

    assert steps(dockerfile, "USER") == ["1000"]
    assert instructions.index("USER") > max(n for n, name in enumerate(instructions) if name == "COPY")


def test_jobs_run_in_the_image_without_an_upload(dockerfile, tmp_path):
    for sources, target in copied(dockerfile):
        if (ROOT / sources[0]).is_dir():
            shutil.copytree(ROOT / sources[0], tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
    (environment,) = steps(dockerfile, "ENV")
    path = re.search(r"PYTHONPATH=(\S+)", environment)[1].replace(IN_IMAGE, str(tmp_path))

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd="/", env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        ).stdout

    assert '"name": "qzhou-7b"' in run(
        tmp_path / "jobs" / "pipeline.py", tmp_path / "recipes" / "qzhou-7b.toml", "--dry-run"
    )
    said = run(
        "-c", "import platform, qzhou, serve.app; print(platform.system(), qzhou.__file__, serve.app.__file__)"
    )
    assert said.split() == ["Linux", f"{tmp_path}/platform/qzhou/__init__.py", f"{tmp_path}/serve/app.py"]
