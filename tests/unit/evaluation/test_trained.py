import dataclasses

import pytest

from qzhou.data.records import Manifest
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import RecipeError
from qzhou.evaluation.judge.model_specs import models_to_score
from qzhou.evaluation.settings_check import refuse_changed_settings
from qzhou.run.run import Run
from qzhou.training.stages import learning_settings


def made(stage: str, seconds: str, settings: dict) -> Manifest:
    return Manifest(
        stage=stage, fingerprint="f", inputs={}, outputs={}, settings=settings, code_version="c",
        finished_at=f"2026-11-22 10:11:{seconds} UTC", wall_s=1.0,
    )  # fmt: skip


@pytest.fixture
def recipe(make_recipe):
    """A recipe with whose settings both stages were trained."""
    found = make_recipe()
    run = with_arithmetic(Run.at(found))
    for name in ("stage1", "stage2"):
        manifest = made(name, "12", learning_settings(run.recipe, name))
        place = run.folder / "training" / name
        place.create().write_json("manifest.json", dataclasses.asdict(manifest))
    return found


def other(recipe, **training):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def test_the_recipe_that_trained_may_judge_and_so_may_another_pace(recipe):
    refuse_changed_settings(recipe)
    refuse_changed_settings(other(recipe, workers=7, save_every_steps=3))


def test_another_type_to_compute_in_did_not_make_the_models(recipe):
    """``auto`` is what the run has decided, on whatever processor the question comes up."""
    dtype = with_arithmetic(Run.at(recipe)).recipe.model.dtype
    changed = {"dtype": "float16"}
    with pytest.raises(RecipeError, match=rf'model\.dtype is "float16", and .*/stage1 was made with "{dtype}"'):
        refuse_changed_settings(recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)}))


def test_settings_that_did_not_make_the_models_are_refused_with_both_values(recipe):
    with pytest.raises(RecipeError, match=r"training\.temperature is 0\.9, and .* was made with 0\.02"):
        refuse_changed_settings(other(recipe, temperature=0.9))
    stage2 = recipe.training.stage2.model_copy(update={"steps": 99})
    with pytest.raises(RecipeError, match=r"training\.stage2\.steps is 99, and .*/stage2 was made with"):
        refuse_changed_settings(other(recipe, stage2=stage2))


def test_settings_of_every_stage_must_be_those_that_made_the_models(recipe):
    """The report shows them as what was done."""
    place = Run.at(recipe).folder
    settings = {
        "transform": {"transform": recipe.transform.model_dump(mode="json")},
        "synthesis": recipe.synthesis.model_dump(mode="json"),
        "mining": {"mining": recipe.mining.model_dump(mode="json")},
    }
    for stage, own in settings.items():
        (place / stage).create().write_json("manifest.json", dataclasses.asdict(made(stage, "12", own)))
    refuse_changed_settings(recipe)

    mining = recipe.mining.model_copy(update={"positive_ratio": 0.8})
    with pytest.raises(RecipeError, match=r"mining\.positive_ratio is 0\.8, and .*/mining was made with 0\.95"):
        refuse_changed_settings(recipe.model_copy(update={"mining": mining}))
    synthesis = recipe.synthesis.model_copy(update={"paraphrase_rows": 7})
    with pytest.raises(RecipeError, match=r"synthesis\.paraphrase_rows is 7, and .*/synthesis was made with 0"):
        refuse_changed_settings(recipe.model_copy(update={"synthesis": synthesis}))
    model = recipe.model.model_copy(update={"max_document_tokens": 77})
    with pytest.raises(RecipeError, match=r"model\.max_document_tokens is 77, and .*/stage1 was made with"):
        refuse_changed_settings(recipe.model_copy(update={"model": model}))
    encoding = recipe.model.model_copy(update={"encoding_dtype": "float32", "compiled": True})
    refuse_changed_settings(recipe.model_copy(update={"model": encoding}))


def test_models_of_other_runs_are_named_by_their_run(recipe):
    models = ("/runs/first/model", "runs/second/model/", "package:minilm/model", "https://host/v1#name", "plain")
    models += ("..", "runs/STAGE2", "../Plain")
    judged = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"models": models})})

    assert [one.name for one in models_to_score(judged)][-8:] == [
        *("first", "second", "minilm", "name", "plain", "model", "STAGE2-2", "Plain-2")
    ]


def test_another_making_of_the_same_stage_is_told_apart():
    first, second = (made("mining", seconds, {}) for seconds in ("12", "13"))

    assert first.execution_id != second.execution_id
    assert first.execution_id.startswith("f-2026")
