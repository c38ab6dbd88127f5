"""The playground with an endpoint that knows three documents."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

TEXTS = [
    "Kettle > Reset\n\nHold the button.",
    "Radio\n\nTurn the knob.",
    "Kettle > Lamp\n\nIt is red when it is hot.",
]
RANKED = {
    "vectors": [(0, 0.7), (2, 0.6), (1, 0.1)],
    "words": [(2, 7.3), (0, 4.1)],
    "both": [(0, 0.033), (2, 0.032)],
}
MODEL = {
    "id": "m",
    "dimensions": [8],
    "max_tokens": 16,
    "precision": "float32",
    "cosine_to_float32": None,
    "indexed": 3,
}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        if self.path == "/":
            self._answer(resources.files("qzhou.serving").joinpath("playground.html").read_bytes(), "text/html")
        else:
            self._answer(json.dumps({"data": [MODEL]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [{"id": f"d{n}", "text": TEXTS[n], "score": score} for n, score in RANKED[asked["by"]]]
        self._answer(json.dumps({"results": found}).encode())

    def _answer(self, content, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def playground() -> Iterator[str]:
    """Its address, for the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
