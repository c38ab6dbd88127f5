"""What the report of a dataset counts."""

import pytest

from qzhou.data.records import Negative, RetrievalExample
from qzhou.mining.report import Report


def test_the_scores_of_mined_negatives_are_those_that_are_kept():
    negatives = (
        Negative(text="a", origin="mined", score=0.5),
        Negative(text="b", origin="mined", score=0.25),
        Negative(text="c", origin="given"),
        Negative(text="d", origin="mined"),  # it came with the data, without a score
    )
    example = RetrievalExample(id="1", dataset="d", query="q", positives=("p",), negatives=negatives)
    report = Report()

    report.add([example], {"not drawn": 2}, inconsistent=1)
    report.add([], {}, inconsistent=3)

    content = report.content()
    assert sum(content["scores"]["mined"]) == 2
    assert content["mean mined score"] == pytest.approx(0.375)
    assert content["negatives"] == {"mined": 3, "given": 1}
    assert (content["queries"], content["inconsistent"]) == (1, 4)
