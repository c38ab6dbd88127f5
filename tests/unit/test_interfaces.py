"""The interface that ranks on CPUs talk over."""

import socket
from collections import namedtuple

import psutil
import pytest

from qzhou.cluster.interfaces import interface_of

Address = namedtuple("Address", "family address")
OF_THE_MACHINE = {
    "lo": [Address(socket.AF_INET, "127.0.0.1")],
    "eth0": [Address(psutil.AF_LINK, "0a:00:00:00:00:01"), Address(socket.AF_INET, "10.0.0.4")],
    "eth1": [Address(socket.AF_INET6, "fe80::1%eth1"), Address(socket.AF_INET, "192.168.1.4")],
}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.4", "eth0"),
        ("192.168.1.4", "eth1"),
        ("fe80::1", "eth1"),
        ("127.0.0.1", "lo"),
        ("0a:00:00:00:00:01", None),  # of the hardware
        ("10.0.0.5", None),  # of another host
    ],
)
def test_it_is_the_one_that_has_the_address(monkeypatch, address, name):
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: OF_THE_MACHINE)

    assert interface_of(address) == name
