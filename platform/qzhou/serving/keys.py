"""API keys: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from qzhou.errors import SetupError
from qzhou.serving.errors import RequestError


class ApiKeys:
    """The keys that are admitted; with none, everyone is. Holds digests, so that no log can show a key."""

    def __init__(self, *keys: str) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def from_environment(cls, variable: str, environment: Mapping[str, str]) -> ApiKeys:
        """The comma-separated keys in an environment variable; an unset variable asks for none.

        Raises:
            SetupError: The variable is set and holds no key: whoever set it did not want an open endpoint.
        """
        if variable not in environment:
            return cls()
        keys = [key.strip() for key in environment[variable].split(",") if key.strip()]
        if not keys:
            raise SetupError(
                f"{variable} is set but holds no API key. Give it comma-separated keys, or unset it to ask for none."
            )
        return cls(*keys)

    @property
    def asked(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self._digests)

    def admit(self, authorization: str | None) -> None:
        """Let the bearer of a key pass.

        Args:
            authorization: The value of the header of that name, ``Bearer <key>``.

        Raises:
            RequestError: 401; the key is missing or wrong.
        """
        if not self.asked:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in constant time: how long a refusal takes tells nothing.
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            problem = "Incorrect API key provided." if authorization else "You didn't provide an API key."
            raise RequestError(
                f"{problem} Send it in the header 'Authorization: Bearer <key>'.",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
