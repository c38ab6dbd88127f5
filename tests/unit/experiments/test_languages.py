"""The recipe that asks across two languages: a passage is on the same side in all of its datasets."""

import importlib.util
import io
import json
from pathlib import Path

from qzhou.config.recipe import load_recipe
from qzhou.transform.rules.held_out import held_out

RECIPES = Path(__file__).parents[3] / "recipes"
WAYS = ("en_en", "zh_zh", "en_zh", "zh_en")


def readers():
    spec = importlib.util.spec_from_file_location("multitask_readers", RECIPES / "multitask_readers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def squad(language):
    def paragraph(number):
        return {
            "context": f"{language} {number}",
            "qas": [{"id": f"q{number}", "question": f"{language}? {number}"}],
        }

    return io.BytesIO(json.dumps({"data": [{"paragraphs": [paragraph(0), paragraph(1)]}]}).encode())


def test_questions_and_passages_of_two_languages_have_the_same_numbers():
    en, zh = (list(readers().squad_questions(squad(language))) for language in ("en", "zh"))

    assert en[1] == {"id": "q1", "question": "en? 1", "passage": "1", "grade": "1"}
    assert [(one["id"], one["passage"]) for one in en] == [(one["id"], one["passage"]) for one in zh]
    assert list(readers().squad_passages(squad("zh")))[1] == {"id": "1", "text": "zh 1"}


def test_no_passage_is_trained_on_in_one_language_and_judged_in_the_other():
    """What decides is the number of the passage and the share, and both are the same in all four."""
    found = [load_recipe(RECIPES / "en-zh.toml").dataset(way) for way in WAYS]

    assert {(one.split_by, one.eval_fraction) for one in found} == {("passage", 0.3)}
    assert 60 < sum(held_out(str(number), 0.3) for number in range(240)) < 90
