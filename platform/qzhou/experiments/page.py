"""The results of an experiment as a page that needs no network."""

from collections.abc import Sequence
from html import escape
from typing import Any

from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Panels, Section, Text
from qzhou.evaluation.report.page import render
from qzhou.experiments.results import Comparison, Line

# Each has a contrast of at least 3 to white and to near-black (WCAG 2.2, 1.4.11).
INK, SEEDS, INTERVAL = "#7a7a7a", "#c67a17", "#4f7fc4"
MARGINS, VARIANT = 90, 32  # pixels: axis and margins, and each variant


def results_page(name: str, comparisons: Sequence[Comparison]) -> str:
    """A plot for each score: a point for each seed, the mean with its interval, a dotted line at the baseline."""
    text = Text(
        "A point is the score of a seed, a bar the 95 % interval of the mean over seeds, the dotted line the mean of "
        "the baseline."
    )
    panels = Panels([_plot(one) for one in comparisons if one.lines])
    return render(name, [Section("scores", "Scores by variant", [text, panels])])


def _plot(comparison: Comparison) -> plots.Plot:
    traces = [*map(_interval, comparison.lines), _seeds(comparison.lines)]
    baselines = [one.spread for one in comparison.lines if one.variant == comparison.baseline]
    layout = {
        "xaxis": {"title": {"text": escape(comparison.metric)}},
        "yaxis": {**plots.CATEGORIES, "categoryarray": [_label(one) for one in comparison.lines]},
        "shapes": [plots.vertical_line(one.mean, INK) for one in baselines if one is not None],
    }
    return plots.Plot(comparison.score, traces, layout, height=MARGINS + VARIANT * len(comparison.lines))


def _label(line: Line) -> str:
    return "<br>".join(map(escape, plots.broken_label(line.variant)))


def _seeds(lines: Sequence[Line]) -> dict[str, Any]:
    points = [(score, _label(one), seed) for one in lines for seed, score in one.scores.items()]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "seeds",
        "x": [score for score, _, _ in points],
        "y": [label for _, label, _ in points],
        "text": [f"seed {seed}" for _, _, seed in points],
        "marker": {"color": SEEDS, "size": 7},
        "hovertemplate": "%{y}, %{text}: %{x:.4f}<extra></extra>",
    }


def _interval(line: Line) -> dict[str, Any]:
    """The mean of a variant with its interval, where these are known."""
    spread, points, sizes = line.spread, [], []
    if spread is not None:
        points, sizes = [spread.mean], [14]
        if spread.low is not None and spread.high is not None:
            points, sizes = [spread.low, spread.mean, spread.high], [0, 14, 0]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "mean",
        "x": points,
        "y": [_label(line)] * len(points),
        "line": {"color": INTERVAL, "width": 4},
        "marker": {"symbol": "line-ns", "size": sizes, "line": {"width": 2.5, "color": INTERVAL}},
        "hovertemplate": "%{y}, mean and interval: %{x:.4f}<extra></extra>",
    }
