"""Requests that a run sends to an object store: by stage, from the quickstart with its run folder on S3.

python -m bench.object_store [--old PYTHONPATH] [--command transform]

S3 is moto's server in this process; a request counts for the folder of the run that it is about. ``--old`` runs the
package of another checkout as well, whose numbers stand beside ours. Training is cut to a few steps, since its
requests are checkpoints and no steps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from rich.console import Console
from werkzeug.serving import make_server

from bench.report import parsed, table, write

STAGES = ("transform", "synthesis", "mining", "training", "model", "evaluation")
FEW_STEPS = ("stage1.steps", "stage2.steps", "stage1.warmup_steps", "stage2.warmup_steps", "save_every_steps")
KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


class Counted:
    """A WSGI application that counts its requests by the folder of the run."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self.by_folder = application, Counter[str]()

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        place = environment["PATH_INFO"] + "?" + environment.get("QUERY_STRING", "")
        known = (stage for stage in STAGES if f"/{stage}" in place.replace("%2F", "/"))
        self.by_folder[next(known, "others")] += 1
        return self._application(environment, start_response)


@contextmanager
def store() -> Iterator[tuple[str, Counted]]:
    application = Counted(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", application
    server.shutdown()


def counted(path: str, arguments: list[str]) -> Counter[str]:
    """Requests of a command of the package at ``path``; empty: of the installed one."""
    with store() as (url, application):
        requests.put(f"{url}/bucket", timeout=10).raise_for_status()
        environment = os.environ | KEYS | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
        environment |= {"PYTHONPATH": path} if path else {}
        command = [sys.executable, "-m", "qzhou.cli", *arguments, "--run.storage", "s3://bucket/runs"]
        subprocess.run(command, env=environment, check=True)
        return application.by_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", default="", help="PYTHONPATH of another checkout: OLD/platform")
    parser.add_argument("--command", default="run", help="of qzhou, instead of the whole run")
    asked = parsed(parser, {})
    arguments = [asked.command, "recipes/quickstart.toml"]
    arguments += [word for name in FEW_STEPS for word in (f"--training.{name}", "2")]
    found = {"ours": counted("", arguments)}
    if asked.old:
        found["old"] = counted(asked.old, arguments)
    rows = [
        {"case": stage, **{who: by_folder[stage] for who, by_folder in found.items()}}
        for stage in (*STAGES, "others")
    ]
    rows.append({"case": "all", **{who: by_folder.total() for who, by_folder in found.items()}})
    Console(width=100).print(table("Requests to the object store", rows))
    write(asked.results, "object_store.json", {"rows": rows})


if __name__ == "__main__":
    main()
