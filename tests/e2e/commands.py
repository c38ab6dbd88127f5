"""Commands as a user types them, at the root of the project."""

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QZHOU = ROOT / "platform" / "qzhou" / "cli" / "__main__.py"  # the command `qzhou` as a script
TIMEOUT_S = 3600  # of one command; without bfloat16 in hardware the quickstart takes thrice as long

# what Ray Train says, with a traceback, where a busy machine is slow to answer; "safe to ignore"
OVERLOADED = re.compile(
    r"Failed to (send resource request|stop \w+ gracefully).*?GetTimeoutError:[^\n]*", re.DOTALL
)


def on_an_idle_machine(text: str) -> str:
    """What a command has printed, without what Ray Train adds on a busy machine."""
    return OVERLOADED.sub("", text)


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
    """``python <words>``, running; how a cluster is guarded is Ray's own choice unless it is given here."""
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    own = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    return subprocess.Popen(command, cwd=folder, env=own | environment, text=True, **pipes)


def call(script: str | Path, *words: str | Path, folder: Path = ROOT, **environment: str) -> Finished:
    """``python <script> <words>`` inside this process, which has loaded what takes seconds to load.

    A command that needs Ray is given a head to join by ``RAY_ADDRESS``.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        _as_a_process([str(script), *map(str, words)], folder, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = _exit_status(end, err)
    return Finished(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_a_process(words: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Arguments, folder and variables of a command; afterwards those of the tests, and their handler of Ctrl-C."""
    variables, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(sys, "argv", words)
        os.environ.update(environment)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            os.environ.clear()
            os.environ.update(variables)


def _exit_status(end: SystemExit, err: io.StringIO) -> int:
    """What the system would say of a process that ends so; a text is printed and means 1."""
    if isinstance(end.code, str):
        print(end.code, file=err)
        return 1
    return end.code or 0
