"""Plots as Plotly takes them: traces and a layout as plain data. Colours of text and grid come from the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise
from textwrap import wrap
from typing import Any

COLOURS = (
    "#4c86d8",
    "#e08e0b",
    "#1f9d6b",
    "#c44e52",
    "#9a6fd0",
    "#17a2b8",
    "#a9744f",
    "#d66ba0",
    "#8a94a0",
)
DASHES = ("solid", "dash", "dot", "dashdot")  # after each round of colours
MODELS = {"bm25": "#8a94a0", "backbone": "#4c86d8", "stage1": "#e08e0b", "stage2": "#1f9d6b"}
FURTHER = ("#9a6fd0", "#c44e52", "#17a2b8", "#a9744f", "#d66ba0")  # models
POINTS = 400  # of a line; more are averaged
FEWEST = 60  # however many lines share a plot
MARKED = 40  # of fewer points each has a mark
HEIGHT = 250
BAR, BETWEEN, AROUND = 15, 16, 60  # pixels: a bar, the space between two groups, axis and margins
LABEL_CHARS, LABEL_LINE = 22, 15  # longer labels of bars are broken; pixels a line
BETWEEN_WORDS = re.compile(r"(?<=[ _./-])|(?<=[a-z0-9])(?=[A-Z])")

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        title: Above it.
        traces, layout: As Plotly takes them.
        keys: Name and colour of each trace, for the legend; empty where there is nothing to tell apart.
        height: In pixels.
    """

    title: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    keys: Sequence[tuple[str, str]] = ()
    height: int = HEIGHT

    @property
    def figure(self) -> dict[str, Any]:
        """What the page's script hands to Plotly."""
        return {"data": list(self.traces), "layout": {"height": self.height, **self.layout}}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot; ``steps`` draws it as the outline of a histogram."""

    name: str
    points: Points
    colour: str
    dash: str = "solid"
    steps: bool = False


def lines(
    title: str,
    shown: Sequence[Line],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    y_format: str = "",
    limits: Mapping[float, str] | None = None,
) -> Plot:
    """Lines over a common axis.

    Args:
        title: Above the plot.
        shown: The lines.
        x: What the axis across means, with its unit.
        y: What the axis upwards means, with its unit.
        log_x: Doublings are equally far apart.
        y_format: Of the numbers along the axis upwards, as d3 writes it.
        limits: Place -> colour of a dotted line across.
    """
    x, y = escape(x), escape(y)
    across = {"title": {"text": x}, **({"type": "log", "dtick": math.log10(4)} if log_x else {})}
    up = {
        "title": {"text": y},
        "rangemode": "tozero",
        **({"tickformat": y_format} if y_format else {}),
    }
    marks = [
        {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper"}
        | {"line": {"color": colour, "width": 1, "dash": "dot"}}
        for place, colour in (limits or {}).items()
    ]
    layout = {"xaxis": across, "yaxis": up, "shapes": marks}
    keys = [(line.name, line.colour) for line in shown] if len(shown) > 1 else []
    return Plot(title, [_trace(line, x, y) for line in shown], layout, keys)


def _trace(line: Line, x: str, y: str) -> dict[str, Any]:
    marked = len(line.points) < MARKED and not line.steps
    return {
        "type": "scatter",
        "name": escape(line.name),
        "mode": "lines+markers" if marked else "lines",
        "x": [finite(one) for one, _ in line.points],
        "y": [finite(one) for _, one in line.points],
        "line": {
            "color": line.colour,
            "width": 1.6,
            "dash": line.dash,
            "shape": "hvh" if line.steps else "linear",
        },
        "marker": {"size": 4},
        "hovertemplate": f"{x} %{{x}}<br>{y} %{{y:.4~g}}<extra>{escape(line.name)}</extra>",
    }


def histograms(
    title: str,
    edges: Sequence[float],
    found: Mapping[str, tuple[str, Sequence[float]]],
    *,
    x: str,
    y: str,
    limits: Mapping[float, str] | None = None,
) -> Plot:
    """Outlines of histograms with the same bins, each in percent of what it counts.

    Args:
        title: Above the plot.
        edges: Of the bins.
        found: Name -> colour and counts; one that counts nothing is left out.
        x: What is counted.
        y: In percent of what.
        limits: Place -> colour of a dotted line across.
    """
    middles = [(one + other) / 2 for one, other in pairwise(edges)]
    shown = []
    for name, (colour, counts) in found.items():
        if sum(counts):
            shares = [100 * one / sum(counts) for one in counts]
            shown.append(Line(name, list(zip(middles, shares, strict=True)), colour, steps=True))
    return lines(title, shown, x=x, y=y, limits=limits)


@dataclass(frozen=True, slots=True)
class Bar:
    """Bars of one colour: for each label a length, and the limits between which it lies, where these are known."""

    name: str
    colour: str
    lengths: Sequence[float | None]
    limits: Sequence[tuple[float, float] | None] = ()


def bars(
    title: str, labels: Sequence[str], shown: Sequence[Bar], *, x: str, stacked: bool = False
) -> Plot:
    """Bars from left to right, a group for each label, the first on top."""
    x = escape(x)
    broken = [_broken(label) for label in labels]
    traces = [
        _bar_trace(bar, ["<br>".join(map(escape, parts)) for parts in broken], x) for bar in shown
    ]
    up = {"autorange": "reversed", "automargin": True, "type": "category", "tickfont": {"size": 11}}
    layout = {
        "barmode": "stack" if stacked else "group",
        "bargap": 0.25,
        "xaxis": {"title": {"text": x}, "rangemode": "tozero"},
        "yaxis": up,
    }
    a_group = BAR if stacked else BAR * len(shown)
    keys = [(bar.name, bar.colour) for bar in shown] if len(shown) > 1 else []
    tallest = max(a_group, LABEL_LINE * max(map(len, broken), default=1)) + BETWEEN
    return Plot(title, traces, layout, keys, AROUND + len(labels) * tallest)


def _bar_trace(bar: Bar, labels: Sequence[str], x: str) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "name": escape(bar.name),
        "y": list(labels),
        "x": [finite(one) for one in bar.lengths],
        "marker": {"color": bar.colour},
        "hovertemplate": f"%{{y}}<br>{x} %{{x:.4~g}}<extra>{escape(bar.name)}</extra>",
    }
    if any(bar.limits):
        pairs = list(zip(bar.lengths, bar.limits, strict=True))
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [
                limits[1] - one if one is not None and limits else 0 for one, limits in pairs
            ],
            "arrayminus": [
                one - limits[0] if one is not None and limits else 0 for one, limits in pairs
            ],
            "thickness": 1.2,
            "width": 3,
        }
    return trace


def _broken(label: str) -> list[str]:
    """The lines of a label: broken where a word of it ends, if it can be."""
    found = [""]
    for word in BETWEEN_WORDS.split(label):
        for part in wrap(word, LABEL_CHARS, drop_whitespace=False):
            if found[-1] and len(found[-1] + part) > LABEL_CHARS:
                found.append("")
            found[-1] += part
    return found


def coloured(names: Iterable[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each name with a colour and a dash, no two alike among the first thirty-six."""
    styles = cycle([(colour, dash) for dash in DASHES for colour in COLOURS])
    return zip(names, styles, strict=False)


def colour_of_models(names: Sequence[str]) -> dict[str, str]:
    """The models of a run have the same colours in every report."""
    further = cycle(FURTHER)
    return {name: MODELS.get(name) or next(further) for name in names}


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most so many points: each the mean of as many neighbours, at the last one's place."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def finite(value: float | None) -> float | None:
    """Six digits of a number; None where JSON has no word for it."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
