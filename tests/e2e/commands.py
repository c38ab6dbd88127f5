"""Commands as a user types them, at the root of the project."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
QZHOU = ROOT / "platform" / "qzhou" / "cli" / "__main__.py"  # the command `qzhou` as a script
TIMEOUT_S = 1800  # of one command; without bfloat16 in hardware the quickstart takes thrice as long


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def run(*words: str | Path, folder: Path = ROOT, **environment: str) -> Finished:
    """``python <words>``, to its end."""
    done = start(*words, folder=folder, **environment)
    out, err = done.communicate(timeout=TIMEOUT_S)
    return Finished(done.returncode, out, err)


def start(*words: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """``python <words>``, running."""
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, text=True, **pipes)
