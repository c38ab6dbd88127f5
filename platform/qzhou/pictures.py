"""Figures as SVG that stands in a page: the same figure gives the same text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
