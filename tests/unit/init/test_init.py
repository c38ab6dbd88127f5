"""``qzhou init``: what it makes of files of many kinds, and what it says of those that it cannot use."""

import csv
import gzip
import io
import json
import os
import re
import tomllib
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qzhou.cli.init import InitOptions, init
from qzhou.cli.init.machine import Machine, backbone_for
from qzhou.cli.init.shapes import IDS
from qzhou.config.recipe import load_recipe
from qzhou.errors import DataError
from qzhou.transform.reading.discovery import find_inputs

LAPTOP, SERVER = Machine(2, 0.0), Machine(32, 80.0)
QUESTIONS = [f"How do I reset device number {n} after a power cut?" for n in range(60)]
ANSWERS = [f"Hold the button of device {n} for ten seconds and then plug it in again." for n in range(60)]
OTHERS = [f"The manual of device {n} lies in its box, below the cable." for n in range(60)]
LABELS = [("power", "radio", "lamp")[n % 3] for n in range(60)]


def table(**columns):
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def as_csv(rows, delimiter=",", header=True, **options):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, **options)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


QA = table(question=QUESTIONS, answer=ANSWERS)
QA_COLUMNS = {"query": "question", "positive": "answer"}
SCORES = [f"{n % 11 / 2:.1f}" for n in range(60)]
CASES = {
    "csv": ("a.csv", as_csv(QA), "question_answer", QA_COLUMNS),
    "csv with BOM": ("a.csv", "\ufeff" + as_csv(QA), "question_answer", QA_COLUMNS),
    "semicolons": ("a.csv", as_csv(QA, ";"), "question_answer", QA_COLUMNS),
    "tabs": ("a.txt", as_csv(QA, "\t"), "question_answer", QA_COLUMNS),
    "other names": (
        "a.csv",
        as_csv(table(Ticket=range(60), Question=QUESTIONS, Answer=ANSWERS, Team=LABELS)),
        "question_answer",
        {"query": "Question", "positive": "Answer"},
    ),
    "pandas' index": (
        "a.csv",
        as_csv(table(**{"": range(60), "question": QUESTIONS, "answer": ANSWERS})),
        "question_answer",
        QA_COLUMNS,
    ),
    "pandas' index and labels": (
        "a.csv",
        as_csv(table(**{"": range(60), "text": QUESTIONS, "label": LABELS})),
        "labeled",
        {"text": "text", "label": "label"},
    ),
    "unusual names": (
        "a.csv",
        as_csv(table(**{"Question (customer)": QUESTIONS, "Answer [agent]": ANSWERS})),
        "question_answer",
        {"query": "Question (customer)", "positive": "Answer [agent]"},
    ),
    "plural": (
        "a.csv",
        as_csv(table(Questions=QUESTIONS, Answers=ANSWERS)),
        "question_answer",
        {"query": "Questions", "positive": "Answers"},
    ),
    "French": (
        "a.csv",
        as_csv(table(Demande=QUESTIONS, Réponse=ANSWERS)),
        "question_answer",
        {"query": "Demande", "positive": "Réponse"},
    ),
    "preferences": (
        "a.jsonl",
        as_lines(table(prompt=QUESTIONS, chosen=ANSWERS, rejected=OTHERS)),
        "triplets",
        {"query": "prompt", "positive": "chosen", "negative": "rejected"},
    ),
    "clicks": (
        "a.csv",
        as_csv(table(query=[f"device {n // 3}" for n in range(60)], document=ANSWERS, clicked=[0, 1] * 30)),
        "graded",
        {"query": "query", "document": "document", "grade": "clicked"},
    ),
    "yes and no": (
        "a.csv",
        as_csv(table(question=QUESTIONS, passage=ANSWERS, answer=[n % 2 == 0 for n in range(60)])),
        "question_answer",
        {"query": "question", "positive": "passage"},
    ),
    "ids beside": (
        "a.csv",
        as_csv(table(query=QUESTIONS, passage=[f"doc_{n}" for n in range(60)], passage_text=ANSWERS)),
        "question_answer",
        {"query": "query", "positive": "passage_text"},
    ),
    "Quora": (
        "a.csv",
        as_csv(table(id=range(60), qid1=range(60), qid2=range(60), question1=QUESTIONS, question2=OTHERS,
                     is_duplicate=[n % 2 for n in range(60)])),
        "duplicate_questions",
        {"text_a": "question1", "text_b": "question2", "label": "is_duplicate"},
    ),
    "nli by numbers": (
        "a.csv",
        as_csv(table(premise=ANSWERS, hypothesis=OTHERS, label=[n % 4 - 1 for n in range(60)])),
        "nli",
        {"text_a": "premise", "text_b": "hypothesis", "label": "label"},
    ),
    "one long line": (
        "a.json",
        json.dumps([{**row, "answer": row["answer"] * 100} for row in QA]),
        "question_answer",
        QA_COLUMNS,
    ),
    "json lines": ("a.jsonl", as_lines(QA), "question_answer", QA_COLUMNS),
    "json lines by another name": ("a.json", as_lines(QA), "question_answer", QA_COLUMNS),
    "json": ("a.json", json.dumps(QA, indent=1), "question_answer", QA_COLUMNS),
    "json inside": (
        "a.json",
        json.dumps({"version": 1, "data": {"items": QA}}),
        "question_answer",
        QA_COLUMNS,
    ),
    "triplets": (
        "a.jsonl",
        as_lines(table(query=QUESTIONS, pos=[[one] for one in ANSWERS], neg=[[one, "no"] for one in OTHERS])),
        "triplets",
        {"query": "query", "positive": "pos", "negative": "neg"},
    ),
    "sentence-transformers": (
        "a.jsonl",
        as_lines(table(anchor=QUESTIONS, positive=ANSWERS, negative=OTHERS)),
        "triplets",
        {"query": "anchor", "positive": "positive", "negative": "negative"},
    ),
    "scores without names": (
        "a.csv",
        as_csv(table(a=ANSWERS, b=OTHERS, c=SCORES), header=False),
        "scored_pair",
        {"text_a": "0", "text_b": "1", "score": "2"},
    ),
    "pairs": (
        "a.tsv",
        as_csv(table(sentence1=ANSWERS, sentence2=OTHERS, label=[n % 2 for n in range(60)]), "\t"),
        "binary_pair",
        {"text_a": "sentence1", "text_b": "sentence2", "label": "label"},
    ),
    "duplicate questions": (
        "a.csv",
        as_csv(table(question1=QUESTIONS, question2=OTHERS, is_duplicate=[n % 2 for n in range(60)])),
        "duplicate_questions",
        {"text_a": "question1", "text_b": "question2", "label": "is_duplicate"},
    ),
    "nli": (
        "a.jsonl",
        as_lines(table(premise=ANSWERS, hypothesis=OTHERS, label=["entailment", "neutral", "contradiction"] * 20)),
        "nli",
        {"text_a": "premise", "text_b": "hypothesis", "label": "label"},
    ),
    "labels": (
        "a.csv",
        as_csv(table(text=QUESTIONS, category=LABELS)),
        "labeled",
        {"text": "text", "label": "category"},
    ),
    "labels, sorted": (
        "a.csv",
        as_csv(table(label=sorted([0, 1] * 600), review=[f"{n} {q}" for n, q in enumerate(QUESTIONS * 20)])),
        "labeled",
        {"text": "review", "label": "label"},
    ),
    "labels before texts": (
        "a.label",
        "\n".join(f"{label.upper()}:x {text}" for label, text in zip(LABELS, QUESTIONS, strict=True)),
        "labeled",
        {"text": "1", "label": "0"},
    ),
    "grades": (
        "a.jsonl",
        as_lines(table(query=[f"device {n // 3}" for n in range(60)], title=ANSWERS, label=[n % 3 for n in range(60)])),
        "graded",
        {"query": "query", "document": "title", "grade": "label"},
    ),
    "titles": (
        "a.csv",
        as_csv(table(title=QUESTIONS, body=ANSWERS)),
        "title_body",
        {"query": "title", "positive": "body"},
    ),
    "chat": (
        "a.jsonl",
        as_lines([{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
                  for q, a in zip(QUESTIONS, ANSWERS, strict=True)]),
        "chat",
        {"messages": "messages"},
    ),
    "squad": (
        "a.json",
        json.dumps({"data": [{"title": "t", "paragraphs": [
            {"context": a, "qas": [{"id": str(n), "question": q, "answers": [{"text": a[:9], "answer_start": 0}]}]}
            for n, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]}]}),
        "reading_comprehension",
        {"question": "question", "context": "context"},
    ),
    "long texts": (
        "a.jsonl",
        as_lines([{"id": n, "content": " ".join(ANSWERS[n:n + 5])} for n in range(50)]),
        "documents",
        {"text": "content"},
    ),
    "Chinese": (
        "a.csv",
        as_csv(
            table(
                问题=[f"设备{n}断电后怎样重置？" for n in range(60)],
                答案=[f"按住设备{n}的按钮十秒钟，然后重新插电。" for n in range(60)],
            )
        ),
        "question_answer",
        {"query": "问题", "positive": "答案"},
    ),
}  # fmt: skip


def made(tmp_path, paths, machine=LAPTOP, **options):
    output = tmp_path / "made.toml"
    said = init([str(path) for path in paths], InitOptions(output=str(output), **options), machine)
    return said, tomllib.loads(output.read_text("utf-8")), load_recipe(output)


@pytest.mark.parametrize("case", list(CASES))
def test_the_rule_and_the_columns_of_a_file(tmp_path, case):
    name, content, rule, columns = CASES[case]
    path = tmp_path / name
    path.write_bytes(content.encode())

    said, written, recipe = made(tmp_path, [path])

    dataset, *headings = written["datasets"]
    assert dataset["rule"] == rule
    assert dataset["columns"] == columns
    assert bool(headings) == (rule == "documents")
    find_inputs(recipe)  # reader and columns are those of the file
    assert f"a: {rule}" in said
    assert "next:  qzhou run" in said


EVIDENCE = [[{"evidence_id": f"e{n}", "evidence": ANSWERS[n], "evidence_label": "SUPPORTS"}] for n in range(60)]
BESIDE_IDS = {  # columns in front of each of which one of identifiers stands -> rule
    "question_answer": {"question": QUESTIONS, "answer": ANSWERS},
    "triplets": {"query": QUESTIONS, "positive": ANSWERS, "negative": OTHERS},
    "graded": {"query": QUESTIONS, "document": ANSWERS, "label": [n % 2 for n in range(60)]},
    "labeled": {"text": QUESTIONS, "label": LABELS},
    "scored_pair": {"sentence1": QUESTIONS, "sentence2": ANSWERS, "score": SCORES},
    "title_body": {"title": QUESTIONS, "body": ANSWERS},
    "claim_evidence": {"claim": QUESTIONS, "evidences": EVIDENCE},
}


@pytest.mark.parametrize("rule", list(BESIDE_IDS))
@pytest.mark.parametrize("numbers", ["of rows", "that repeat", "codes", "words"])
@pytest.mark.parametrize("name", ["{}_id", "{}-idx", "{}Id", "id_{}"])
def test_identifiers_beside_texts_are_not_taken_for_them(tmp_path, rule, numbers, name):
    """A model was trained to find answers for numbers: claim_id came before claim."""
    ids = {
        "of rows": list(range(60)),
        "that repeat": [n // 2 for n in range(60)],
        "codes": [f"a{n:04}" for n in range(60)],
        "words": [f"{LABELS[n]} of number {n}" for n in range(60)],
    }[numbers]
    columns = {}
    for column, cells in BESIDE_IDS[rule].items():
        columns |= {name.format(column): ids, column: cells}
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines(table(**columns)))

    _, written, _ = made(tmp_path, [path])

    (dataset,) = written["datasets"]
    assert dataset["rule"] == rule
    used = {column.partition("[")[0] for column in dataset["columns"].values()}
    assert used == set(BESIDE_IDS[rule])


@pytest.mark.parametrize("names", [("query", "pos", "neg"), ("query", "positive", "negative")])
def test_identifiers_of_texts_that_lie_elsewhere_make_no_triplets(tmp_path, names):
    codes = [f"doc{n:04}" for n in range(60)], [f"doc{n + 7:04}" for n in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines(table(**dict(zip(names, (QUESTIONS, *codes), strict=True)))))

    with pytest.raises(DataError, match="name them"):
        made(tmp_path, [path])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_encodings_and_packed_files(tmp_path, encoding, pack):
    answers = [answer.replace("button", "Öffnungsknopf, der größer ist") for answer in ANSWERS]
    content = as_csv(table(question=QUESTIONS, answer=answers)).encode(encoding)
    path = tmp_path / f"a.csv{'.gz' if pack is gzip.compress else ''}"
    path.write_bytes(pack(content))
    said, _, recipe = made(tmp_path, [path])
    find_inputs(recipe)
    assert "größer" in said


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(QA), tmp_path / "a.parquet")
    _, written, _ = made(tmp_path, [tmp_path / "a.parquet"])
    assert (written["datasets"][0]["reader"], written["datasets"][0]["rule"]) == ("parquet", "question_answer")


@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize(
    ("names", "rule"),
    [(("sentence1", "sentence2", "score"), "scored_pair"), (("query", "document", "grade"), "graded")],
)
def test_numbers_are_read_with_their_own_decimal_mark(tmp_path, mark, names, rule):
    cells = [QUESTIONS, OTHERS, [f"{n % 4}{mark}5" for n in range(60)]]
    (tmp_path / "numbers.csv").write_text(as_csv(table(**dict(zip(names, cells, strict=True))), ";"))

    said, _, recipe = made(tmp_path, [str(tmp_path / "numbers.csv")])

    (dataset,) = recipe.datasets
    assert (dataset.rule, dataset.decimal) == (rule, mark)
    assert "dropped" not in said or "not_a_number" not in said


def test_a_mark_that_may_be_of_thousands_is_not_guessed_at(tmp_path):
    scores = [("120", "450", "1,000", "2,500")[n % 4] for n in range(60)]
    (tmp_path / "n.csv").write_text(as_csv(table(sentence1=QUESTIONS, sentence2=OTHERS, score=scores)))

    with pytest.raises(DataError, match="'1,000' of 'score' may be a number of thousands or have a decimal comma"):
        made(tmp_path, [str(tmp_path / "n.csv")])


def test_labels_with_a_comma_stay_labels(tmp_path):
    pages = [("1,2", "3,5", "7,9")[n % 3] for n in range(60)]
    (tmp_path / "n.csv").write_text(as_csv(table(text=QUESTIONS, label=pages)))

    _, _, recipe = made(tmp_path, [str(tmp_path / "n.csv")])

    (dataset,) = recipe.datasets
    assert (dataset.rule, dataset.decimal) == ("labeled", ".")


def test_grades_that_a_person_names_are_read_with_their_own_mark(tmp_path):
    cells = table(asked=QUESTIONS, found=OTHERS, mark=[f"{n % 2},5" for n in range(60)])
    (tmp_path / "n.csv").write_text(as_csv(cells, ";"))

    _, _, recipe = made(
        tmp_path, [str(tmp_path / "n.csv")], columns={"query": "asked", "positive": "found", "label": "mark"}
    )

    assert (recipe.datasets[0].rule, recipe.datasets[0].decimal) == ("graded", ",")


def test_numbers_of_two_marks_are_no_numbers(tmp_path):
    scores = ["1.500,5" if n % 2 else "2.5" for n in range(60)]
    (tmp_path / "n.csv").write_text(as_csv(table(sentence1=QUESTIONS, sentence2=OTHERS, score=scores), ";"))

    with pytest.raises(DataError, match="no rule that can be told"):
        made(tmp_path, [str(tmp_path / "n.csv")])


SENTENCES = [f"A person number {n} walks over a bridge." for n in range(40)]


def pairs(count, start=0, jump=7):
    """Pairs of the same few sentences, each pair another one."""
    chosen = [(n % 40, (n * jump + 1 + n // 40) % 40) for n in range(start, start + count)]
    return table(
        sentence1=[SENTENCES[a] for a, _ in chosen],
        sentence2=[SENTENCES[b] for _, b in chosen],
        score=[f"{n % 11 / 2:.1f}" for n in range(count)],
    )


OVERLAPS = {
    "official splits of pairs": ({"train.csv": pairs(120), "test.csv": pairs(60, 120, 11)}, True),
    "splits without a common sentence": (
        {"train.csv": table(sentence1=QUESTIONS, sentence2=OTHERS, score=SCORES), "test.csv": pairs(60)},
        False,
    ),
    "the same pairs again": ({"train.csv": pairs(40), "test.csv": pairs(40)}, False),
    "pairs of one file": ({"all.csv": pairs(200)}, True),
    "questions of one passage": (
        {"all.csv": table(question=QUESTIONS, answer=[ANSWERS[n % 3] for n in range(60)])},
        True,
    ),
    "questions asked again": (
        {"train.csv": QA, "test.csv": table(question=QUESTIONS, answer=ANSWERS[::-1])},
        False,  # a held-out query is never trained on
    ),
    "texts of classes": (
        {"train.csv": table(text=QUESTIONS, label=LABELS), "test.csv": table(text=QUESTIONS, label=LABELS)},
        False,
    ),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_rows_that_share_one_text_with_rows_to_judge_by_are_kept_and_that_is_said(tmp_path, case):
    files, is_allowed = OVERLAPS[case]
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in files.items():
        (folder / name).write_text(as_csv(rows))

    said, _, recipe = made(tmp_path, [str(folder)])

    allowed = [one.name for one in recipe.datasets if one.allow_overlap]
    assert bool(allowed) == is_allowed
    assert ("share one text with rows to judge by" in said) == is_allowed
    assert ("as official splits" in said) == (is_allowed and len(files) == 2)
    assert ("split_by = COLUMN" in said) == (is_allowed and len(files) == 1)
    assert not any(name.endswith("_test") for name in allowed)


def test_pairs_take_as_many_a_step_as_other_examples(tmp_path):
    (tmp_path / "pairs.csv").write_text(as_csv(pairs(200)))

    _, _, recipe = made(tmp_path, [str(tmp_path / "pairs.csv")])

    assert recipe.training.stage2.cosent_batch_size == recipe.training.stage2.batch_size == 32


@pytest.mark.parametrize("split", ["", ":train"])
def test_a_dataset_of_the_hub(tmp_path, split):
    """`datasets` reads a folder as it reads the hub, which no test can reach."""
    folder = tmp_path / "device-help"
    folder.mkdir()
    (folder / "train.jsonl").write_text(as_lines(QA))

    said, _, recipe = made(tmp_path, [f"hf://{folder}{split}"])

    (dataset,) = recipe.datasets
    assert (dataset.name, dataset.reader, dataset.paths) == ("device_help", "hf", (f"hf://{folder}:train",))
    assert (dataset.rule, dataset.columns) == ("question_answer", QA_COLUMNS)
    assert dataset.eval_fraction == 0.1
    assert "about 60 rows" in said


def test_a_dataset_of_the_hub_that_cannot_be_reached_or_is_named_like_a_path(tmp_path):
    with pytest.raises(DataError, match=r"'hf://.*/nothing:train' cannot be loaded: .* HF_TOKEN"):
        init([f"hf://{tmp_path}/nothing"], InitOptions(output=str(tmp_path / "a.toml")), LAPTOP)
    with pytest.raises(
        DataError, match="a dataset of the hub is named hf://sentence-transformers/natural-questions"
    ):
        init(["sentence-transformers/natural-questions"], InitOptions(output=str(tmp_path / "a.toml")), LAPTOP)


def test_a_folder_keeps_its_test_file_for_judging(tmp_path):
    folder = tmp_path / "intents"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(as_csv(table(text=QUESTIONS, intent=LABELS)))
    (folder / "README.md").write_text("# About\n\nA data set.")
    (folder / "LICENSE").write_text("Free")
    said, written, _ = made(tmp_path, [folder])
    assert [(one["name"], one.get("eval_fraction")) for one in written["datasets"]] == [
        ("intents", None),
        ("intents_test", 1.0),
    ]
    assert "README" not in said


def test_the_members_of_an_archive_are_datasets_of_their_own(tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("qa.csv", as_csv(QA))
        archive.writestr("kinds.csv", as_csv(table(text=QUESTIONS, label=LABELS)))
    _, written, recipe = made(tmp_path, [tmp_path / "both.zip"])
    assert {one["rule"] for one in written["datasets"]} == {"question_answer", "labeled"}
    find_inputs(recipe)


def test_beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, side, texts in (("corpus", "d", ANSWERS), ("queries", "q", QUESTIONS)):
        rows = [{"_id": f"{side}{n}", "title": "", "text": text} for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text(as_lines(rows))
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(60))
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text(qrels)
    _, written, recipe = made(tmp_path, [folder])
    assert [(one["rule"], one["eval_fraction"]) for one in written["datasets"]] == [("qrels", 1.0), ("qrels", 0.2)]
    find_inputs(recipe)


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "handbook"
    folder.mkdir()
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        (folder / f"{number}.md").write_text(f"# Device {number}\n\n## {question}\n\n{answer} {OTHERS[number]}\n")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    return folder


def test_documents_are_asked_for_by_their_headings(tmp_path, documents):
    said, written, recipe = made(tmp_path, [documents])
    assert [(one["name"], one["rule"]) for one in written["datasets"]] == [
        ("handbook", "documents"),
        ("handbook_headings", "title_body"),
    ]
    assert "60 documents (60 .md); 1 other files are left out (1 .png)" in said
    assert "query: How do I reset device number" in said
    assert recipe.datasets[1].eval_fraction
    assert "synthesis" not in written


def test_documents_are_asked_for_by_a_language_model(tmp_path, documents):
    said, written, recipe = made(tmp_path, [documents], endpoint="http://127.0.0.1:9/v1", model="some-model")
    (dataset,) = written["datasets"]
    assert dataset["eval_fraction"]
    assert written["synthesis"]["query_rows"] == recipe.synthesis.query_rows > 0
    assert re.search(r"about 4\d,\d00 tokens", said)


def test_every_line_of_the_recipe_has_a_comment(tmp_path, documents):
    made(tmp_path, [documents])
    lines = (tmp_path / "made.toml").read_text("utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("[") and " # " not in line] == []


def test_a_person_corrects_a_guess(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(as_csv(table(Betreff=QUESTIONS, Antwort=ANSWERS, Notiz=OTHERS)))
    _, written, _ = made(tmp_path, [path], columns={"query": "Notiz", "positive": "Antwort"})
    assert written["datasets"][0]["columns"] == {"query": "Notiz", "positive": "Antwort"}


@pytest.mark.parametrize(
    "columns",
    [
        {"text1": ANSWERS, "text2": OTHERS, "year": [1990 + n % 30 for n in range(60)]},
        {"text1": ANSWERS, "text2": OTHERS, "distance": SCORES},
        {"question": QUESTIONS, "answer": [n * 3 % 50 for n in range(60)]},
        {"question": QUESTIONS, "answer": list("ABCD") * 15},
        {"frage_text": QUESTIONS, "hinweis": ANSWERS, "notiz": OTHERS},
        {"question": QUESTIONS, "answer": ANSWERS, "score": [n / 60 for n in range(60)]},
    ],
    ids=["year", "distance", "numbers", "letters", "three texts", "grades of any value"],
)
def test_what_could_mean_several_things_is_refused(tmp_path, columns):
    (tmp_path / "a.csv").write_text(as_csv(table(**columns)))
    with pytest.raises(DataError, match=r"name them: --query|may grade"):
        made(tmp_path, [tmp_path / "a.csv"])


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"query": "sentence1", "positive": "sentence2"}, "question_answer"),
        ({"query": "sentence1", "positive": "sentence2", "label": "score"}, "graded"),
        ({"text": "sentence1", "label": "kind"}, "labeled"),
    ],
)
def test_flags_come_before_any_guess(tmp_path, flags, rule):
    columns = {"sentence1": ANSWERS, "sentence2": OTHERS, "score": [n % 2 for n in range(60)], "kind": LABELS}
    (tmp_path / "a.csv").write_text(as_csv(table(**columns)))
    _, written, _ = made(tmp_path, [tmp_path / "a.csv"], columns=flags)
    assert written["datasets"][0]["rule"] == rule
    assert set(written["datasets"][0]["columns"].values()) == set(flags.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpoint": "http://127.0.0.1:9/v1"}, "--endpoint is given and --model is not"),
        ({"model": "m"}, "--model is given and --endpoint is not"),
        ({"endpoint": "http://127.0.0.1:9/v1", "model": "m"}, "--endpoint is for documents, and there are none"),
        ({"columns": {"text": "question", "query": "question"}}, "--text is for texts with labels"),
        ({"columns": {"query": "question", "positive": "question"}}, "--query and --positive both name 'question'"),
    ],
)
def test_flags_that_contradict(tmp_path, options, told):
    (tmp_path / "a.csv").write_text(as_csv(QA))
    with pytest.raises(DataError, match=told):
        made(tmp_path, [tmp_path / "a.csv"], **options)


def test_rows_that_cannot_be_read_and_columns_that_are_left_out_are_said(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        as_lines(table(question=QUESTIONS, answer=ANSWERS, author=OTHERS)) + "\n{broken\n" * 9
    )
    said, _, _ = made(tmp_path, [tmp_path / "a.jsonl"])
    assert "of 69 looked at 60 are kept; dropped: 9 not_json" in said
    assert "columns left out: author" in said


@pytest.mark.parametrize("name", ["with space & ümlaut", "br[1]", "a*b", "v1.2"])
def test_names_of_folders_and_files(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.csv").write_text(as_csv(QA))
    _, written, recipe = made(tmp_path, [folder])
    find_inputs(recipe)
    assert written["datasets"][0]["rule"] == "question_answer"


def test_files_of_one_name_get_names_of_their_own(tmp_path):
    for year in ("2024", "2025"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "q.csv").write_text(as_csv(QA))
    _, written, _ = made(tmp_path, [tmp_path / year / "q.csv" for year in ("2024", "2025")])
    assert [one["name"] for one in written["datasets"]] == ["q", "q_2"]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".md.gz"])
def test_a_few_documents_of_any_kind_are_documents(tmp_path, suffix):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(4):
        text = f"{QUESTIONS[number]}\n\n{ANSWERS[number]}\n\n{OTHERS[number]}\n".encode()
        (folder / f"{number}{suffix}").write_bytes(gzip.compress(text, mtime=0) if suffix.endswith("gz") else text)
    said, written, recipe = made(tmp_path, [folder])
    assert [one["rule"] for one in written["datasets"]] == ["documents", "title_body"]
    assert "4 documents" in said
    find_inputs(recipe)


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        ({}, {}, "is an empty folder"),
        ({"a.png": b"\x89PNG\0\0"}, {}, "nothing of .* can be used"),
        ({"a.csv": b""}, {}, "a.csv is empty"),
        ({"a.xml": b"<doc><text>x</text></doc>"}, {}, "is XML, which needs a reader of your own"),
        ({"a.csv": as_csv(table(id=range(9), n=range(9))).encode()}, {}, r"columns \(id \(numbers\), n \(numbers\)\)"),
        ({"a.csv": as_csv(QA).encode()}, {"columns": {"query": "frage"}}, "no column 'frage'; there are question"),
        ({"a.json": b'{"a": 1'}, {}, "no whole JSON document"),
        ({"a.json": b"[1, 2, 3]"}, {}, "without a list of objects"),
        ({"a.jsonl.gz": b"not packed"}, {}, r"a\.jsonl\.gz"),
        ({"a.parquet": b"PAR1"}, {}, r"a\.parquet"),
        ({"made.toml": b"", "a.csv": as_csv(QA).encode()}, {}, "made.toml is there already"),
    ],
    ids=["empty", "image", "empty file", "xml", "numbers", "column", "cut", "no objects", "gzip", "parquet", "there"],
)  # fmt: skip
def test_what_cannot_be_used_says_why(tmp_path, files, options, told):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (tmp_path / name if name == "made.toml" else folder / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=told):
        made(tmp_path, [folder], **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        made(tmp_path, [tmp_path / "none"])


@pytest.mark.parametrize(
    ("machine", "language", "backbone"),
    [
        (LAPTOP, "en", "MiniLM|minilm"),
        (LAPTOP, "zh", "multilingual"),
        (Machine(8, 12.0), "en", "multilingual-e5-base"),
        (SERVER, "zh", "Qwen3-Embedding"),
    ],
)
def test_the_backbone_suits_machine_and_language(machine, language, backbone):
    assert re.search(backbone, backbone_for(machine, language))


RIGHT = {  # data set -> rule of its first dataset; None: refused with the reason
    "afqmc": "binary_pair", "agnews": "labeled", "banking77": "labeled", "cisi": None,
    "climate_fever": "claim_evidence",
    "cmrc2018": "reading_comprehension", "cranfield": None, "csl_zh": "labeled", "fever_rte": "binary_pair",
    "flagembedding_examples": "triplets", "msmarco_mini": "qrels", "ocnli": "nli", "qbqtc": "graded", "scifact": None,
    "sick2014": "scored_pair", "sts2016": "scored_pair", "stsb_multi_mt": "scored_pair", "text2vec_bge_zh": "triplets",
    "tnews_fewclue": "labeled", "trec_questions": "labeled", "trecqa_wang": "graded", "waimai_10k": "labeled",
    "xquad_en_zh": "reading_comprehension",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif("QZHOU_DATA" not in os.environ, reason="QZHOU_DATA is not set")
@pytest.mark.parametrize("name", RIGHT)
def test_data_sets_as_they_lie_there(tmp_path, name):
    path = Path(os.environ["QZHOU_DATA"]) / name
    if RIGHT[name] is None:
        with pytest.raises(DataError, match="can be used"):
            made(tmp_path, [path])
        return
    _, written, recipe = made(tmp_path, [path])
    dataset = written["datasets"][0]
    assert dataset["rule"] == RIGHT[name]
    ids = {field for field, column in dataset.get("columns", {}).items() if IDS.search(str(column))}
    assert ids <= {"query_id", "document_id"}
    find_inputs(recipe)
