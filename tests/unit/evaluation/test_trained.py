import dataclasses
import json

import pytest

from qzhou.errors import RecipeError
from qzhou.evaluation.candidates import candidates
from qzhou.evaluation.trained import refuse_other_training
from qzhou.records import Manifest
from qzhou.runs import Run
from qzhou.training.stages import PACE


def made(stage: str, seconds: str, settings: dict) -> Manifest:
    return Manifest(
        stage=stage, fingerprint="f", inputs={}, outputs={}, settings=settings, code_version="c",
        finished_at=f"2026-11-22 10:11:{seconds} UTC", wall_s=1.0,
    )  # fmt: skip


@pytest.fixture
def recipe(make_recipe):
    """A recipe with whose settings both stages were trained."""
    found = make_recipe()
    training = json.loads(found.training.model_dump_json())
    left_out = {"stage1", "stage2", "seed", *PACE}
    for name in ("stage1", "stage2"):
        settings = {
            "training": {key: value for key, value in training.items() if key not in left_out},
            "stage": training[name],
        }
        manifest = made(name, "12", settings)
        place = Run.at(found).folder / "train" / name
        place.create().write_json("manifest.json", dataclasses.asdict(manifest))
    return found


def other(recipe, **training):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def test_the_recipe_that_trained_may_judge_and_so_may_another_pace(recipe):
    refuse_other_training(recipe)
    refuse_other_training(other(recipe, workers=7, save_every_steps=3))


def test_settings_that_did_not_make_the_models_are_refused_with_both_values(recipe):
    with pytest.raises(RecipeError, match=r"training\.temperature is 0\.9, and .* was trained with 0\.02"):
        refuse_other_training(other(recipe, temperature=0.9))
    stage2 = recipe.training.stage2.model_copy(update={"steps": 99})
    with pytest.raises(RecipeError, match=r"training\.stage2\.steps is 99, and .*/stage2 was trained with"):
        refuse_other_training(other(recipe, stage2=stage2))


def test_models_of_other_runs_are_named_by_their_run(recipe):
    models = ("/runs/first/model", "runs/second/model/", "package:minilm/model", "https://host/v1#name", "plain")
    judged = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"models": models})})

    assert [one.name for one in candidates(judged)][-5:] == ["first", "second", "minilm", "name", "plain"]


def test_another_making_of_the_same_stage_is_told_apart():
    first, second = (made("mine", seconds, {}) for seconds in ("12", "13"))

    assert first.making != second.making
    assert first.making.startswith("f-2026")
