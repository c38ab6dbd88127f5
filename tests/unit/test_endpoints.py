"""A key reaches the header and nothing else, and a proxy is not asked for this machine."""

import pytest

from qzhou.config.api_keys import Keys, is_loopback
from qzhou.errors import SetupError

KEY = "sk-abcdef-0123456789"


@pytest.mark.parametrize(
    "said",
    [
        f"Bearer {KEY} is wrong",
        f"({KEY})",
        "Incorrect API key provided: sk-abc*****6789. Find yours",
        "ends in ...456789",
    ],
)
def test_no_quote_of_a_key_is_left(said):
    found = Keys.of(["KEY"], {"KEY": f" {KEY}\n"}).redacted(said)

    assert "***" in found
    assert not any(part in found for part in (KEY, KEY[:6], KEY[-6:]))


def test_a_short_key_is_redacted_too_and_no_key_hides_nothing():
    assert Keys.of(["KEY"], {"KEY": "abc12"}).redacted("wrong: abc12!") == "wrong: ***"
    assert Keys.of(["KEY"], {}).redacted("none of these") == "none of these"
    assert Keys.of(["KEY"], {}).value("KEY") == "none"


@pytest.mark.parametrize("key", ["sk-ü", "sk-a b", "sk-a\nb", "sk-\x00"])
def test_a_key_that_no_header_can_carry_is_refused_by_its_variables_name(key):
    with pytest.raises(SetupError, match="the key in MY_KEY holds") as caught:
        Keys.of(["MY_KEY"], {"MY_KEY": key})

    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/v1", "http://LOCALHOST/v1", "https://[::1]:8000/v1#model"])
def test_this_machine_is_known_by_each_of_its_names(url):
    assert is_loopback(url)


@pytest.mark.parametrize("url", ["http://localhost.example.com/v1", "http://10.0.0.1/v1", "https://x/127.0.0.1"])
def test_other_machines_are_not_taken_for_this_one(url):
    assert not is_loopback(url)
