"""The cache keeps what was answered, through kills and on filesystems that cannot append."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qzhou.data.storage import Folder
from qzhou.errors import StorageError
from qzhou.synthesis.chat import Answer, request_key
from qzhou.synthesis.response_cache import GATHERED_S, ResponseCache, cached_answers, totals


def answer(key: str) -> Answer:
    return Answer(key=key, model="m", content="{}\n\u2028 é", prompt_tokens=1, completion_tokens=2, cost=0.5)


def add(cache, *keys):
    async def together():
        await asyncio.gather(*(cache.add(answer(key)) for key in keys))

    asyncio.run(together())


def test_answers_that_come_at_the_same_time_are_each_kept_once(tmp_path):
    folder = Folder.open(str(tmp_path))
    keys = [f"key{number}" for number in range(200)]

    add(ResponseCache(folder), *keys)

    (name,) = folder.files(".jsonl")
    assert folder.read_bytes(name).count(b"\n") == 200
    assert all(ResponseCache(folder).get(key) == answer(key) for key in keys)


def test_a_kill_loses_no_answer_however_slow_the_disk_is(tmp_path, monkeypatch):
    folder = Folder.open(str(tmp_path))
    is_saved = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: is_saved.wait(timeout=600))

    async def seen_while_the_disk_is_busy():
        cache = ResponseCache(folder)
        adding = [asyncio.create_task(cache.add(answer(key))) for key in "abcd"]
        await asyncio.sleep(0.1)
        seen = [ResponseCache(folder).get(key) for key in "abcd"], [task.done() for task in adding]
        is_saved.set()
        await asyncio.gather(*adding)
        return seen

    found, ended = asyncio.run(seen_while_the_disk_is_busy())

    assert found == [answer(key) for key in "abcd"]
    assert not any(ended)


FULL_DISK = """
import asyncio, resource, signal, sys
from qzhou.data.storage import Folder
from qzhou.synthesis.response_cache import ResponseCache
from tests.unit.synthesis.test_synthesis_response_cache import answer

async def main():
    cache = ResponseCache(Folder.open(sys.argv[1]))
    await cache.add(answer("a"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
    try:
        await cache.add(answer("b"))
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await cache.add(answer("c"))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main())
"""


def test_what_a_full_disk_took_half_of_harms_no_later_answer(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert "Errno" in done.stdout
    kept = ResponseCache(Folder.open(str(tmp_path)))
    assert [kept.get(key) is not None for key in "abc"] == [True, False, True]


def test_a_caller_that_gives_up_takes_no_other_with_it(tmp_path, monkeypatch):
    is_saved = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: is_saved.wait(timeout=600))

    async def one_is_cancelled():
        cache = ResponseCache(Folder.open(str(tmp_path)))
        adding = [asyncio.create_task(cache.add(answer(key))) for key in "abc"]
        await asyncio.sleep(0.1)
        adding[0].cancel()
        await asyncio.sleep(0.1)
        is_saved.set()
        return await asyncio.gather(*adding, return_exceptions=True)

    first, *others = asyncio.run(one_is_cancelled())

    assert isinstance(first, asyncio.CancelledError)
    assert others == [None, None]


def test_answers_are_found_again_by_another_cache(tmp_path):
    folder = Folder.open(str(tmp_path))
    add(ResponseCache(folder), "a")
    add(ResponseCache(folder), "b")

    reopened = ResponseCache(folder)

    assert [reopened.get(key) for key in "abc"] == [answer("a"), answer("b"), None]


def test_a_torn_last_line_is_ignored_and_harms_no_later_answer(tmp_path):
    folder = Folder.open(str(tmp_path))
    cache = ResponseCache(folder)
    add(cache, "a")
    add(cache, "b")
    written = next(Path(tmp_path).glob("*.jsonl"))
    written.write_bytes(written.read_bytes()[:-20])

    after_the_kill = ResponseCache(folder)
    add(after_the_kill, "c")

    assert after_the_kill.get("b") is None
    assert [ResponseCache(folder).get(key) is not None for key in "abc"] == [True, False, True]


def remote(tmp_path):
    """A folder that is taken for one of an object store, since only ``is_local`` asks for the scheme."""
    return dataclasses.replace(Folder.open(str(tmp_path)), scheme="s3://")


def test_an_object_store_has_each_answer_before_it_counts_and_few_files(tmp_path):
    folder = remote(tmp_path)
    cache = ResponseCache(folder)

    add(cache, *(f"key{number}" for number in range(100)))
    add(cache, "later")

    assert len(folder.files(".jsonl")) == 2
    assert totals(folder)[0] == 101
    assert ResponseCache(folder).get("key7") == answer("key7")


def test_answers_wait_while_an_object_store_is_away(tmp_path, capsys):
    """Its place is a file for a moment, so that nothing can be written below it."""
    place = tmp_path / "bucket"
    folder = remote(place)

    async def away_for_a_moment():
        cache = ResponseCache(folder, patience_s=60)
        place.write_bytes(b"")
        adding = asyncio.gather(*(cache.add(answer(key)) for key in "abc"))
        await asyncio.sleep(GATHERED_S + 0.5)
        assert not adding.done()
        place.unlink()
        await adding

    asyncio.run(away_for_a_moment())

    assert totals(folder)[0] == 3
    assert "answers wait in memory" in capsys.readouterr().out


def test_an_object_store_that_stays_away_is_an_error(tmp_path):
    place = tmp_path / "bucket"
    cache = ResponseCache(remote(place), patience_s=0)
    place.write_bytes(b"")

    with pytest.raises(StorageError, match="bucket"):
        add(cache, "a")


def test_some_answers_are_found_without_holding_the_others(tmp_path):
    folder = Folder.open(str(tmp_path))
    keys = [request_key("m", [{"role": "user", "content": str(number)}], {}) for number in range(9)]
    add(ResponseCache(folder), *keys[:5])
    add(ResponseCache(folder), *keys[3:])

    assert cached_answers(folder, {keys[4], keys[8], "unknown"}) == {key: answer(key) for key in (keys[4], keys[8])}
    assert totals(folder) == (11, 11 * 0.5), "what was asked for twice was paid for twice"


def test_the_key_covers_model_messages_and_sampling():
    chat = [{"role": "user", "content": "hello"}]

    cold, warm = {"temperature": 0.0}, {"temperature": 0.7}
    keys = {request_key("m", chat, warm), request_key("n", chat, warm), request_key("m", chat, cold)}
    keys.add(request_key("m", [{"role": "user", "content": "bye"}], warm))
    keys.add(request_key("m", chat, warm | {"top_p": 0.9}))

    assert len(keys) == 5
    assert request_key("m", [{"content": "hello", "role": "user"}], warm) in keys


def test_an_answer_that_is_empty_or_was_cut_is_paid_and_asked_for_again(tmp_path):
    folder = Folder.open(str(tmp_path))
    cache = ResponseCache(folder)
    a, b, c = (letter * 64 for letter in "abc")
    cut = [dataclasses.replace(answer(a), finish_reason="length"), dataclasses.replace(answer(b), content=" ")]
    for one in (*cut, answer(c)):
        asyncio.run(cache.add(one))

    again = ResponseCache(folder)

    assert [again.get(key) is not None for key in (a, b, c)] == [False, False, True]
    assert set(cached_answers(folder, (a, b, c))) == {c}
    assert totals(folder) == (3, 1.5)
