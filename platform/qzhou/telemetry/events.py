"""What jobs say of themselves, one event a line: for people, or JSON objects where ``QZHOU_LOG`` is ``json``.

A line for people is ``stage: what happened``. The same event in JSON has ``time`` (ISO
8601, UTC), ``level``, ``stage``, ``event``, ``message`` and fields of its own. Values of
the environment's secrets are taken out of both.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

from qzhou.errors import SetupError

Level = Literal["info", "warning", "error"]
LOG_FORMAT_VARIABLE = "QZHOU_LOG"
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?$", re.IGNORECASE)
_sink: Callable[[str], bool] | None = None
SHORTEST_SECRET = 8  # characters; a shorter value would be found in ordinary words


def as_json() -> bool:
    """Whether events are JSON objects."""
    return os.environ.get(LOG_FORMAT_VARIABLE) == "json"


def check_log_format() -> None:
    """Refuse a value of the switch that means nothing.

    Raises:
        SetupError: It is neither ``json`` nor ``text``.
    """
    chosen = os.environ.get(LOG_FORMAT_VARIABLE, "")
    if chosen not in {"", "text", "json"}:
        raise SetupError(f"{LOG_FORMAT_VARIABLE} is '{chosen}'; set it to json or text, or unset it.")


def log_event(
    line: str, event: str, *, level: Level = "info", stream: TextIO | None = None, **fields: object
) -> None:
    """Print one event.

    Args:
        line: ``stage: what happened``, for people.
        event: The kind of event in snake case, independent of the numbers in the line.
        level: Severity.
        stream: Default: standard output.
        fields: Numbers and names that machines want; never a text of the data.
    """
    stage, colon, message = line.partition(": ")
    if not colon:
        stage, message = "", line
    _write(line, stage, event, level, stream, {"message": message, **fields})


def print_block(block: str, stage: str, event: str, **fields: object) -> None:
    """Show people a table or another block of lines; in JSON it is the fields alone."""
    _write(block, stage, event, "info", None, fields)


def _write(
    text: str, stage: str, event: str, level: Level, stream: TextIO | None, fields: dict[str, object]
) -> None:
    line = text
    if as_json():
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"time": time, "level": level, "stage": stage, "event": event, **fields}
        line = json.dumps(content, ensure_ascii=False, default=str)
    write_line(_without_secrets(line), stream)


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Print a line that is ready; where a sink is set and no stream, hand it there."""
    if stream is None and _sink is not None and _sink(line):
        return
    print(line, file=stream or sys.stdout, flush=True)


def set_sink(sink: Callable[[str], bool] | None) -> None:
    """Let another process print this one's events: ``sink`` takes a line, or returns False where it cannot."""
    global _sink
    _sink = sink


def _without_secrets(line: str) -> str:
    for name, value in os.environ.items():
        if SECRET_NAME.search(name):
            for secret in value.split(","):
                if len(secret := secret.strip()) >= SHORTEST_SECRET:
                    line = line.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    return line
