"""The cache of LLM answers: a run never pays twice for the same request.

JSON lines, keyed by the request. Each process writes files of its own. So a kill can tear
only the last line of a file, and two attempts never write to the same file.
"""

import asyncio
import dataclasses
import errno
import json
import os
import time
import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from qzhou.data.storage import Folder
from qzhou.errors import StorageError
from qzhou.synthesis.chat import Answer
from qzhou.telemetry.events import log_event

RESPONSES = "responses"  # folder of the cache in the stage's folder
GATHERED_S = 1.0  # answers of an object store's file
RETRIED_S = 5.0
KEY_COLUMNS = slice(9, 73)  # of the request's hash in a line: {"key": "...


class ResponseCache:
    """Answers by request key.

    An answer is written at once and so outlives a kill of the process; :meth:`add` returns when
    it would outlive one of the machine, and answers that arrive together share that ``fsync``.
    Object stores cannot append: there the answers of ``GATHERED_S`` make a file.

    Args:
        folder: Of the cache.
        without: Files whose answers are not loaded: those that are known otherwise.
        patience_s: How long an object store may be away until :meth:`add` raises its error.
    """

    def __init__(self, folder: Folder, *, without: Collection[str] = (), patience_s: float = 300.0) -> None:
        self.folder = folder
        answers = _read_answers(folder, without=without)
        self._answers = {answer.key: answer for answer in answers if answer.is_whole}
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._name = f"answers-{stamp}-{uuid.uuid4().hex[:8]}"
        self._unsaved: list[Answer] = []
        self._added = self._saved = 0
        self._file: BinaryIO | None = None
        self._files_written, self._patience_s = 0, patience_s
        self._committing: asyncio.Task[None] | None = None

    def get(self, key: str) -> Answer | None:
        """The answer to a request, or None."""
        return self._answers.get(key)

    async def add(self, answer: Answer) -> None:
        """Keep an answer."""
        if self.folder.is_local:
            # Not in a thread: the answers that wait there for a slow disk's fsync would be paid again after a kill.
            self._append(_line(answer))
        self._added += 1
        number = self._added
        self._unsaved.append(answer)
        # One commit saves everything that waits; answers that come meanwhile take the next one.
        while number > self._saved:
            if self._committing is None:
                self._committing = asyncio.create_task(self._commit())
            await asyncio.shield(self._committing)  # others wait for it, too
        if answer.is_whole:
            self._answers[answer.key] = answer

    async def _commit(self) -> None:
        try:
            if not self.folder.is_local:
                await asyncio.sleep(GATHERED_S)
            saved = list(self._unsaved)
            if self.folder.is_local:
                await asyncio.to_thread(self._sync)
            else:
                await self._upload("".join(map(_line, saved)).encode())
            del self._unsaved[: len(saved)]
            self._saved += len(saved)
        finally:
            self._committing = None

    async def _upload(self, content: bytes) -> None:
        """Write a file of an object store, again and again while it is away."""
        name = f"{self._name}-{self._files_written:06d}.jsonl"
        given_up = time.monotonic() + self._patience_s
        while True:
            try:
                await asyncio.to_thread(self.folder.write_bytes, name, content)
                break
            except (OSError, StorageError) as error:
                if time.monotonic() > given_up:
                    raise
                line = f"synthesis: answers wait in memory, since {self.folder.uri} cannot be written: {error}"
                log_event(line, "answers_wait", level="warning")
                await asyncio.sleep(RETRIED_S)
        self._files_written += 1

    def _append(self, line: str) -> None:
        """Hand a line to the system; a part of it, which a full disk has taken, is taken back."""
        if self._file is None:
            place = Path(self.folder.path) / f"{self._name}.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            self._file = place.open("ab", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        content = line.encode()
        try:
            written = self._file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(size)
            raise

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())


def cached_answers(folder: Folder, keys: Collection[str]) -> dict[str, Answer]:
    """The cached answers to some requests, by key; holds one file at a time in memory."""
    return {answer.key: answer for answer in _read_answers(folder, keys) if answer.is_whole}


def totals(folder: Folder) -> tuple[int, float]:
    """The number of answers in a cache, and their cost together; one that was asked for again was paid again."""
    costs = [answer.cost for answer in _read_answers(folder)]
    return len(costs), sum(costs)


def _line(answer: Answer) -> str:
    return json.dumps(dataclasses.asdict(answer)) + "\n"  # ASCII: a kill cannot tear a character


def _read_answers(
    folder: Folder, keys: Collection[str] | None = None, *, without: Collection[str] = ()
) -> Iterator[Answer]:
    for name in folder.files(".jsonl"):
        if name in without:
            continue
        for line in folder.read_bytes(name).decode("ascii", "replace").splitlines():
            if keys is not None and line[KEY_COLUMNS] not in keys:
                continue
            try:
                yield Answer(**json.loads(line))
            except (ValueError, TypeError):
                # A torn line was never counted as answered, so its request is sent again.
                continue
