"""Rows that the best weights are chosen by: which, and that nothing that resembles them is trained on."""

import numpy as np
import pyarrow as pa
import pytest

from qzhou.data.prompts import Prompt
from qzhou.data.records import (
    EXAMPLE_TYPES,
    LabeledExample,
    PairExample,
    RetrievalExample,
    Source,
    normalized_text,
    origin_id,
)
from qzhou.data.storage import Folder, table_of, write_records
from qzhou.training.examples import TrainingSet, local_copy
from qzhou.training.set_aside import RowGroups, all_left_out


def example(task, number, text, parent="", other=None):
    source = Source(parent=parent)
    if task == "retrieval":
        return RetrievalExample(
            id=str(number), dataset="d", query=text, positives=(other or f"p{number}",), source=source
        )
    if task == "pair":
        return PairExample(
            id=str(number), dataset="d", text_a=text, text_b=other or f"b{number}", score=number % 5, source=source
        )
    return LabeledExample(id=str(number), dataset="d", text=text, label=str(number % 3), source=source)


def groups(task, examples):
    return RowGroups.of(table_of(examples, EXAMPLE_TYPES[task]), task)


def texts_of(one):
    if isinstance(one, PairExample):
        return {normalized_text(one.text_a), normalized_text(one.text_b)}
    return {normalized_text(one.query if isinstance(one, RetrievalExample) else one.text)}


@pytest.mark.parametrize("task", EXAMPLE_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_trained_on_that_asks_the_same_or_was_made_of_it(task, seed):
    """In loops: a query with other answers, in other spellings, paraphrases far behind, sentences of two pairs."""
    examples = [example(task, n, f"Text {n // 2}" if n % 2 else f"text  {n // 2} ") for n in range(600)]
    examples += [example(task, 600 + n, f"said otherwise {n}", parent=str(5 * n)) for n in range(120)]
    if task == "pair":
        examples += [example(task, 800 + n, f"a{n}", other=f"text {n}") for n in range(60)]
    own = groups(task, examples)

    ((aside, left_out),) = all_left_out([own], seed)

    chosen = [examples[n] for n in aside]
    trained = [one for n, one in enumerate(examples) if n not in set(left_out.tolist())]
    by_id = {one.id: one for one in examples}
    asked = set().union(*map(texts_of, chosen))
    assert 10 <= len(chosen) <= 72
    assert len(left_out) <= 2 * len(examples) // 10
    assert set(aside) <= set(left_out)
    assert not any(one.source.parent for one in chosen), "what nobody has written is asked for where it is there"
    for one in trained:
        assert not texts_of(one) & asked
        assert not texts_of(by_id[origin_id(one)]) & asked
    assert len(trained) + len(left_out) == len(examples)
    # the seed decides, and nothing else
    assert all_left_out([own], seed)[0][0].tolist() == aside.tolist()
    assert all_left_out([own], seed + 7)[0][0].tolist() != aside.tolist()


def test_datasets_that_share_rows_set_the_same_aside():
    """A row of one would be learned from the other."""
    one = [example("retrieval", n, f"text {n}") for n in range(500)]
    other = [example("classification", n, f"text {n}") for n in range(250, 900)]
    found = all_left_out([groups("retrieval", one), groups("classification", other)], 0)

    aside = {f"text {n}" for n in found[0][0]} | {f"text {n + 250}" for n in found[1][0]}
    for rows, (_, left_out), shift in ((one, found[0], 0), (other, found[1], 250)):
        trained = {f"text {n + shift}" for n in range(len(rows))} - {f"text {n + shift}" for n in left_out}
        assert not trained & aside
    assert all(len(rows) >= 10 for rows, _ in found)


@pytest.mark.parametrize(
    ("rows", "chosen"), [(9, 0), (99, 0), (100, 10), (390, 39), (5_000, 200)], ids=lambda one: str(one)
)
def test_a_tenth_at_most_and_few_rows_give_none(rows, chosen):
    ((aside, left_out),) = all_left_out(
        [groups("retrieval", [example("retrieval", n, f"t{n}") for n in range(rows)])], 0
    )

    assert (len(aside), len(left_out)) == (chosen, chosen)


def test_large_families_cost_no_more_than_a_tenth():
    """100 rows that an LLM has each rewritten ten times."""
    examples = [example("retrieval", n, f"t{n}") for n in range(100)]
    examples += [example("retrieval", 100 + n, f"again {n}", parent=str(n % 100)) for n in range(1_000)]

    ((aside, left_out),) = all_left_out([groups("retrieval", examples)], 0)

    assert (len(aside), len(left_out)) == (10, 110)


def test_queries_that_were_all_written_go_by_their_documents():
    examples = [example("retrieval", n, f"q{n}", parent=f"document {n // 4}") for n in range(400)]

    ((aside, left_out),) = all_left_out([groups("retrieval", examples)], 0)

    assert aside.tolist() == left_out.tolist()
    assert len(aside) == 40
    assert {n // 4 for n in aside} & {n // 4 for n in set(range(400)) - set(aside.tolist())} == set()


def test_a_dataset_that_would_be_emptied_keeps_its_rows():
    """All of its queries stand in a larger one."""
    large = groups("retrieval", [example("retrieval", n, f"t{n}") for n in range(300)])
    (whole, _) = all_left_out([large], 0)[0]
    small = groups("retrieval", [example("retrieval", n, f"t{row}") for n, row in enumerate(whole[:5])])

    found = all_left_out([large, small], 0)

    assert len(found[1][1]) < 5
    assert len(found[0][0]) + len(found[1][0]) >= 10


@pytest.mark.parametrize("task", EXAMPLE_TYPES)
def test_a_stored_set_gives_the_others_and_those_that_are_set_aside(tmp_path, task):
    examples = [example(task, n, f"text {n}") for n in range(360)]
    folder = Folder.open(str(tmp_path / "rows"))
    write_records(folder, examples, EXAMPLE_TYPES[task])
    file = local_copy(folder, tmp_path / "cache" / "f1" / "d.arrow")
    ((aside, left_out),) = all_left_out([groups(task, examples)], 1)

    data = TrainingSet.stored("d", task, Prompt(), file, aside=aside, left_out=left_out)

    trained = [one for n, one in enumerate(examples) if n not in set(left_out.tolist())]
    assert data.set_aside == tuple(examples[n] for n in aside)
    assert (data.rows, data.left_out) == (len(trained), len(left_out))
    assert data.take(np.arange(data.rows)) == trained
    assert data.take(np.array([data.rows - 1, 0, 0])) == [trained[-1], trained[0], trained[0]]
    if task == "classification":
        label = [one.label for one in trained]
        assert all(len({label[row] for row in data.classes.members(one)}) == 1 for one in range(3))


def test_chunks_of_a_table_change_nothing():
    examples = [example("retrieval", n, f"t{n}", parent=str(n - 50) if n >= 100 else "") for n in range(150)]
    table = table_of(examples, RetrievalExample)
    cut = pa.concat_tables([table.slice(start, 40) for start in range(0, 150, 40)])

    whole, parts = (RowGroups.of(one, "retrieval") for one in (table, cut))

    assert whole.group_N.tolist() == parts.group_N.tolist()
    assert whole.group_N[100] == whole.group_N[50]
