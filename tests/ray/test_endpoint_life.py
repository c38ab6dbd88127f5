"""The endpoint while things happen to it: a new model, a replica that dies, more than it can do."""

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
import openai
import psutil
import pytest

from qzhou.cluster.ports import free_port
from qzhou.config.model import ModelSection
from qzhou.encoder import load_encoder, load_text_encoder
from tests.ray.served import KEY, MAX_TOKENS, Endpoint, serving, write_model, write_run

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
HEADER = "X-Model-Fingerprint"
ANSWERED = {200, 429, 503}
REPLICAS = 2
LIMIT, LIMITED = 6_000, 60  # tokens a minute, and keys that have no more
PATIENCE_S = 600  # reached only in failure


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[Endpoint]:
    port = free_port()
    folder = tmp_path_factory.mktemp("life")
    keys = folder / "keys.toml"
    keys.write_text(
        "".join(f'[team-{n}]\nkey = "limited-{n}"\ntokens_per_minute = {LIMIT}\n' for n in range(LIMITED)), "utf-8"
    )
    more = f'replicas = {REPLICAS}\nmax_wait_s = 0.5\ncache_mib = 0\napi_keys_file = "{keys}"'
    recipe = write_run(folder, port, more)
    with serving(recipe, port) as running:
        yield running


class Load:
    """Clients that ask one after the other, in a thread of their own, until they are told to stop.

    A pause between two requests of a client leaves the processors to what is waited for.
    """

    def __init__(self, endpoint: Endpoint, clients: int, pause_s: float = 0.0) -> None:
        self._url, self._clients, self._pause_s = f"{endpoint.url}/v1/embeddings", clients, pause_s
        self.statuses: Counter[int] = Counter()
        self.fingerprints: list[str] = []
        self.broken: list[str] = []
        self._stop = threading.Event()

    async def _ask(self, http: aiohttp.ClientSession, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            body = {"model": "tiny", "input": [f"sort the list {client} {number} {n}" for n in range(4)]}
            try:
                async with http.post(self._url, json=body) as answer:
                    await answer.read()
                    self.statuses[answer.status] += 1
                    if mark := answer.headers.get(HEADER):
                        self.fingerprints.append(mark)
            except aiohttp.ClientError as error:
                self.broken.append(repr(error))
                await asyncio.sleep(0.02)
            await asyncio.sleep(self._pause_s)

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(headers=AUTHORIZED, timeout=timeout) as http:
            await asyncio.gather(*(self._ask(http, client) for client in range(self._clients)))

    @property
    def failed(self) -> int:
        """Requests without vectors; 429 is an answer: one replica of a busy machine is slower than the limit."""
        return sum(self.statuses.values()) - self.statuses[200] - self.statuses[429] + len(self.broken)

    @contextmanager
    def running(self) -> Iterator[None]:
        """From the moment at which some have been answered."""
        thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        thread.start()
        try:
            self.go_on()
            yield
        finally:
            self._stop.set()
            thread.join()

    def go_on(self, count: int = 100) -> None:
        """Until so many more have been answered."""
        enough = self.statuses[200] + count
        wait_until(lambda: self.statuses[200] >= enough)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {PATIENCE_S} s"
        time.sleep(0.05)


def replicas(endpoint: Endpoint) -> list[psutil.Process]:
    return [one for one, words in endpoint.processes() if "ServeReplica:tiny:EmbeddingServer" in " ".join(words)]


def test_a_long_text_is_refused_by_default_and_cut_for_who_asks(endpoint, monkeypatch):
    """A teacher behind a URL asks by itself: its vectors are those of the model's own folder."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    texts = ["sort the list", "tree " * 500, "a map"]
    with pytest.raises(openai.BadRequestError, match=r"'input\[1\]' has more than the 24 tokens"):
        endpoint.client().embeddings.create(model="tiny", input=texts)
    model = ModelSection(backbone=str(endpoint.model))
    teacher = load_text_encoder(f"{endpoint.url}/v1#tiny", model, api_key_env="TEACHER_KEY")
    encoder = load_encoder(str(endpoint.model), max_tokens=MAX_TOKENS, dtype="float32", device="cpu")

    assert (teacher.encode(texts) * encoder.encode(texts)).sum(axis=1).min() >= 0.9999
    assert teacher.truncated == 1


def test_a_limit_holds_for_all_replicas_together(endpoint):
    """Replicas see within seconds how many they are; until then each gives as much as it knows of."""
    keys = iter(range(LIMITED))

    def answered() -> tuple[int, float]:
        """Tokens that a key that was not used before gets until it is refused, and the seconds that this takes."""
        client, began, tokens = endpoint.client(f"limited-{next(keys)}"), time.monotonic(), 0
        while True:
            words = [f"sort the list {random.random()} of a tree" for _ in range(40)]
            try:
                tokens += client.embeddings.create(model="tiny", input=words).usage.total_tokens
            except openai.RateLimitError:
                return tokens, time.monotonic() - began

    def holds() -> bool:
        tokens, seconds = answered()
        return (
            tokens <= 1.4 * LIMIT + LIMIT / 60 * seconds
        )  # each gives a last request more; alone, they give it twice

    wait_until(holds)


def test_a_new_model_is_taken_into_service_without_a_failed_request(endpoint):
    load = Load(endpoint, clients=8, pause_s=0.1)
    old = {one.pid for one in replicas(endpoint)}
    with load.running():
        shutil.rmtree(endpoint.model)
        write_model(endpoint.model, seed=9)
        endpoint.process.send_signal(signal.SIGHUP)
        lines = iter(endpoint.process.stdout.readline, "")
        assert any(line.startswith("serve: updated") for line in lines)
        wait_until(lambda: not old & {one.pid for one in replicas(endpoint)})
        load.go_on()

    assert set(load.statuses) == {200}, load.statuses
    assert load.broken == []
    before, after = load.fingerprints[0], load.fingerprints[-1]
    assert before != after
    assert set(load.fingerprints) == {before, after}
    assert set(load.fingerprints[-50:]) == {after}


@pytest.mark.long
def test_an_update_that_fails_leaves_the_model_of_before_to_every_replica(endpoint):
    """First there is no model, as while a run is trained again; then one that cannot be loaded."""
    load = Load(endpoint, clients=4, pause_s=0.1)
    weights = endpoint.model / "model.safetensors"
    lines = iter(endpoint.process.stdout.readline, "")

    def update() -> str:
        endpoint.process.send_signal(signal.SIGHUP)
        return next(line for line in lines if line.startswith(("serve: updated", "serve: the update failed")))

    with load.running():
        shutil.rmtree(endpoint.model)
        missing = update()
        write_model(endpoint.model, seed=10)
        weights.write_bytes(weights.read_bytes()[:100])
        broken = update()
        load.go_on()
        first = replicas(endpoint)[0]
        first.kill()
        wait_until(lambda: len([one for one in replicas(endpoint) if one.pid != first.pid]) >= REPLICAS)
        load.go_on(200)
        shutil.rmtree(endpoint.model)
        write_model(endpoint.model, seed=11)
        good = update()
        load.go_on()

    assert "the model of before goes on" in missing
    assert "the model of before goes on" in broken
    assert good.startswith("serve: updated")
    assert load.failed <= 4, (load.statuses, load.broken)  # at most what the killed replica held
    assert len(set(load.fingerprints)) == 2, "that of before, and the good one"


def test_a_replica_that_is_killed_leaves_no_request_without_an_answer(endpoint):
    first = replicas(endpoint)
    assert len(first) == REPLICAS
    load = Load(endpoint, clients=8, pause_s=0.02)
    with load.running():
        os.kill(first[0].pid, signal.SIGKILL)
        wait_until(lambda: len([one for one in replicas(endpoint) if one.pid != first[0].pid]) >= REPLICAS)
        load.go_on()

    assert load.failed <= 8, (load.statuses, load.broken)  # at most what the replica held
    assert load.broken == [], "each had an answer"


def test_what_is_too_much_is_refused_quickly_and_the_endpoint_recovers(endpoint):
    url = f"{endpoint.url}/v1/embeddings"

    async def ask(http, number):
        started = time.perf_counter()
        body = {"model": "tiny", "input": [f"tree {number} {n} " * 12 for n in range(64)], "truncate": True}
        async with http.post(url, json=body) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Retry-After"), time.perf_counter() - started

    async def flood():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=AUTHORIZED, connector=connector) as http:
            found = await asyncio.gather(*(ask(http, number) for number in range(400)))
            await asyncio.sleep(2)
            return found, await ask(http, 1000)

    found, (status, _, seconds) = asyncio.run(flood())

    statuses = Counter(one[0] for one in found)
    assert set(statuses) <= ANSWERED, statuses
    assert statuses[200] > 0
    assert statuses[429] > 0
    assert all(int(after) >= 1 for code, after, _ in found if code == 429)
    assert status == 200
    assert seconds < max(took for *_, took in found), "it does not wait behind what is refused"


def test_an_endpoint_that_is_stopped_under_load_answers_what_it_has_and_takes_no_more(endpoint):
    load = Load(endpoint, clients=8)
    with load.running():
        endpoint.process.send_signal(signal.SIGTERM)
        endpoint.process.wait(PATIENCE_S)

    assert load.statuses[200] > 0
    assert set(load.statuses) <= ANSWERED, load.statuses
    assert load.broken, "nobody listens any more"
