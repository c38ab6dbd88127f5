"""An OpenAI-compatible endpoint made of rules, so that the whole platform runs where there is no LLM.

It is no language model. It speaks the protocol over real HTTP on the loopback address, so that the
client, the journal and the parsing are exercised as with a real endpoint, and it answers as
``builtin-rules``, whatever model was asked for, so that no record passes for an LLM's. Its texts are
good enough to try the pipeline and to train on in small doses; for real data name a real endpoint.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qzhou.synthesis.rules import apply_rules

MODEL = "builtin-rules"


@contextmanager
def builtin_endpoint() -> Iterator[str]:
    """Serve the rules on a free port for the length of the block; gives the base URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(request: Any) -> dict[str, Any]:
    """The body that answers a chat request.

    Raises:
        ValueError: It is no chat whose last message is a JSON object with a known technique.
    """
    try:
        messages = request["messages"]
        fields = json.loads(messages[-1]["content"])
        content = json.dumps(apply_rules(fields), ensure_ascii=False)
        prompt_tokens = sum(len(message["content"].split()) for message in messages)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a request of the synthesis prompts: {error!r}") from None
    completion_tokens = len(content.split())
    return {
        "id": "chatcmpl-builtin",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {  # words: rules have no tokenizer
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the client connects with its full concurrency at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "qzhou"}]
            self._reply(200, {"object": "list", "data": models})
        else:
            self._refuse(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"no such path: {self.path}")
            return
        try:
            self._reply(200, completion(json.loads(body)))
        except ValueError as error:
            self._refuse(400, str(error))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the client reports what matters."""

    def _refuse(self, status: int, message: str) -> None:
        self._reply(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
