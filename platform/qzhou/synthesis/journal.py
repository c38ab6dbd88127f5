"""The journal of answered requests: an answer that was paid for is never asked for again.

JSON lines, keyed by what was sent. Each opening writes files of its own, so that a kill can tear
only the last line of a file, and two attempts never write to the same one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qzhou.data.storage import Folder
from qzhou.synthesis.techniques import Message

KEY_PLACE = slice(9, 73)  # of the request's hash in a line of the journal: {"key": "...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an endpoint answered; ``model`` is what it says of itself, ``cost`` what it took at the recipe's prices."""

    key: str
    model: str
    content: str
    prompt_tokens: int
    completion_tokens: int
    cost: float = 0.0


def request_key(model: str, messages: Sequence[Message], temperature: float) -> str:
    """SHA-256 of everything that the answer depends on, in canonical JSON."""
    sent = {"model": model, "messages": list(messages), "temperature": temperature}
    content = json.dumps(sent, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """Answers by request key.

    On a local filesystem an answer is on disk before :meth:`add` returns; answers that come at the same time share one
    ``fsync``. Object stores cannot append: there, answers are written as one file at each :meth:`flush`.

    Args:
        folder: Of the journal.
        read: Whether to look into what is there; ``False`` only adds to it.
    """

    def __init__(self, folder: Folder, *, read: bool = True) -> None:
        self.folder = folder
        names = folder.files(".jsonl") if read else []
        lines = (line for name in names for line in _lines(folder, name))
        self._answers = {one.key: one for line in lines if (one := _parsed(line)) is not None}
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self._name = f"answers-{stamp}-{uuid.uuid4().hex[:8]}"
        self._unwritten: list[Answer] = []
        self._files_written = 0
        self._committing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    async def add(self, answer: Answer) -> None:
        """Keep an answer; local ones survive a kill from here on."""
        self._unwritten.append(answer)
        if self.folder.is_local:
            while answer in self._unwritten:
                if self._committing is None:
                    self._committing = asyncio.create_task(self._commit())
                await self._committing
        self._answers[answer.key] = answer

    def flush(self) -> None:
        """Write what an object store has not got yet, as a file of its own."""
        if self._unwritten and not self.folder.is_local:
            lines = "".join(_line(answer) for answer in self._unwritten)
            self.folder.write_bytes(f"{self._name}-{self._files_written:06d}.jsonl", lines.encode())
            self._unwritten.clear()
            self._files_written += 1

    async def _commit(self) -> None:
        """Everything that waits to the disk, while more may come."""
        written = list(self._unwritten)
        try:
            await asyncio.to_thread(self._append, "".join(map(_line, written)))
            del self._unwritten[: len(written)]
        finally:
            self._committing = None

    def _append(self, lines: str) -> None:
        path = Path(self.folder.path) / f"{self._name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(lines)
            stream.flush()
            os.fsync(stream.fileno())


def answers_in(folder: Folder, keys: Collection[str]) -> dict[str, Answer]:
    """The answers to some requests, from all files of a journal; holds one file at a time in memory."""
    found = {}
    for name in folder.files(".jsonl"):
        for line in _lines(folder, name):
            if line[KEY_PLACE] in keys and (answer := _parsed(line)) is not None:
                found[answer.key] = answer
    return found


def totals(folder: Folder) -> tuple[int, float]:
    """How many answers a journal holds, and what they cost together."""
    costs = {}
    for name in folder.files(".jsonl"):
        costs.update(
            {
                one.key: one.cost
                for line in _lines(folder, name)
                if (one := _parsed(line)) is not None
            }
        )
    return len(costs), sum(costs.values())


def _line(answer: Answer) -> str:
    return json.dumps(dataclasses.asdict(answer)) + "\n"  # ASCII: a kill cannot tear a character


def _lines(folder: Folder, name: str) -> list[str]:
    return folder.read_bytes(name).decode("ascii", "replace").splitlines()


def _parsed(line: str) -> Answer | None:
    """The answer of a line; None for a torn one, which was never counted as answered, so it is asked again."""
    try:
        return Answer(**json.loads(line))
    except (ValueError, TypeError):
        return None
