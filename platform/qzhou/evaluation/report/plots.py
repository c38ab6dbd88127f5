"""Plots as Plotly takes them: traces and a layout as plain data. The page sets the colours of text and grid."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise
from textwrap import wrap
from typing import Any

BLUE, ORANGE, GREEN, RED = "#4c86d8", "#e08e0b", "#1f9d6b", "#c44e52"
VIOLET, CYAN, BROWN, PINK, GREY = "#9a6fd0", "#17a2b8", "#a9744f", "#d66ba0", "#8a94a0"
COLOURS = (BLUE, ORANGE, GREEN, RED, VIOLET, CYAN, BROWN, PINK, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")  # one for each round of colours
MODELS = {"bm25": GREY, "backbone": BLUE, "stage1": ORANGE, "stage2": GREEN}
FURTHER_MODELS = (VIOLET, RED, CYAN, BROWN, PINK)
POINTS = 400  # the most of a line; more are averaged
FEWEST = 60  # however many lines share a plot
MARKED = 40  # a line of fewer points marks each of them
# Pixels.
HEIGHT = 250
BAR, BETWEEN, AROUND = 15, 16, 60  # a bar, the space between two groups, axis and margins
LABEL_LINE = 15
LABEL_CHARS = 22  # longer labels of bars are broken
BETWEEN_WORDS = re.compile(r"(?<=[ _./-])|(?<=[a-z0-9])(?=[A-Z])")

# An axis of names, the first on top.
CATEGORIES = {"type": "category", "autorange": "reversed", "automargin": True, "tickfont": {"size": 11}}
LOG_AXIS = {"type": "log", "dtick": math.log10(4)}  # doublings are equally far apart

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        title: Above it.
        traces: As Plotly takes them.
        layout: As Plotly takes it.
        keys: Each trace's name and colour in the legend; empty with nothing to tell apart.
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
    title: str, shown: Sequence[Line], *, x: str, y: str, limits: Mapping[float, str] | None = None, **axes: Any
) -> Plot:
    """Lines over a common axis; ``x`` and ``y`` say what the axes mean, with their units.

    ``limits`` gives places on the horizontal axis the colours of their dotted lines, and
    ``axes`` has further properties of Plotly's ``xaxis`` and ``yaxis``.
    """
    x, y = escape(x), escape(y)
    shapes = [vertical_line(place, colour) for place, colour in (limits or {}).items()]
    layout = {
        "xaxis": {"title": {"text": x}, **axes.get("xaxis", {})},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero", **axes.get("yaxis", {})},
        "shapes": shapes,
    }
    keys = [(line.name, line.colour) for line in shown] if len(shown) > 1 else []
    return Plot(title, [_line_trace(line, x, y) for line in shown], layout, keys)


def vertical_line(place: float, colour: str) -> dict[str, Any]:
    """A dotted line over the whole height of a plot."""
    ends = {"x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": colour, "width": 1, "dash": "dot"}}


def _line_trace(line: Line, x: str, y: str) -> dict[str, Any]:
    is_marked = len(line.points) < MARKED and not line.steps
    shape = "hvh" if line.steps else "linear"
    return {
        "type": "scatter",
        "name": escape(line.name),
        "mode": "lines+markers" if is_marked else "lines",
        "x": [finite(one) for one, _ in line.points],
        "y": [finite(one) for _, one in line.points],
        "line": {"color": line.colour, "width": 1.6, "dash": line.dash, "shape": shape},
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

    ``found`` has names with colours and counts; one that counts nothing is left out.
    ``x``, ``y`` and ``limits`` are those of :func:`lines`.
    """
    middles = [(one + other) / 2 for one, other in pairwise(edges)]
    shown = []
    for name, (colour, counts) in found.items():
        if total := sum(counts):
            shares = [100 * one / total for one in counts]
            shown.append(Line(name, list(zip(middles, shares, strict=True)), colour, steps=True))
    return lines(title, shown, x=x, y=y, limits=limits)


@dataclass(frozen=True, slots=True)
class Bar:
    """Bars of one colour: each label's length, and its confidence limits where known."""

    name: str
    colour: str
    lengths: Sequence[float | None]
    limits: Sequence[tuple[float, float] | None] = ()


def bars(title: str, labels: Sequence[str], shown: Sequence[Bar], *, x: str, stacked: bool = False) -> Plot:
    """Bars from left to right, a group for each label, the first on top."""
    x = escape(x)
    broken = [broken_label(label) for label in labels]
    names = ["<br>".join(map(escape, parts)) for parts in broken]
    layout = {
        "barmode": "stack" if stacked else "group",
        "bargap": 0.25,
        "xaxis": {"title": {"text": x}, "rangemode": "tozero"},
        "yaxis": CATEGORIES,
    }
    keys = [(bar.name, bar.colour) for bar in shown] if len(shown) > 1 else []
    group = BAR if stacked else BAR * len(shown)
    tallest = max(group, LABEL_LINE * max(map(len, broken), default=1)) + BETWEEN
    height = AROUND + len(labels) * tallest
    return Plot(title, [_bar_trace(bar, names, x) for bar in shown], layout, keys, height)


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
        above, below = [], []
        for length, limits in zip(bar.lengths, bar.limits, strict=True):
            low, high = limits or (0.0, 0.0)
            is_known = length is not None and limits is not None
            above.append(high - (length or 0.0) if is_known else 0)
            below.append((length or 0.0) - low if is_known else 0)
        whiskers = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        trace["error_x"] = {**whiskers, "thickness": 1.2, "width": 3}
    return trace


def broken_label(label: str) -> list[str]:
    """The lines of a label, broken between its words where that is possible."""
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
    """Model -> colour; the models of a run have the same colours in every report."""
    further = cycle(FURTHER_MODELS)
    return {name: MODELS.get(name) or next(further) for name in names}


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most so many points: each the mean of as many neighbours, at the last's place."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def finite(value: float | None) -> float | None:
    """Six digits of a number; None where JSON has no word for it."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
