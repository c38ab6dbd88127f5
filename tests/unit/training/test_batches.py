"""What one global batch is made of."""

import numpy as np
import pytest

from qzhou.data.prompts import Prompt
from qzhou.data.records import EXAMPLE_TYPES, LabeledExample, Negative, PairExample, RetrievalExample, Source
from qzhou.data.storage import Folder, table_of, write_records, write_table
from qzhou.training.batch_plan import PlannedBatch, PlannedRows
from qzhou.training.batches import build_batches
from qzhou.training.examples import TrainingSet, is_uniform, local_copy


def batch(examples, task, prompt=None, negatives=2, step=0):
    (made,) = batches({"d": (examples, prompt or Prompt())}, negatives, step)
    assert made.task == task
    return made


def batches(datasets, negatives=2, step=0):
    data = {name: TrainingSet.of(name, prompt, examples) for name, (examples, prompt) in datasets.items()}
    parts = tuple(PlannedRows(name, one.task, np.arange(one.rows)) for name, one in data.items())
    return build_batches(PlannedBatch(step, parts), data, negatives_per_query=negatives, seed=1)


def retrieval(number, query=None, positives=None, negatives=0, parent=""):
    return RetrievalExample(
        id=str(number), dataset="d", query=query or f"q{number}", positives=positives or (f"p{number}",),
        negatives=tuple(Negative(text=f"n{number}.{i}", origin="mined") for i in range(negatives)),
        source=Source(parent=parent),
    )  # fmt: skip


def test_documents_are_the_positives_then_the_drawn_negatives():
    made = batch([retrieval(0, negatives=5), retrieval(1, negatives=1)], "retrieval")

    assert made.documents[:2] == ["p0", "p1"]
    # one example has only one negative: fewer, never filled up
    assert len(made.documents) == 2 + 2 + 1
    assert made.positive_B.tolist() == [0, 1]


def test_the_draw_follows_from_seed_and_step():
    examples = [retrieval(0, negatives=50)]

    assert batch(examples, "retrieval").documents == batch(examples, "retrieval").documents
    assert batch(examples, "retrieval").documents != batch(examples, "retrieval", step=1).documents


def test_the_same_text_is_no_negative_of_its_own_query():
    made = batch([retrieval(0, positives=("Same",)), retrieval(1, positives=(" same ",))], "retrieval")

    assert made.false_negative_mask_BM.tolist() == [[False, True], [True, False]]


def test_two_answers_to_the_same_query_are_no_negatives_of_it():
    made = batch([retrieval(0, query="Same"), retrieval(1, query="same "), retrieval(2)], "retrieval")

    assert made.false_negative_mask_BM.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert made.same_query_mask_BB[0].tolist() == [True, True, False]


def test_a_paraphrase_and_its_original_are_no_negatives_of_each_other():
    made = batch([retrieval("a"), retrieval("b", parent="a"), retrieval("c")], "retrieval")

    assert made.false_negative_mask_BM[0].tolist() == [False, True, False]
    assert made.same_query_mask_BB[0].tolist() == [True, True, False]


def test_prompts_stand_where_the_dataset_wants_them():
    prompt = Prompt("Find", symmetric=False)

    made = batch([retrieval(0)], "retrieval", prompt)

    assert made.queries == [prompt.query("q0")]
    assert made.documents == ["p0"]


def test_pairs_keep_their_scores_and_prompt_both_sides():
    prompt = Prompt("Compare", symmetric=True)

    made = batch([PairExample(id="1", dataset="d", text_a="a", text_b="b", score=2.0)], "pair", prompt)

    assert (made.texts_a, made.texts_b) == ([prompt.query("a")], [prompt.query("b")])
    assert made.score_P.tolist() == [2.0]


def labeled(count, labels):
    return [
        LabeledExample(id=str(i), dataset="d", text=f"{i % labels}:{i}", label=f"l{i % labels}")
        for i in range(count)
    ]


def test_a_positive_shares_the_class_and_is_another_text_and_negatives_do_not():
    for step in range(20):
        made = batch(labeled(12, 3), "classification", step=step)
        for text, positive in zip(made.texts, made.positives, strict=True):
            assert text[0] == positive[0]
            assert text != positive
        for number, negative in enumerate(made.negatives):
            assert negative[0] != made.texts[number // 2][0]
        assert len(made.negatives) == 24


def test_a_class_with_one_text_is_left_out_because_it_could_have_no_positive():
    lonely = LabeledExample(id="x", dataset="d", text="alone", label="lonely")

    data = TrainingSet.of("d", Prompt(), [lonely, *labeled(4, 2)])

    assert data.rows == 4
    assert [one.label for one in data.take(np.arange(4))] == ["l0", "l1", "l0", "l1"]


@pytest.mark.parametrize("labels", [1, 2])
def test_classification_works_with_one_class_and_with_two(labels):
    made = batch(labeled(4, labels), "classification")

    assert len(made.negatives) == (0 if labels == 1 else 8)
    assert made.label_B.tolist() == [i % labels for i in range(4)]


def test_datasets_of_one_task_share_a_batch_each_with_its_own_prompt():
    find, answer = Prompt("Find", symmetric=False), Prompt("Answer", symmetric=False)

    (made,) = batches({"a": ([retrieval(0, negatives=1)], find), "b": ([retrieval(1)], answer)})

    assert made.queries == [find.query("q0"), answer.query("q1")]
    assert made.documents == ["p0", "p1", "n0.0"]
    assert made.owner_M.tolist() == [0, 1, 0]


def test_scores_of_different_datasets_are_on_different_scales():
    pair = PairExample(id="1", dataset="d", text_a="a", text_b="b", score=2.0)

    (made,) = batches({"a": ([pair, pair], Prompt()), "b": ([pair], Prompt())})

    assert made.scale_P.tolist() == [0, 0, 1]


def test_classes_of_different_datasets_are_different():
    (made,) = batches({"a": (labeled(4, 2), Prompt()), "b": (labeled(6, 3), Prompt())})

    assert made.label_B.tolist() == [0, 1, 0, 1, 2, 3, 4, 2, 3, 4]
    assert set(made.negative_label_M[:8].tolist()) <= {0, 1}
    assert set(made.negative_label_M[8:].tolist()) <= {2, 3, 4}


def test_rows_of_several_tasks_become_a_batch_of_each():
    pair = PairExample(id="1", dataset="d", text_a="a", text_b="b", score=2.0)

    made = batches({"p": ([pair], Prompt()), "r": ([retrieval(0)], Prompt()), "c": (labeled(4, 2), Prompt())})

    assert [(one.task, one.size) for one in made] == [("retrieval", 1), ("pair", 1), ("classification", 4)]


def test_stored_examples_are_those_that_were_written(tmp_path):
    """Through Parquet and the memory-mapped copy, nested records and all, in any order and more than once."""
    made = {
        "retrieval": [retrieval(n, negatives=n % 3, parent=str(n)) for n in range(2500)],
        "classification": labeled(7, 2),
    }
    for task, examples in made.items():
        folder = Folder.open(str(tmp_path / task))
        write_records(folder, examples[:5], EXAMPLE_TYPES[task])
        write_table(folder, "part-000001.parquet", table_of(examples[5:], EXAMPLE_TYPES[task]))
        file = local_copy(folder, tmp_path / "cache" / "f1" / f"{task}.arrow")
        data = TrainingSet.stored("d", task, Prompt(), file)

        rows = np.array([len(examples) - 1, 0, 3, 3])
        assert data.rows == len(examples)
        assert data.take(rows) == [examples[row] for row in rows]


def test_a_node_keeps_one_copy_and_drops_those_of_other_examples(tmp_path):
    folder = Folder.open(str(tmp_path / "r"))
    write_records(folder, [retrieval(0)], RetrievalExample)
    old = local_copy(folder, tmp_path / "cache" / "f1" / "d.arrow")
    first = old.stat().st_mtime_ns

    assert local_copy(folder, tmp_path / "cache" / "f1" / "d.arrow").stat().st_mtime_ns == first
    new = local_copy(folder, tmp_path / "cache" / "f2" / "d.arrow")

    assert new.exists()
    assert not old.exists()


@pytest.mark.parametrize(
    ("values", "uniform"), [(["a"], True), (["a", "b"], False)], ids=["one class or score", "two"]
)
def test_a_dataset_with_one_class_or_score_teaches_nothing(tmp_path, values, uniform):
    """It was trained on by steps of loss 0."""
    labeled = [
        LabeledExample(id=str(n), dataset="d", text=f"t{n}", label=values[n % len(values)]) for n in range(6)
    ]
    pairs = [
        PairExample(id=str(n), dataset="d", text_a=f"a{n}", text_b=f"b{n}", score=n % len(values)) for n in range(6)
    ]
    for task, examples in {"classification": labeled, "pair": pairs}.items():
        folder = Folder.open(str(tmp_path / task))
        write_records(folder, examples, EXAMPLE_TYPES[task])
        assert is_uniform(local_copy(folder, tmp_path / "cache" / "f" / f"{task}.arrow"), task) is uniform
    folder = Folder.open(str(tmp_path / "retrieval"))
    write_records(folder, [retrieval(0)], RetrievalExample)
    assert not is_uniform(local_copy(folder, tmp_path / "cache" / "f" / "r.arrow"), "retrieval")
