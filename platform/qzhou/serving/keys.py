"""API keys: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from qzhou.errors import SetupError
from qzhou.serving.errors import RequestError

NOBODY = "-"  # who asks where no key is asked for


class ApiKeys:
    """The keys that are admitted; with none, everyone is. Holds digests, so that no log can show a key."""

    def __init__(self, *keys: str) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def found(cls, variable: str, file: str, environment: Mapping[str, str]) -> ApiKeys:
        """The comma-separated keys in an environment variable, and a file's, one a line.

        Args:
            variable: Unset, it gives none.
            file: A path; empty, it gives none. Lines that begin with # are comments.
            environment: Variables and their values.

        Raises:
            SetupError: The variable or the file is given and holds no key: an open endpoint was not wanted.
        """
        keys = []
        if variable in environment:
            given = environment[variable].split(",")
            keys += _some(given, f"{variable} is set but", "comma-separated keys, or unset it")
        if file:
            keys += _some(_lines(file), f"{file} (serving.api_keys_file)", "a key a line, or leave the setting out")
        return cls(*keys)

    @property
    def asked(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self._digests)

    def admit(self, authorization: str | None) -> str:
        """Let the bearer of a key pass.

        Args:
            authorization: The value of the header of that name, ``Bearer <key>``.

        Returns: A short name of the key that gives nothing away of it, for limits and logs.

        Raises:
            RequestError: 401; the key is missing or wrong.
        """
        if not self.asked:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in constant time: how long a refusal takes tells nothing.
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            problem = "Incorrect API key provided." if authorization else "You didn't provide an API key."
            problem += " Send it in the header 'Authorization: Bearer <key>'."
            raise RequestError(problem, status=401, code="invalid_api_key")
        return hashlib.sha256(given).hexdigest()[:8]


def _some(candidates: list[str], where: str, wanted: str) -> list[str]:
    keys = [key.strip() for key in candidates if key.strip()]
    if not keys:
        raise SetupError(f"{where} holds no API key. Give it {wanted} to ask for none.")
    if not all(key.isascii() and key.isprintable() for key in keys):
        problem = "holds an API key with other characters than ASCII's, which no HTTP header can carry."
        raise SetupError(f"{where} {problem}")
    return keys


def _lines(file: str) -> list[str]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} (serving.api_keys_file) cannot be read: {error}") from None
    return [line for line in lines if not line.lstrip().startswith("#")]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
