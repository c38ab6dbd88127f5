"""By which names an endpoint without keys may be called: a page in a browser may let its own name mean this machine."""

import pytest
from fastapi.testclient import TestClient

from qzhou.config.serving import ServingSection
from qzhou.serving.keys import ApiKeys
from qzhou.serving.limits import TokenRate
from qzhou.serving.observing import EndpointMetrics
from qzhou.serving.web import Endpoint, web_app


def asked(name, keys=None, path="/v1/models", **settings):
    async def ready():
        return None

    endpoint = Endpoint({}, ServingSection(**settings), keys or ApiKeys(), TokenRate(None), ready)
    client = TestClient(web_app(endpoint, EndpointMetrics({}, "r1"), None))
    return client.get(path, headers={"host": name, "authorization": "Bearer k"})


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("127.0.0.1:8000", {}, 200),
        ("localhost", {}, 200),
        ("LOCALHOST:1", {}, 200),
        ("[::1]:8000", {}, 200),
        ("evil.example:8000", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("", {}, 403),
        ("evil.example", {"host": "0.0.0.0"}, 200),  # who listens to all has a network that knows
        ("models.intern", {"allowed_hosts": ("models.intern",)}, 200),
        ("localhost", {"allowed_hosts": ("models.intern",)}, 403),
        ("evil.example", {"host": "0.0.0.0", "allowed_hosts": ("models.intern",)}, 403),
    ],
)
def test_a_name_that_is_not_known_is_refused_where_no_key_is_asked(host, settings, status):
    answer = asked(host, **settings)

    assert answer.status_code == status
    if status == 403:
        error = answer.json()["error"]
        assert error["code"] == "unknown_host"
        assert "serving.allowed_hosts" in error["message"]


def test_a_key_is_enough_and_probes_need_neither():
    assert asked("evil.example", ApiKeys(["k"])).status_code == 200
    assert asked("10.0.0.7:8000", path="/health").status_code == 200
    assert asked("10.0.0.7:8000", path="/metrics").status_code == 200
