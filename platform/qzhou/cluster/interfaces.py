"""Which network interface processes of several hosts talk over."""

import os
import socket

import psutil
import ray.util

VARIABLE = "GLOO_SOCKET_IFNAME"


def talk_over_own_address() -> None:
    """Let gloo, which joins ranks on CPUs, take the interface whose address Ray knows this host by.

    By itself it takes that of the host's name. On many Linux systems the name stands for
    127.0.1.1, where no other host can reach it. For ``worker_process_setup_hook``.
    """
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address; None if none has it."""
    families = (socket.AF_INET, socket.AF_INET6)
    for name, own in psutil.net_if_addrs().items():
        # a link-local address of version 6 carries the interface's name
        if any(one.family in families and one.address.split("%")[0] == address for one in own):
            return str(name)
    return None
