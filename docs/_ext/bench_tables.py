"""The figures of bench/results/*.json as Markdown tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.report import svg

RESULTS = Path(__file__).parents[2] / "bench" / "results"
INK = "#7a7a7a"  # like the bars, of a contrast of at least 3 to white and to near-black
COLOURS = ("#4f7fc4", "#c67a17", "#7a9a3a", "#a0609a", "#7a7a7a")

Row = Mapping[str, Any]

HEADINGS = {
    "texts_s": "texts/s",
    "tokens_s": "tokens/s",
    "of_peak": "of the peak",
    "padded": "of the peak, padding too",
    "encode_s": "encode, s",
    "mine_s": "mine, s",
    "mib": "MiB",
    "vectors_mib": "vectors, MiB",
    "same": "same choices",
    "samples_per_s": "samples/s",
    "tokens_per_s": "tokens/s",
    "requests_per_s": "requests/s",
    "asked_per_s": "asked/s",
    "answered_per_s": "answered/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "max_ms": "slowest, ms",
    "cpu_ms": "CPU, ms",
    "latency_s": "latency, s",
    "measured_latency_s": "measured latency, s",
    "wall_s": "wall, s",
    "rate": "requests/s",
    "of_ideal": "of the ideal",
    "apart": "largest difference of a score",
    "false": "false negatives",
    "queries": "queries with one",
    "mib_before": "MiB before",
    "mib_after": "MiB after",
    "p99_ms_later": "p99 later, ms",
    "us_per_row": "CPU, µs a row",
    "fixed_cpu_s": "fixed, CPU s",
    "driver_mib": "driver, MiB",
    "small_s": "measured, s",
    "predicted_s": "larger, predicted, s",
    "large_s": "larger, measured, s",
    "small_to_large": "larger / measured",
}
SHARES = {"of_peak", "padded", "of_ideal", "share", "queries"}  # shown in percent
WORDS = {"case", "dtype", "who", "peer", "unit", "agree", "on", "collection", "way"}
EXACT = {"agree", "same", "tied", "apart"}  # the digits are the point


@dataclass(frozen=True)
class Bars:
    """What a picture shows of the rows.

    Attributes:
        group: Rows of one text stand together.
        who: Whose bar it is.
        value: Its length.
        title: Says what that is.
    """

    group: Callable[[Row], str]
    who: Callable[[Row], str]
    value: Callable[[Row], float]
    title: str


SPEED = "speed, ours = 1"
PICTURES = {
    "transform": Bars(lambda row: row["case"], lambda row: row["peer"], lambda row: 1 / row["ratio"], SPEED),
    "synthesize": Bars(
        lambda row: f"{row['latency_s']:g} s, limit {row['limit']}",
        lambda row: row["peer"],
        lambda row: row["of_ideal"],
        "share of the ideal, limit / latency",
    ),
    "encode": Bars(
        lambda row: f"{row['case']}, {row['dtype']}", lambda row: row["who"], lambda row: 1 / row["ratio"], SPEED
    ),
    "mine": Bars(lambda row: row["case"], lambda row: row["who"], lambda row: 1 / row["ratio"], SPEED),
    "false_negatives": Bars(
        lambda row: row["collection"],
        lambda row: row["way"],
        lambda row: 100 * row["share"],
        "false negatives, % of what is mined",
    ),
    "train": Bars(lambda row: row["case"], lambda row: row["who"], lambda row: row["samples_per_s"], "samples/s"),
    "evaluate": Bars(lambda _: "seven tasks", lambda row: row["who"], lambda row: row["seconds"], "seconds"),
    "serve": Bars(
        lambda row: row["case"], lambda row: row["who"], lambda row: 1 / row["ratio"], "tokens/s, ours = 1"
    ),
}


def rows_of(bench: str, part: str = "rows") -> list[Row]:
    """The rows of one part of a result file."""
    content = json.loads((RESULTS / f"{bench}.json").read_text("utf-8"))
    if isinstance(content, list):
        return content
    if part in content:
        found: list[Row] = content[part]
        return found
    return [  # collection -> way -> figures
        {"collection": collection, "way": way, **figures}
        for collection, ways in content.items()
        for way, figures in ways.items()
    ]


def table(bench: str, part: str = "rows") -> str:
    """Markdown; rows with other columns begin another table."""
    alike = groupby(rows_of(bench, part), list)  # by the keys and their order
    return "\n\n".join("\n".join(_lines(list(rows), keys)) for keys, rows in alike)


def _lines(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS.get(key, key.replace('_', ' ')) for key in keys)} |"
    yield f"|{'|'.join('---' if key in WORDS else '--:' for key in keys)}|"
    before = ""
    for row in rows:
        first, *others = (cell(key, row[key]) for key in keys)
        # a group is named once
        yield f"| {' | '.join(['' if first == before else first, *others])} |"
        before = first


def cell(key: str, value: Any) -> str:
    """A figure to four digits at most, a share in percent."""
    if value is None:
        return "–"
    if key in SHARES:
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:.6g}" if key in EXACT else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def caption(bench: str) -> str:
    """What the bars of a picture mean."""
    return PICTURES[bench].title if bench in PICTURES else bench


def picture(bench: str) -> str:
    """The rows that have what the picture shows, or what the bench drew; an ``<svg>`` for light pages and dark ones."""
    if bench not in PICTURES:
        return (RESULTS / f"{bench}.svg").read_text("utf-8")
    bars = PICTURES[bench]
    compared = [row for row in rows_of(bench) if {"ratio", "of_ideal", "share"} & set(row)]
    shown = [(bars.group(row), bars.who(row), bars.value(row)) for row in compared]
    everyone = list(dict.fromkeys(who for _, who, _ in shown))
    groups = list(dict.fromkeys(group for group, _, _ in shown))
    figure = Figure(figsize=(7.4, 1.1 + 0.2 * len(shown) + 0.16 * len(groups)))
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    middles, top = [], 0.0
    for group in groups:
        inside = [(who, value) for one, who, value in shown if one == group]
        for place, (who, value) in enumerate(inside):
            axes.barh(top + place, value, 0.85, color=COLOURS[everyone.index(who)], label=who)
            axes.text(value, top + place, f" {value:.3g}", va="center", fontsize=7, color=INK)
        middles.append(top + (len(inside) - 1) / 2)
        top += len(inside) + 0.8
    if bars.title.endswith("ours = 1"):
        axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(middles, groups)
    axes.invert_yaxis()
    axes.set_xlabel(bars.title, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.set_title(" ", fontsize=12)  # room for the legend
    figure.legend(
        handles.values(), handles, loc="upper center", ncols=len(handles), fontsize=7, frameon=False, labelcolor=INK
    )
    return svg(figure, bench)
