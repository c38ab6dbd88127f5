import hashlib

import pytest

from qzhou.errors import SetupError
from qzhou.serving.errors import RequestError
from qzhou.serving.keys import ApiKey, ApiKeys


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
        ApiKeys(["one", "two"]).admit(header)

    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_variable_that_is_set_but_empty_does_not_open_the_endpoint():
    with pytest.raises(SetupError, match="KEYS is set but holds no API key"):
        ApiKeys.found("KEYS", "", {"KEYS": " , "})


def test_a_key_does_not_show():
    keys = ApiKeys(["secret-key"])

    assert "secret-key" not in repr(keys) + repr(vars(keys))


def test_a_key_that_no_header_can_carry_is_refused_at_the_start():
    with pytest.raises(SetupError, match="other characters than ASCII's"):
        ApiKeys.found("KEYS", "", {"KEYS": "good,\u043a\u043b\u044e\u0447"})


def written(folder, content):
    file = folder / "keys.toml"
    file.write_text(content, "utf-8")
    return file


def test_keys_in_a_file_have_names_and_limits_and_may_be_digests(tmp_path):
    digest = hashlib.sha256(b"second").hexdigest()
    file = written(
        tmp_path, f'[search-team]\nkey = "first"\ntokens_per_minute = 200_000\n[batch]\nsha256 = "{digest}"\n'
    )
    keys = ApiKeys.found("KEYS", str(file), {"KEYS": "third"})

    assert keys.admit("Bearer first") == ApiKey("search-team", 200_000)
    assert keys.admit("Bearer second") == ApiKey("batch")
    third = keys.admit("Bearer third")
    assert third.tokens_per_minute is None
    assert "third" not in third.name
    for wrong in (digest, "search-team"):
        with pytest.raises(RequestError):
            keys.admit(f"Bearer {wrong}")


WRONG = {
    "empty": ("", "holds no API key"),
    "comments alone": ("# nothing\n", "holds no API key"),
    "a key a line": ("sk-secret\n", "is not TOML.*A key is a table"),
    "no table": ('key = "sk-secret"\n', r"\[key\]: is no table\. A key is a table \[name\]"),
    "several tables": ('[[a]]\nkey = "sk-secret"\n', r"\[a\]: is no table"),
    "a table inside": ('[team.search]\nkey = "sk-secret"\n', r"\[team\] search: is no field.*\[\"a\.name\"\]"),
    "the digest of nothing": (f'[a]\nsha256 = "{hashlib.sha256(b"").hexdigest()}"\n', "of an empty text"),
    "no key": ("[a]\ntokens_per_minute = 5\n", r"\[a\]: give either key, or sha256"),
    "both": (f'[a]\nkey = "sk-secret"\nsha256 = "{"0" * 64}"\n', r"\[a\]: give either key, or sha256"),
    "an empty key": ('[a]\nkey = ""\n', r"\[a\] key: .*at least 1 character"),
    "half a digest": ('[a]\nsha256 = "abc"\n', r"\[a\] sha256: "),
    "another field": (
        '[a]\nkey = "sk-secret"\ntoken_per_minute = 1\n',
        r"\[a\] token_per_minute: is no field of a key",
    ),
    "no tokens": ('[a]\nkey = "sk-secret"\ntokens_per_minute = 0\n', r"\[a\] tokens_per_minute: "),
    "text for a number": ('[a]\nkey = "sk-secret"\ntokens_per_minute = "5"\n', r"\[a\] tokens_per_minute: "),
    "the same key twice": (
        f'[a]\nkey = "sk-secret"\n[b]\nkey = "o"\n[c]\nsha256 = "{hashlib.sha256(b"sk-secret").hexdigest()}"\n',
        r"\[a\], \[c\] hold the same key",
    ),
    "a name with blanks": ('["a team"]\nkey = "sk-secret"\n', r"\[a team\]"),
    "letters of others": ('[a]\nkey = "\u043a\u043b\u044e\u0447"\n', "other characters than ASCII's"),
    "blanks around": ('[a]\nkey = " sk-secret"\n', "blanks around"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_not_right_does_not_start_and_shows_no_key(tmp_path, case):
    content, problem = WRONG[case]

    with pytest.raises(SetupError, match=problem) as caught:
        ApiKeys.found("KEYS", str(written(tmp_path, content)), {})
    assert "secret" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_not_there_does_not_open_the_endpoint(tmp_path):
    with pytest.raises(SetupError, match="cannot be read"):
        ApiKeys.found("KEYS", str(tmp_path / "missing"), {})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admitted(keys, *given):
    found = []
    for key in given:
        try:
            found.append(keys.admit(f"Bearer {key}").name)
        except RequestError:
            found.append(None)
    return found


def test_a_file_that_changes_is_read_again_and_one_that_is_wrong_changes_nothing(tmp_path, capsys):
    file, clock = written(tmp_path, '[a]\nkey = "one"\n'), Clock()
    keys = ApiKeys(["always"], str(file), clock)

    def after(content):
        if content is None:
            file.unlink()
        else:
            written(tmp_path, content)
        clock.now += 10
        return admitted(keys, "one", "two", "always")[:2]

    assert admitted(keys, "one", "two") == ["a", None]
    assert after('[a]\nkey = "one"\n[b]\nkey = "two"\n') == ["a", "b"]
    assert after('[b]\nkey = "two"\n') == [None, "b"]  # it was taken away
    capsys.readouterr()
    assert after("[b\n") == [None, "b"]
    assert "the keys stay as they were" in capsys.readouterr().out
    assert after("") == [None, "b"]
    assert after(None) == [None, "b"]
    capsys.readouterr()
    clock.now += 10
    assert admitted(keys, "two", "always")[0] == "b"
    assert not capsys.readouterr().out  # it was said
    assert after('[a]\nkey = "one"\n') == ["a", None]


def test_a_file_that_could_not_be_read_is_tried_again_and_said_once(tmp_path, capsys):
    """As after `chmod`, or while NFS was away."""
    file, clock = written(tmp_path, '[a]\nkey = "one"\n'), Clock()
    keys = ApiKeys([], str(file), clock)
    other = tmp_path / "other.toml"
    other.write_text('[b]\nkey = "two"\n', "utf-8")
    file.unlink()
    file.mkdir()  # which nobody can read as a file
    for _ in range(3):
        clock.now += 10
        assert admitted(keys, "one", "two") == ["a", None]
    assert capsys.readouterr().out.count("cannot be read") == 1
    file.rmdir()
    other.rename(file)
    clock.now += 10
    assert admitted(keys, "one", "two") == [None, "b"]


def test_a_mark_of_byte_order_is_no_part_of_the_file(tmp_path):
    keys = ApiKeys.found("KEYS", str(written(tmp_path, '\ufeff[a]\nkey = "one"\n')), {})

    assert admitted(keys, "one") == ["a"]


def test_the_file_is_not_looked_at_for_every_request(tmp_path):
    file, clock = written(tmp_path, '[a]\nkey = "one"\n'), Clock()
    keys = ApiKeys([], str(file), clock)
    file.unlink()
    written(tmp_path, '[b]\nkey = "two"\n')
    clock.now += 1

    assert admitted(keys, "one", "two") == ["a", None]
