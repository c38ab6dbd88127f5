"""API keys: who may ask, and how much."""

from __future__ import annotations

import hashlib
import hmac
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from qzhou.errors import SetupError, first_line
from qzhou.serving.errors import RequestError
from qzhou.telemetry.events import log_event

FORM = (
    'A key is a table [name] with key = "..." or sha256 = "...", and tokens_per_minute if it has a limit of its own'
)
LOOK_AGAIN_S = 5.0  # after so long, the file of keys is looked at for changes


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who asks; nothing of the key itself.

    Attributes:
        name: For limits, logs and metrics.
        tokens_per_minute: Its own limit; None: that of all keys.
    """

    name: str
    tokens_per_minute: int | None = None


NOBODY = ApiKey("-")  # where no key is asked for


class _Entry(BaseModel):
    """A table of the file of keys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: Annotated[str, Field(min_length=1)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give either key, or sha256, the digest of one")
        return self


Name = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$")]
ENTRIES = TypeAdapter(dict[Name, _Entry])
EMPTY = hashlib.sha256(b"").digest()


class ApiKeys:
    """The keys that are admitted; with none, everyone is. Holds digests, so that no log can show a key.

    A file of keys is read again when it changes. One that is no longer right changes nothing, and says so in the log.

    Args:
        keys: As clients send them; each is named by the beginning of its digest's digest.
        file: A path of a file of keys; empty: none.
        clock: Seconds.

    Raises:
        SetupError: The file holds no keys, or cannot be read.
    """

    def __init__(
        self, keys: Sequence[str] = (), file: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        given = [_digest(key) for key in keys]
        self._given = {digest: ApiKey(hashlib.sha256(digest).hexdigest()[:8]) for digest in given}
        self._file, self._clock = file, clock
        self._looked, self._state, self._said = clock(), _state(file), ""
        self._known = self._given | (_read(file) if file else {})

    @classmethod
    def found(cls, variable: str, file: str, environment: Mapping[str, str]) -> ApiKeys:
        """The comma-separated keys in an environment variable, and a file's.

        Args:
            variable: Unset, it gives none.
            file: A path of TOML with a table for each key: ``key`` or ``sha256`` and, if wanted, ``tokens_per_minute``;
                empty, it gives none.
            environment: Variables and their values.

        Raises:
            SetupError: The variable or the file is given and holds no key: an open endpoint was not wanted.
        """
        keys: list[str] = []
        if variable in environment:
            keys = [key.strip() for key in environment[variable].split(",") if key.strip()]
            if not keys:
                raise SetupError(
                    f"{variable} is set but holds no API key. Give it comma-separated keys, or unset it to ask for "
                    "none."
                )
            _check_header(keys, variable)
        return cls(keys, file)

    @property
    def asked(self) -> bool:
        """Whether a request must carry a key."""
        return bool(self._known)

    def admit(self, authorization: str | None) -> ApiKey:
        """Let the bearer of a key pass.

        Args:
            authorization: The value of the header of that name, ``Bearer <key>``.

        Raises:
            RequestError: 401; the key is missing or wrong.
        """
        self._look_again()
        if not self.asked:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, in constant time: how long a refusal takes tells nothing.
        equal = [one for digest, one in self._known.items() if hmac.compare_digest(given, digest)]
        if scheme.lower() != "bearer" or not equal:
            problem = "Incorrect API key provided." if authorization else "You didn't provide an API key."
            problem += " Send it in the header 'Authorization: Bearer <key>'."
            raise RequestError(problem, status=401, code="invalid_api_key")
        return equal[0]

    def _look_again(self) -> None:
        now = self._clock()
        if not self._file or now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        state = _state(self._file)
        if state == self._state:
            return
        try:
            self._known = self._given | _read(self._file)
        except SetupError as error:
            line = f"serving: the keys stay as they were: {first_line(error)}"
            if line != self._said:  # it is tried again: rights may change, which shows in no time of the file
                log_event(line, "api_keys", level="warning")
            self._said = line
        else:
            self._state, self._said = state, ""
            log_event(f"serving: {self._file} was read again; {len(self._known)} keys", "api_keys")


def _state(file: str) -> tuple[int, ...] | None:
    """What another content changes; None without a file."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: str) -> dict[bytes, ApiKey]:
    where = f"{file} (serving.api_keys_file)"
    try:
        entries = ENTRIES.validate_python(tomllib.loads(Path(file).read_text("utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{where} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{where} is not TOML: {error}. {FORM}") from None
    except ValidationError as error:
        raise SetupError(f"{where}: {_problem(error)}") from None
    if not entries:
        raise SetupError(
            f"{where} holds no API key. Give it a table for each, or leave the setting out to ask for none."
        )
    _check_header([one.key for one in entries.values() if one.key], where)
    digests = [bytes.fromhex(one.sha256) if one.sha256 else _digest(one.key or "") for one in entries.values()]
    if EMPTY in digests:
        (name, *_) = (name for name, digest in zip(entries, digests, strict=True) if digest == EMPTY)
        raise SetupError(f"{where}: [{name}] sha256 is that of an empty text; make it of the key")
    twice = {digest for digest, times in Counter(digests).items() if times > 1}
    if twice:
        same = ", ".join(f"[{name}]" for name, digest in zip(entries, digests, strict=True) if digest in twice)
        raise SetupError(f"{where}: {same} hold the same key; give each its own")
    keys = [ApiKey(name, one.tokens_per_minute) for name, one in entries.items()]
    return dict(zip(digests, keys, strict=True))


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong, without its value, which may be a key."""
    first = error.errors(include_input=False, include_url=False)[0]
    table, *field = (str(part) for part in first["loc"] if part != "[key]")
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] in {"model_type", "dict_type"}:
        said = "is no table"
    elif first["type"] == "extra_forbidden":
        said = 'is no field of a key; a name with dots is written ["a.name"]'
    return f"[{table}]{' ' * bool(field)}{'.'.join(field)}: {said}. {FORM}"


def _check_header(keys: Sequence[str], where: str) -> None:
    if not all(key.isascii() and key.isprintable() and key == key.strip() for key in keys):
        raise SetupError(
            f"{where} holds an API key with blanks around it or other characters than ASCII's, which no HTTP header "
            "can carry."
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
