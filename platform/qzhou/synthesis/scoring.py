"""Which texts of a new record a teacher compares. Pure."""

from __future__ import annotations

from qzhou.data.prompts import Prompt
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample
from qzhou.synthesis.plan import Made

PARTS = ("query", "positive", "negative", "better", "old_query", "old_positive")


def texts_to_score(made: Made, prompt: Prompt) -> dict[str, str]:
    """Part -> text with its prompt, as :class:`qzhou.synthesis.gates.Scores` needs them.

    ``old_query`` and ``old_positive`` are what was rewritten; ``better`` is what a negative must stay below. The text
    of a class, or of a pair's side, stands as ``query``.
    """
    record, subject = made.record, made.subject
    if isinstance(record, Negative):
        assert isinstance(subject, RetrievalExample)
        return {
            "query": prompt.query(subject.query),
            "negative": prompt.document(record.text),
            "better": prompt.document(subject.positives[0]),
        }
    if isinstance(record, RetrievalExample):
        texts = {
            "query": prompt.query(record.query),
            "positive": prompt.document(record.positives[0]),
        }
        if record.negatives:
            texts |= {
                "negative": prompt.document(record.negatives[0].text),
                "better": texts["positive"],
            }
        if made.request.technique == "paraphrase":
            assert isinstance(subject, RetrievalExample)
            texts |= {
                "old_query": prompt.query(subject.query),
                "old_positive": prompt.document(subject.positives[0]),
            }
        return texts
    if isinstance(record, LabeledExample):
        assert isinstance(subject, LabeledExample)
        return {"query": prompt.query(record.text), "old_query": prompt.query(subject.text)}
    assert isinstance(record, PairExample)
    side = made.request.side or "text_a"
    return {
        "query": prompt.query(getattr(record, side)),
        "old_query": prompt.query(getattr(subject, side)),
    }
