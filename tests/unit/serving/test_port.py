import socket

import pytest

from qzhou.cluster.ports import free_port
from qzhou.errors import SetupError
from qzhou.serving.port import check_port, open_port


def test_a_taken_port_is_named_with_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 is taken.*--serving.port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(SetupError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        check_port("192.0.2.1", 8000)


def test_a_port_beside_the_endpoint_gives_way_to_what_has_it():
    wanted = free_port()
    assert open_port(wanted) == wanted
    with socket.create_server(("", wanted)):
        assert open_port(wanted) != wanted
    assert 0 < open_port(65_535 + 404) < 65_536
