"""Documents without queries: some are held out, and what is written for those judges and never trains."""

import pytest

from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Document, RetrievalExample
from qzhou.data.storage import Folder, read_records
from qzhou.evaluation.judge.tasks import build_task, eval_tasks
from qzhou.serving.indexing import searched
from qzhou.synthesis.pipeline import synthesize
from qzhou.training.validation import held_out_examples
from qzhou.transform.pipeline import transform

pytestmark = pytest.mark.usefixtures("cluster")

SUBJECTS = ("kettle", "radio", "camera", "lamp", "fan", "iron", "toaster", "mixer", "heater", "router")
PARTS = ("button", "cable", "display", "battery", "cover", "handle")
STEPS = {"steps": 1, "learning_rate": 1e-5}


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for subject in SUBJECTS:
        sections = [
            f"## The {part}\n\nThe {part} of the {subject} is repaired by a technician. The {subject} must be cold "
            f"before the {part} is opened, and the {part} is closed afterwards."
            for part in PARTS
        ]
        for version in (1, 2):  # which say the same under other titles
            title = f"# {subject.title()} {version}\n\n"
            (folder / f"{subject}-{version}.md").write_text(title + "\n\n".join(sections))
    return folder


def recipe_of(tmp_path, tiny_bert, datasets, **more):
    content = {
        "run": {"name": "run", "storage": str(tmp_path / "runs"), "seed": 1},
        "model": {"backbone": str(tiny_bert), "max_document_tokens": 64},
        "datasets": datasets,
        "training": {"stage1": STEPS, "stage2": {**STEPS, "retrieval_share": 1.0}},
        **more,
    }
    return parse_recipe(content, place="test")


def dataset(folder, name, rule, **more):
    return {"name": name, "reader": "documents", "rule": rule, "paths": [str(folder)], **more}


def texts_of(folder):
    return {one.text for one in read_records(folder, Document)}


def test_queries_of_held_out_documents_judge_and_never_train(tmp_path, documents, tiny_bert):
    recipe = recipe_of(
        tmp_path,
        tiny_bert,
        [dataset(documents, "docs", "documents", eval_fraction=0.4)],
        synthesis={"endpoint": "builtin", "query_rows": 100},
    )
    transform(recipe)
    synthesize(recipe)

    run = Folder.open(str(tmp_path / "runs")) / "run"
    seen = texts_of(run / "transform" / "corpora" / "docs")
    unseen = texts_of(run / "transform" / "held_out_documents" / "docs")
    trained = list(read_records(run / "synthesis" / "examples" / "retrieval" / "docs", RetrievalExample))
    judged = list(read_records(run / "synthesis" / "held_out" / "retrieval" / "docs", RetrievalExample))
    assert trained
    assert judged
    assert {one.positives[0] for one in trained} <= seen
    assert {one.positives[0] for one in judged} <= unseen
    assert not seen & unseen
    assert not {one.query for one in trained} & {one.query for one in judged}
    subjects = [
        {name for name in SUBJECTS for one in side if name in one.positives[0]} for side in (trained, judged)
    ]
    assert not subjects[0] & subjects[1]  # whole documents are on one side

    tasks, refused = eval_tasks(recipe, run)
    assert refused == {}
    (task,) = tasks
    assert task.name == "docs_synthetic"
    data = build_task(task, recipe, run).dataset["default"]["test"]
    assert len(data["corpus"]) == len(seen | unseen)  # found among all documents
    assert len(data["queries"]) == len({one.query.casefold() for one in judged})
    assert [one for _, one in held_out_examples(recipe, run)] == judged
    assert [one.name for one in searched(recipe)] == ["docs"]


def test_headings_ask_without_a_language_model(tmp_path, documents, tiny_bert):
    headings = dataset(
        documents, "headings", "title_body", columns={"query": "query", "positive": "body"}, eval_fraction=0.4
    )
    recipe = recipe_of(tmp_path, tiny_bert, [dataset(documents, "docs", "documents"), headings])
    transform(recipe)
    synthesize(recipe)

    run = Folder.open(str(tmp_path / "runs")) / "run"
    trained = list(read_records(run / "synthesis" / "examples" / "retrieval" / "headings", RetrievalExample))
    assert {one.query.split(": ")[-1] for one in trained} >= {f"The {part}" for part in PARTS}
    tasks, _ = eval_tasks(recipe, run)
    assert [task.name for task in tasks] == ["headings_synthetic"]
    corpus = build_task(tasks[0], recipe, run).dataset["default"]["test"]["corpus"]
    assert len(corpus) > len(
        list(read_records(run / "transform" / "held_out" / "retrieval" / "headings", RetrievalExample))
    )
    assert [one.name for one in searched(recipe)] == ["docs"]
    assert len(texts_of(run / "transform" / "corpora" / "docs")) >= len(SUBJECTS) * len(PARTS)


@pytest.mark.parametrize(("index", "names"), [({}, ["docs"]), ({"docs": False, "headings": True}, ["headings"])])
def test_what_is_searched(tmp_path, documents, tiny_bert, index, names):
    both = [
        dataset(documents, name, rule, **({"index": index[name]} if name in index else {}))
        for name, rule in (("docs", "documents"), ("headings", "title_body"))
    ]
    assert [one.name for one in searched(recipe_of(tmp_path, tiny_bert, both))] == names
