"""mteb's own tasks and benchmarks by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mteb

from qzhou.errors import DataError


def named_tasks(names: Sequence[str], *, setting: str) -> dict[str, list[Any]]:
    """Name -> its tasks, not loaded yet: those of a benchmark, or one.

    Args:
        names: mteb tasks or benchmarks, e.g. ``SciFact`` or ``MTEB(eng, v2)``.
        setting: Of the recipe, where a wrong name is to be mended.

    Raises:
        DataError: mteb has no such task or benchmark.
    """
    return {name: _tasks(name, setting) for name in names}


def _tasks(name: str, setting: str) -> list[Any]:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except (KeyError, ValueError):
        pass
    try:
        return [mteb.get_task(name)]
    except (KeyError, ValueError):
        raise DataError(
            f"{setting}: mteb knows no task and no benchmark '{name}'; see mteb.get_tasks() and mteb.get_benchmarks()."
        ) from None
