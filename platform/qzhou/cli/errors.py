"""Errors as one message and an exit status."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qzhou.errors import QzhouError, kind_of
from qzhou.telemetry.events import as_json, check_log_format, log_event

INTERRUPTED = 130


@contextmanager
def errors_for_people(command: str = "") -> Iterator[None]:
    """End the process with one message where the block raises an error that is meant for people.

    Exit status: 1 a failure, 2 a mistake of the user's (see :mod:`qzhou.errors`), 130
    interrupted. ``command`` names the source of the message in a JSON log; default: the
    running script.
    """
    try:
        check_log_format()
        yield
    except QzhouError as error:
        kind, status = kind_of(error).__name__, error.exit_status
        _log_error(command, f"error: {error}", "failed", kind=kind, exit_status=status)
        sys.exit(status)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        line = "interrupted; the same command goes on from what is finished"
        _log_error(command, line, "interrupted", exit_status=INTERRUPTED)
        sys.exit(INTERRUPTED)
    # A defect: people get the traceback, and a collected log its place, without texts of the data.
    except Exception as error:
        if as_json():
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            _log_error(command, "error: unexpected", "crashed", kind=type(error).__name__, where=where)
        raise


def _log_error(command: str, line: str, event: str, **fields: object) -> None:
    if as_json():
        line = f"{command or Path(sys.argv[0]).stem}: {line.removeprefix('error: ')}"
    log_event(line, event, level="error", stream=sys.stderr, **fields)
