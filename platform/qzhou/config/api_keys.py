"""Addresses and keys of endpoints. Keys are read from the environment, sent in headers, and never shown or logged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic import SecretStr

from qzhou.errors import SetupError

NO_KEY = "none"  # servers of one's own often ask for none
# what endpoints quote of a key, from its start or its end, to say which one they mean
QUOTED_CHARS = 6
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def is_loopback(url: str) -> bool:
    """Whether an endpoint is on this machine, where no proxy leads."""
    return urlsplit(url).hostname in LOOPBACK


@dataclass(frozen=True, slots=True)
class Keys:
    """Variable of the environment -> the key that it holds."""

    found: Mapping[str, SecretStr] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str], environment: Mapping[str, str] = os.environ) -> Keys:
        """Read some variables.

        Raises:
            SetupError: A key holds what no header can carry; names only the variable.
        """
        found = {}
        for name in names:
            key = environment.get(name, "").strip() or NO_KEY
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise SetupError(
                    f"the key in {name} holds a blank, a line break or a letter beyond ASCII, and no HTTP header can "
                    f"carry that; set it again: export {name}=..."
                )
            found[name] = SecretStr(key)
        return cls(found)

    def value(self, name: str) -> str:
        """The key that a variable holds."""
        return self.found[name].get_secret_value()

    def redacted(self, text: str) -> str:
        """A text in which no key is left: neither the whole of one nor a start or an end that an endpoint quotes."""
        for secret in self.found.values():
            key = secret.get_secret_value()
            if key == NO_KEY:
                continue
            ends = {key[:QUOTED_CHARS], key[-QUOTED_CHARS:]} if len(key) >= 2 * QUOTED_CHARS else {key}
            for end in ends:
                text = re.sub(rf"[^\s'\",(){{}}]*{re.escape(end)}[^\s'\",(){{}}]*", "***", text)
        return text
