"""What the report of a dataset counts."""

import pytest

from qzhou.config.mining import MiningSection
from qzhou.data.records import Negative, RetrievalExample
from qzhou.mining.report import Report, shortage, wide_scores


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


@pytest.mark.parametrize(
    ("rejected", "way_out"),
    [
        (
            {"too close to the positive": 40, "below min_score": 2},
            "too close to the positive: set mining.later_rank_to",
        ),
        ({"below min_score": 40}, "below min_score: lower mining.min_score"),
        ({"ranked before the window": 99}, "alone; raise mining.rank_to, or lower mining.rank_from"),
    ],
)
def test_queries_without_negatives_are_warned_of_from_a_tenth_on(rejected, way_out):
    def content(without):
        negative = (Negative(text="a", origin="mined", score=0.5),)
        report = Report()
        for n in range(100):
            own = () if n < without else negative
            one = RetrievalExample(id=f"{n}", dataset="d", query="q", positives=("p",), negatives=own)
            report.add([one], rejected, inconsistent=0)
        return report.content()

    assert shortage("docs", content(10), MiningSection()) == ""
    assert shortage("docs", content(100), MiningSection(negatives_per_query=0)) == ""
    assert "later_rank_to" not in shortage("docs", content(11), MiningSection(later_rank_to=100))
    said = shortage("docs", content(11), MiningSection())
    assert "docs: WARNING: 11 of 100 queries have no negative" in said
    assert way_out in said


def listed(*scores, positive=0.9):
    negatives = tuple(Negative(text=f"n{n}", origin="given", score=one) for n, one in enumerate(scores))
    return RetrievalExample(
        id="1", dataset="d", query="q", positives=("p",), negatives=negatives, positive_scores=(positive,)
    )


@pytest.mark.parametrize(
    ("highest", "temperature", "warns"),
    [(1.0, 0.02, False), (11.5, 0.02, True), (11.5, 1.0, False), (100.0, 2.0, True)],
)
def test_scores_that_a_temperature_does_not_fit_are_said(highest, temperature, warns):
    report = Report()
    report.count_lists([listed(0.2), listed(-highest)])

    content = report.content()

    said = wide_scores("d", content, temperature)
    assert bool(said) == warns
    assert content["lists"] == 2
    if warns:
        assert f"reach {highest:g}, and training.distillation.teacher_temperature is {temperature:g}" in said
