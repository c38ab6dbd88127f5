"""Hosts that are really several: network namespaces on one machine, each with an address, a link and a node of Ray.

    bridge 10.x.y.1 --- veth --- namespace of a host, 10.x.y.2, 10.x.y.3, ...

A link can be cut, joined again and made slow. It needs the rights of root and iproute2.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.clusters import QUIET, ray_node

GCS_PORT = 6379  # each host has its own
# a death is seen after some 10 s; a node that was away for 20 s comes back as a new one
QUICKLY = '{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000}'


@functools.cache
def why_not() -> str:
    """Why this machine cannot have such hosts; empty if it can."""
    if not (shutil.which("ip") and shutil.which("tc")):
        return "iproute2 is not installed"
    name = f"qz{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@functools.cache
def why_not_slow() -> str:
    """Why this machine cannot have slow links; empty if it can."""
    if why_not():
        return why_not()
    name = f"qz{os.getpid()}slow"
    _ip("link", "add", name, "type", "bridge")
    made = subprocess.run(
        ["tc", "qdisc", "add", "dev", name, "root", "netem", "delay", "1ms"], capture_output=True, text=True
    )
    _ip("link", "delete", name)
    return f"its kernel has no netem: {made.stderr.strip()}" if made.returncode else ""


@dataclass
class Hosts:
    """Some hosts by name; the first one is the head.

    Attributes:
        folder: For logs.
        cpus: Host -> CPUs of its node.
    """

    folder: Path
    cpus: dict[str, int]
    _nodes: dict[str, contextlib.ExitStack] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Begins the names of everything that is made."""
        return f"qz{os.getpid()}"

    @property
    def head(self) -> str:
        return next(iter(self.cpus))

    @property
    def environment(self) -> dict[str, str]:
        """Of a driver, which is started by the words of :meth:`inside`."""
        return {**QUIET, "RAY_ADDRESS": f"{self.address(self.head)}:{GCS_PORT}"}

    def address(self, host: str) -> str:
        return f"{self._net}.{[*self.cpus].index(host) + 2}"

    def inside(self, host: str) -> list[str]:
        """The words before a command that runs on a host."""
        return ["ip", "netns", "exec", self._name(host)]

    def cut(self, host: str) -> None:
        """No packet leaves the host or reaches it."""
        _ip("link", "set", self._link(host), "down")

    def join(self, host: str) -> None:
        """Bring back a link that was cut; Ray may have given up the node by then."""
        _ip("link", "set", self._link(host), "up")

    def slow(self, host: str, *words: str) -> None:
        """Make a link slow: words of ``tc qdisc``'s netem, ``delay 50ms loss 1%`` say."""
        subprocess.run(["tc", "qdisc", "replace", "dev", self._link(host), "root", "netem", *words], check=True)

    def start(self, host: str) -> None:
        """Start a node of Ray there, in place of one that may have been there."""
        self.stop(host)
        words: list[object] = ["--num-cpus", self.cpus[host], "--node-ip-address", self.address(host)]
        if host == self.head:
            words += ["--head", "--port", GCS_PORT, "--include-dashboard", "true", "--dashboard-host", "0.0.0.0"]
            words += ["--system-config", QUICKLY]
        else:
            words += ["--address", f"{self.address(self.head)}:{GCS_PORT}"]
        self._nodes[host] = contextlib.ExitStack()
        log = self.folder / f"{host}.log"
        self._nodes[host].enter_context(ray_node(*words, log=log, inside=self.inside(host)))

    def stop(self, host: str) -> None:
        """End a host's node, if there is one."""
        if host in self._nodes:
            self._nodes.pop(host).close()

    @property
    def _net(self) -> str:
        return f"10.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250}"

    def _name(self, host: str) -> str:
        return f"{self.name}-{host}"

    def _link(self, host: str) -> str:
        return f"{self.name}{host[:4]}"


@contextlib.contextmanager
def hosts(folder: Path, **cpus: int) -> Iterator[Hosts]:
    """Some hosts for the block, with a node of Ray on each."""
    made = Hosts(folder, cpus)
    with contextlib.ExitStack() as stack:
        _ip("link", "add", made.name, "type", "bridge")
        stack.callback(_ip, "link", "delete", made.name)
        _ip("address", "add", f"{made._net}.1/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        for host in cpus:
            name, link = made._name(host), made._link(host)
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            # with its host it would go some time later, and its name be taken until then
            stack.callback(_ip, "link", "delete", link)
            _ip("link", "set", link, "master", made.name, "up")
            within = ("netns", "exec", name, "ip")
            _ip(*within, "address", "add", f"{made.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip(*within, "link", "set", device, "up")
            _ip(*within, "route", "add", "default", "via", f"{made._net}.1")
        for host in cpus:
            stack.callback(made.stop, host)
            made.start(host)
        yield made


def driver(made: Hosts, words: Sequence[object], **environment: str) -> subprocess.Popen[str]:
    """A Python process on the head's host, as a job is."""
    command = [*made.inside(made.head), sys.executable, *map(str, words)]
    own = os.environ | made.environment | environment
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
