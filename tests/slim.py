"""Jobs that answer before anything heavy is loaded."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def without_torch_and_ray(job: str, *words: str) -> str:
    """What a job prints where torch, ray and transformers cannot be imported."""
    blocked = "import sys, runpy; sys.modules |= {'torch': None, 'ray': None, 'transformers': None}; "
    code = blocked + f"sys.argv = sys.argv[1:]; runpy.run_path({job!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, job, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
