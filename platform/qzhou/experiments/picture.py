"""An experiment as a picture that stands on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qzhou.experiments.results import Comparison
from qzhou.telemetry.pictures import svg

# Each has a contrast of at least 3 to white and to near-black (WCAG 2.2, 1.4.11), so that no background is needed
INK, SEEDS, INTERVAL = "#7a7a7a", "#c67a17", "#4f7fc4"


def picture(comparisons: Sequence[Comparison]) -> str:
    """A panel for each score: a point for each seed, a bar for the interval of the mean, a line at the baseline."""
    shown = [one for one in comparisons if one.lines]
    variants = list(dict.fromkeys(line.variant for one in shown for line in one.lines))
    figure = Figure(figsize=(2.2 + 3.4 * max(1, len(shown)), 1.0 + 0.42 * max(1, len(variants))))
    figure.patch.set_alpha(0)
    for number, comparison in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), number)
        _draw(axes, comparison, variants)
        axes.set_yticks(range(len(variants)), variants if number == 1 else [""] * len(variants))
        axes.set_ylim(len(variants) - 0.5, -0.5)
    return svg(figure, "experiment")


def _draw(axes: Axes, comparison: Comparison, variants: Sequence[str]) -> None:
    for line in comparison.lines:
        place, spread = variants.index(line.variant), line.spread
        axes.plot(
            list(line.scores.values()),
            [place] * len(line.scores),
            "o",
            color=SEEDS,
            markersize=4.5,
            zorder=3,
        )
        if spread is None:
            continue
        if spread.low is not None and spread.high is not None:
            axes.plot([spread.low, spread.high], [place, place], color=INTERVAL, linewidth=4)
        axes.plot(spread.mean, place, "|", color=INTERVAL, markersize=15, markeredgewidth=2.2)
        if line.variant == comparison.baseline:
            axes.axvline(spread.mean, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title(comparison.score, fontsize=9, color=INK)
    axes.set_xlabel(comparison.metric, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
