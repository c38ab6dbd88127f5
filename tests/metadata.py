"""A cloud's metadata server, as it answers spot instances."""

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

TOKEN = "a-token-of-imdsv2"


class Metadata:
    """What it says: nothing until ``notice`` is set.

    Attributes:
        seconds: Ahead of the end, on AWS.
    """

    def __init__(self) -> None:
        self.notice, self.asked, self.seconds = False, 0, 100

    def answer(self, method: str, path: str, headers) -> tuple[int, str]:
        self.asked += 1
        if path == "/computeMetadata/v1/instance/preempted":
            return (
                (200, "TRUE" if self.notice else "FALSE") if headers["Metadata-Flavor"] == "Google" else (403, "")
            )
        if (method, path) == ("PUT", "/latest/api/token"):
            return 200, TOKEN
        if headers["X-aws-ec2-metadata-token"] != TOKEN:
            return 401, ""
        at = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return (200, f'{{"action": "terminate", "time": "{at:%Y-%m-%dT%H:%M:%SZ}"}}') if self.notice else (404, "")


@contextlib.contextmanager
def metadata_server() -> Iterator[tuple[Metadata, str]]:
    """The server and its base URL."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = metadata.answer(self.command, self.path, self.headers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said.encode())

        do_PUT = do_GET

        def log_message(self, *_) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield metadata, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
