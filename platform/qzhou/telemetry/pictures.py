"""What the stages' reports share: histograms, figures as SVG that stands in a page, texts cut to be looked at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def counted(values: np.ndarray | Sequence[float], edges: np.ndarray) -> np.ndarray:
    """How many values lie between each two edges; those outside count in the first and the last bin."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def draw_histograms(
    axes: Axes, title: str, edges: np.ndarray, lines: Mapping[str, tuple[str, np.ndarray]]
) -> None:
    """Draw one panel: a line for each histogram, in percent of what it counts.

    Args:
        axes: Of the panel.
        title: Above it.
        edges: Of the bins of all histograms.
        lines: Label -> colour and counts; one that counts nothing is left out.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    for label, (colour, counts) in lines.items():
        if counts.sum():
            axes.plot(
                middles, 100 * counts / counts.sum(), color=colour, label=label, linewidth=1.3
            )
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=6, frameon=False)


def shortened(text: str, chars: int) -> str:
    """The beginning of a long text."""
    return text if len(text) <= chars else f"{text[:chars]} ..."


def svg(figure: Figure, salt: str) -> str:
    """The ``<svg>`` element of a figure, laid out tightly.

    Args:
        figure: What to draw.
        salt: Makes the ids inside differ from those of other pictures, and stay the same from run to run.
    """
    import matplotlib as mpl

    figure.tight_layout()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
