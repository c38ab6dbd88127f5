"""Ports for servers on this machine."""

import random
import socket

# Below what the system gives to connections, above what Ray gives to its workers and beside Serve's replicas:
# what is free when it is chosen is still free when the server comes.
CHOICE = range(20_000, 30_000)
RANDOM = random.SystemRandom()  # libraries seed the other one


def free_port() -> int:
    """A port that nothing listens at now."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("", RANDOM.choice(CHOICE)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
