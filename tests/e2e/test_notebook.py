"""The notebook runs from its first cell to its last; Jupyter is not needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.commands import ROOT

NOTEBOOK = json.loads((ROOT / "deploy" / "anyscale" / "README.ipynb").read_text("utf-8"))


def as_script() -> str:
    """The code of all cells; a line of the shell becomes a call that fails as loudly as it should."""
    lines = ["import shlex, subprocess"]
    for cell in NOTEBOOK["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else ():
            shell = line.removeprefix("!")
            words = f"subprocess.run(shlex.split(f{shell!r}), check=True)"
            lines.append(line if shell == line else words)
    return "\n".join(lines)


def test_every_cell_of_the_notebook_runs(submitted, tmp_path):
    """On a run that is finished: that its stages are done anew is shown by other tests."""
    recipe = submitted[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "QZHOU_RECIPE": str(recipe), "PATH": path, "HOME": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    script = tmp_path / "cells.py"
    script.write_text(as_script(), "utf-8")

    done = subprocess.run(
        [sys.executable, str(script)], cwd=recipe.parent, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "backbone 0." in done.stdout
    assert "tensor([[" in done.stdout
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])
