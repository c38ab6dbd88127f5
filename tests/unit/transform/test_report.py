from qzhou.data.records import LabeledExample, PairExample
from qzhou.data.storage import Folder, write_records
from qzhou.transform.writing.report import warn_of_uniform

DATASETS = [
    {"name": "same", "rule": "labeled"},
    {"name": "kinds", "rule": "labeled"},
    {"name": "flat", "rule": "scored_pair"},
    {"name": "search", "rule": "title_body"},
]


def test_datasets_whose_rows_have_all_the_same_answer_are_named(make_recipe, tmp_path, capsys):
    recipe = make_recipe(datasets=[{"reader": "jsonl", "paths": ["x"], **one} for one in DATASETS])
    examples = Folder.open(str(tmp_path)) / "examples"
    for name, labels in (("same", "aaa"), ("kinds", "aab")):
        rows = [LabeledExample(id=f"{n}", dataset=name, text="t", label=one) for n, one in enumerate(labels)]
        write_records(examples / "classification" / name, rows, LabeledExample)
    pairs = [PairExample(id=f"{n}", dataset="flat", text_a="a", text_b="b", score=1.0) for n in range(3)]
    write_records(examples / "pair" / "flat", pairs, PairExample)

    warn_of_uniform(recipe, Folder.open(str(tmp_path)))

    same, flat = capsys.readouterr().out.splitlines()
    assert same.startswith("transform: same: WARNING: all rows have the label 'a', so nothing can be learned")
    assert flat.startswith("transform: flat: WARNING: all rows have the score 1.0, so nothing can be learned")
