"""The project as a user installs it: a wheel in an environment of its own, outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.e2e.commands import ROOT, run


def build(folder: Path) -> Path:
    """The folder with the sdist and the wheel, made of a copy: setuptools leaves things beside what it builds."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    for part in ("platform", "recipes", "tests", "jobs"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / part, folder / part, ignore=unwanted)
    done = run("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder)
    assert done.status == 0, done.text
    return folder / "dist"


def install(distributions: Path, venv: Path) -> Path:
    """The Python of an environment with the wheel, and with the libraries of this one in place of downloaded ones."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (wheel,) = distributions.glob("*.whl")
    done = run("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert done.status == 0, done.text
    (site,) = venv.glob("lib/python*/site-packages")
    # after the wheel's own place
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return python


def typed(python: Path, folder: Path, *words: str) -> str:
    """What a program of the environment prints, run in a folder outside the checkout."""
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [python.with_name(words[0]), *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
