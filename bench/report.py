"""What the benchmarks share: their common options, the tables, the pictures, the file with the results."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
WORDS = {"case", "dtype", "who"}  # columns that hold no numbers


def parsed(parser: argparse.ArgumentParser, small: Mapping[str, Any]) -> argparse.Namespace:
    """The options, with ``--threads``, ``--results`` and ``--small``; the last changes the defaults of others."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of everyone; default: all cores")
    parser.add_argument(
        "--results", type=Path, help="folder of the JSON file; default: bench/results, or none if small"
    )
    parser.add_argument("--small", action="store_true", help="a few rows, one round")
    if parser.parse_args().small:
        parser.set_defaults(**small)
    asked = parser.parse_args()
    asked.results = asked.results or (None if asked.small else RESULTS)
    return asked


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the same keys; None is shown as a dash."""
    grid = Table(title=title)
    for name in rows[0]:
        grid.add_column(name, justify="left" if name in WORDS else "right", overflow="fold")
    for one in rows:
        cells = (f"{value:,}" if isinstance(value, int) else value for value in one.values())
        grid.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return grid


def write(folder: Path | None, name: str, content: Mapping[str, Any]) -> None:
    """Write the results as JSON, if there is a folder for them."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def svg(figure: Figure, salt: str) -> str:
    """The ``<svg>`` element of a figure.

    Args:
        figure: What to draw.
        salt: Makes the ids differ from those of other pictures, and stay the same from run to run.
    """
    figure.tight_layout()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
