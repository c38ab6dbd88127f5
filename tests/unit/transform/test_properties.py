"""Whatever a row holds: it is kept or dropped, its id follows from its content, and the output fits the schema."""

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qzhou.config.dataset import RULE_TASKS, Dataset
from qzhou.data.cleaning import _FTFY, clean_text, cut
from qzhou.data.records import EXAMPLE_TYPES, Drop, RetrievalExample, normalized_text
from qzhou.data.storage import from_row, schema_of, table_of
from qzhou.transform.rules.candidates import Converter
from qzhou.transform.rules.fields import DEFAULT_COLUMNS, GROUPED_BY, as_record

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
CELL = st.one_of(
    st.none(), TEXT, st.sampled_from(["", "same", "Same ", "yes", "0", "1", "entailment", "SUPPORTS", "REFUTES", "-"]),
    st.integers(-1, 3), st.floats(), st.booleans(), st.lists(TEXT, max_size=3),
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", ""]), "content": TEXT}), max_size=3),
)  # fmt: skip
RAW = st.fixed_dictionaries({"score": CELL})
QREL = (
    {"raw": RAW}
    | dict.fromkeys(("document", "query"), st.one_of(st.none(), TEXT.map(clean_text)))  # joined and clean
    | {"grade": CELL}
    | dict.fromkeys(("query_id", "document_id"), TEXT)
)


def dataset(rule, **more):
    parts = {key: {"reader": "jsonl", "paths": ("x",)} for key in ("corpus", "queries")} if rule == "qrels" else {}
    return Dataset.model_validate({"name": "d", "reader": "jsonl", "paths": ("x",), "rule": rule, **parts, **more})


def rows_of(rule):
    columns = QREL if rule == "qrels" else {name.split("[")[0]: CELL for name in DEFAULT_COLUMNS[rule].values()}
    row = st.fixed_dictionaries({}, optional=columns) if rule != "qrels" else st.fixed_dictionaries(columns)
    grouped = rule in GROUPED_BY or rule == "qrels"
    return st.lists(row, min_size=1, max_size=5 if grouped else 1)


@pytest.mark.parametrize("rule", RULE_TASKS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_row_is_kept_or_dropped_and_the_output_fits_the_schema(rule, data):
    rows = data.draw(rows_of(rule))
    convert = Converter(dataset(rule, eval_fraction=0.0 if rule == "documents" else 0.5), max_chars=50)

    candidate, drops = convert(rows)
    again, _ = convert(rows)

    kept = candidate.rows if candidate else []
    accounted = [as_record(row) for row in kept] + [drop.record for drop in drops if not drop.part]
    raw = [row["raw"] for row in rows] if rule == "qrels" else rows
    assert sorted(accounted) == sorted(map(as_record, raw))  # each raw row once, as it was
    assert bool(kept) == (candidate is not None)
    table_of(drops, Drop)
    if candidate is None:
        return
    record_type = EXAMPLE_TYPES[RULE_TASKS[rule]]
    assert again.example == candidate.example
    table = table_of([candidate.example], record_type)
    assert table.schema == schema_of(record_type)
    assert from_row(record_type, table.to_pylist()[0]) == candidate.example
    if isinstance(candidate.example, RetrievalExample):
        positives = {normalized_text(text) for text in candidate.example.positives}
        assert positives
        assert normalized_text(candidate.example.query) not in positives
        assert not positives & {normalized_text(one.text) for one in candidate.example.negatives}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXT, st.integers(1, 20))
def test_cleaned_text_is_bounded_and_stays_as_it_is(text, max_chars):
    whole = clean_text(text)

    assert len(cut(clean_text(text), max_chars)) <= max_chars
    assert clean_text(whole) == whole


PLAIN = st.lists(
    st.sampled_from([*"–—‘’“”•…　。，「」！（）中文字ー한글ｶ aA1.,'\"\n;", "&amp;", "&lt;", "&"]), max_size=15
).map("".join)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(PLAIN)
def test_texts_that_ftfy_need_not_see_come_out_as_if_it_had_seen_them(text):
    assert clean_text(text) == clean_text(ftfy.fix_text(text, _FTFY))
