"""Whether the endpoint can listen where it is told to."""

import errno
import socket

from qzhou.errors import SetupError


def check_port(host: str, port: int) -> None:
    """Make sure that a server can listen; Ray's proxy would report failure only in a log.

    Raises:
        SetupError: It cannot; says why and what to choose instead.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # a connection in TIME_WAIT is no obstacle
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        problem = (
            f"cannot listen on {host}:{port}: {error.strerror}. Choose with --serving.host and --serving.port."
        )
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} on {host} is taken by another process. Choose another one with --serving.port."
        raise SetupError(problem) from None


def open_port(wanted: int) -> int:
    """``wanted`` where a server could listen on all interfaces, else another free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted))
        except (OSError, OverflowError):  # taken, or beyond the last port
            probe.bind(("", 0))
        return int(probe.getsockname()[1])
