"""Ports for servers of the tests."""

import random
import socket

# Below what the system gives to connections, above what Ray gives to its workers and beside Serve's replicas:
# what is free when it is chosen is still free when the server comes.
CHOICE = range(20_000, 30_000)
RANDOM = random.SystemRandom()  # libraries seed the other one, in each process of the tests alike


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("", RANDOM.choice(CHOICE)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
