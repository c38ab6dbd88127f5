"""What a stage's fingerprint covers, and which of it differs between two versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qzhou.data.records import Manifest, digest

SHOWN = 3  # changes of each kind that a line names; the rest is counted


@dataclass(frozen=True, slots=True)
class FingerprintInputs:
    """Settings, inputs (name -> fingerprint), code (module -> digest) of one version."""

    settings: Mapping[str, object]
    inputs: Mapping[str, str]
    code: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest) -> FingerprintInputs:
        """Those of a finished stage."""
        return cls(manifest.settings, manifest.inputs, manifest.code)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all three."""
        return digest({"settings": self.settings, "inputs": self.inputs, "code": self.code})


def changes(before: FingerprintInputs, after: FingerprintInputs) -> list[str]:
    """A phrase per kind of change: settings with both values, inputs, modules by name."""
    found = []
    settings = list(_changed_settings(_plain(before.settings), _plain(after.settings), ""))
    if settings:
        found.append(f"settings changed: {_listed(settings)}")
    for kind, old, new in (("inputs", before.inputs, after.inputs), ("code", before.code, after.code)):
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        if names:
            found.append(f"{kind} changed: {_listed(names)}")
    return found


def _plain(content: object) -> object:
    """As it reads in JSON, where a tuple is a list."""
    return json.loads(json.dumps(content, default=str))


def _changed_settings(before: object, after: object, key: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _changed_settings(before.get(name), after.get(name), f"{key}.{name}".strip("."))
    elif before != after:
        yield f"{key} {_short(before)} -> {_short(after)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def duration(seconds: float) -> str:
    """A length of time as people say it: ``9.8 h``, ``12 min``, ``41 s``."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
