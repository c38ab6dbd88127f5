"""What the reports of several stages share."""

import numpy as np
from matplotlib.figure import Figure

from qzhou.telemetry.pictures import counted, draw_histograms, shortened

EDGES = np.array([0.0, 0.5, 1.0])


def test_what_lies_outside_the_bins_counts_in_the_outermost():
    assert counted([-3.0, 0.1, 0.5, 0.9, 1.0, 7.0], EDGES).tolist() == [2, 4]
    assert counted([], EDGES).tolist() == [0, 0]


def test_a_panel_draws_percentages_and_leaves_out_what_counts_nothing():
    axes = Figure().add_subplot()

    draw_histograms(
        axes,
        "docs",
        EDGES,
        {"mined": ("red", np.array([1, 3])), "given": ("blue", np.array([0, 0]))},
    )

    (line,) = axes.get_lines()
    assert (line.get_label(), *line.get_xdata(), *line.get_ydata()) == (
        "mined",
        0.25,
        0.75,
        25.0,
        75.0,
    )
    assert axes.get_title() == "docs"


def test_only_a_long_text_is_cut():
    assert (shortened("abc", 3), shortened("abcd", 3)) == ("abc", "abc ...")
