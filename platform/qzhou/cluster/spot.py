"""Tells Ray that the cloud is about to take this node, so that work moves on and training writes a checkpoint at once.

python -m qzhou.cluster.spot --provider aws|gcp [--node-id HEX] [--address HOST:PORT]

Ray's own autoscaler does not watch for such notices. Run this beside Ray on every spot node
(cluster.yaml does); it ends once it has told Ray. Sources of the notices: AWS, "Spot
Instance interruption notices" (two minutes ahead); Google Cloud, "Handle preemption"
(thirty seconds ahead).
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from qzhou.telemetry.events import log_event

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
TIMEOUT_S = 2.0
GCP_SECONDS = 30


def aws_seconds(metadata: str = AWS) -> int | None:
    """Seconds until AWS takes this instance; None while there is no notice."""
    token = _answer(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    notice = _answer(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if notice is None:
        return None
    at = datetime.fromisoformat(json.loads(notice)["time"])
    return max(0, int((at - datetime.now(UTC)).total_seconds()))


def gcp_seconds(metadata: str = GCP) -> int | None:
    """Seconds until Google Cloud takes this instance; None while there is no notice."""
    said = _answer(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_SECONDS if said == "TRUE" else None


def _answer(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What the metadata server says; None for 404, and where it does not answer in time."""
    try:
        request = urllib.request.Request(url, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as said:
            return str(said.read().decode().strip())
    except OSError as error:
        if not isinstance(error, urllib.error.HTTPError) or error.code != 404:
            log_event(f"spot: {url}: {error}", "no_answer", level="warning", stream=sys.stderr)
        return None


PROVIDERS: dict[str, Callable[[str], int | None]] = {"aws": aws_seconds, "gcp": gcp_seconds}


def drain_command(seconds: int, node: str = "", address: str = "") -> list[str]:
    """Ray's command that lets a node finish and takes no more work for it."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the cloud takes this spot node"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    if node:
        command += ["--node-id", node]
    if address:
        command += ["--address", address]
    return command


def watch(seconds_left: Callable[[], int | None], drain: Callable[[int], None], every_s: float) -> None:
    """Ask until there is a notice, then drain the node."""
    while (seconds := seconds_left()) is None:
        time.sleep(every_s)
    log_event(f"spot: this node goes in {seconds} s; Ray is told", "node_leaves", level="warning", seconds=seconds)
    drain(seconds)


def main(words: Sequence[str] | None = None) -> None:
    """Watch for the provider's notice until there is one, then drain the node."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--provider", choices=sorted(PROVIDERS), required=True)
    parser.add_argument("--node-id", default="", help="of the node to drain; default: this one")
    parser.add_argument("--address", default="", help="of the cluster's GCS; default: the one this node belongs to")
    parser.add_argument("--metadata", default="", help="base URL of the metadata server; default: the provider's")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two questions")
    asked = parser.parse_args(words)
    metadata = asked.metadata or {"aws": AWS, "gcp": GCP}[asked.provider]
    watch(
        lambda: PROVIDERS[asked.provider](metadata),
        lambda seconds: sys.exit(subprocess.run(drain_command(seconds, asked.node_id, asked.address)).returncode),
        asked.every_s,
    )


if __name__ == "__main__":
    main()
