"""What an LLM wrote is compared with the evaluation's texts as raw rows are."""

import pytest

from qzhou.config.transform import ContaminationSection
from qzhou.data.overlap import Index
from qzhou.data.records import LabeledExample, Negative, PairExample, RetrievalExample, Source
from qzhou.data.storage import Folder
from qzhou.synthesis.contamination import OverlapFilter
from qzhou.synthesis.generation import SynthesisResult, SyntheticRecord
from qzhou.synthesis.techniques import requests_for
from qzhou.transform.contamination.index_builder import IndexBuilder

HELD_OUT = "the heron stands in the shallow water at dawn and waits for the small silver fish to come"
COPY = f"yesterday {HELD_OUT} closer"  # more than thirteen words in a row
OTHER = "an owl sits in the old barn at night and listens to the mice that run below the dry hay"
TASKS = {"r": "retrieval", "p": "pair", "c": "classification"}


def written(dataset, record):
    seed = {
        "r": RetrievalExample(id="s", dataset="r", query="what?", positives=("that",)),
        "p": PairExample(id="s", dataset="p", text_a="a", text_b="b", score=1.0),
        "c": LabeledExample(id="s", dataset="c", text="t", label="c/x"),
    }[dataset]
    (request,) = requests_for(seed, "paraphrase")
    return SyntheticRecord(request=request, seed=seed, record=record)


SOURCE = Source(technique="paraphrase")
RECORDS = [
    written("r", RetrievalExample(id="1", dataset="r", query=COPY, positives=(OTHER,), source=SOURCE)),
    written("r", RetrievalExample(id="2", dataset="r", query="who?", positives=(COPY,), source=SOURCE)),
    written("r", RetrievalExample(id="3", dataset="r", query="who?", positives=(OTHER,), source=SOURCE)),
    written("r", Negative(text=COPY, origin="synthetic", source=SOURCE)),
    written("p", PairExample(id="4", dataset="p", text_a="a", text_b=COPY, score=1.0, source=SOURCE)),
    written("c", LabeledExample(id="5", dataset="c", text=COPY, label="c/x", source=SOURCE)),
    written("c", LabeledExample(id="6", dataset="c", text=OTHER, label="c/x", source=SOURCE)),
]


def index_of(folder):
    builder = IndexBuilder(ContaminationSection())
    builder.add_texts("herons", [HELD_OUT])
    builder.index().write(folder)
    return Index.read(folder)


@pytest.mark.parametrize(
    ("action", "dropped", "counted"),
    [("drop", {"1", "2", "4", "5"}, True), ("report", set(), True), ("off", set(), False)],
)
def test_new_examples_that_repeat_held_out_texts_fare_as_raw_ones_do(tmp_path, action, dropped, counted):
    settings = ContaminationSection(action=action)
    compared = OverlapFilter(settings, index_of(Folder.open(str(tmp_path)).create()))

    found = compared.filtered(SynthesisResult(records=list(RECORDS)), TASKS)

    kept = [one for one in RECORDS if getattr(one.record, "id", "") not in dropped]
    assert found.records == kept, "and the negative, which no query asks for"
    assert [one.reason for one in found.dropped] == ["contaminated"] * len(dropped)
    rows = {row["dataset"]: (row["task"], row["examples"], row["compared"]) for row in compared.rows()}
    assert rows == ({"r": ("herons", 2, 3), "p": ("herons", 1, 1), "c": ("herons", 1, 2)} if counted else {})


def test_a_record_that_asks_with_a_held_out_text_is_dropped_whatever_is_compared():
    compared = OverlapFilter(ContaminationSection(action="off"), None, frozenset({"who?"}))

    found = compared.filtered(SynthesisResult(records=RECORDS[:3]), TASKS)

    assert [one.record.id for one in found.records] == ["1"]
    assert {one.reason for one in found.dropped} == {"in_held_out"}


def test_an_index_is_read_as_it_was_written(tmp_path):
    folder = Folder.open(str(tmp_path)).create()
    assert Index.read(folder) is None

    found, again = index_of(folder), Index.read(folder)

    assert (found.tasks, found.kept_of, found.sizes) == (("herons",), 1, again.sizes)
    assert found.hashes.tolist() == again.hashes.tolist()
