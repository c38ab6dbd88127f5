import pytest

from qzhou.errors import SetupError
from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKeys


def test_without_keys_everyone_is_admitted():
    keys = ApiKeys.found("KEYS", "", {})

    keys.admit(None)
    keys.admit("Bearer anything")
    assert not keys.asked


@pytest.mark.parametrize("header", ["Bearer one", "Bearer two", "bearer  two"])
def test_each_of_several_keys_is_admitted(header):
    ApiKeys.found("KEYS", "", {"KEYS": "one, two,"}).admit(header)


@pytest.mark.parametrize(
    "header", [None, "", "one", "Basic one", "Bearer", "Bearer ", "Bearer on", "Bearer one,two"]
)
def test_whoever_has_no_key_is_refused_with_401(header):
    with pytest.raises(RequestError) as caught:
        ApiKeys("one", "two").admit(header)

    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_variable_that_is_set_but_empty_does_not_open_the_endpoint():
    with pytest.raises(SetupError, match="KEYS is set but holds no API key"):
        ApiKeys.found("KEYS", "", {"KEYS": " , "})


def test_a_key_does_not_show():
    keys = ApiKeys("secret-key")

    assert "secret-key" not in repr(keys) + repr(vars(keys))


def test_a_key_that_no_header_can_carry_is_refused_at_the_start():
    with pytest.raises(SetupError, match="other characters than ASCII's"):
        ApiKeys.found("KEYS", "", {"KEYS": "good,\u043a\u043b\u044e\u0447"})


def test_keys_in_a_file_are_admitted_besides(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst\n\n second \n", "utf-8")
    keys = ApiKeys.found("KEYS", str(file), {"KEYS": "third"})

    names = {keys.admit(f"Bearer {key}") for key in ("first", "second", "third")}

    assert len(names) == 3
    assert not names & {"first", "second", "third"}
    with pytest.raises(RequestError):
        keys.admit("Bearer # of the team")


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_a_file_without_keys_does_not_open_the_endpoint(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content, "utf-8")

    with pytest.raises(SetupError, match="holds no API key"):
        ApiKeys.found("KEYS", str(file), {})
    with pytest.raises(SetupError, match="cannot be read"):
        ApiKeys.found("KEYS", str(tmp_path / "missing"), {})
