"""Experiment files: what they become, and what is said where they cannot be."""

from pathlib import Path

import pytest

from qzhou.errors import DataError, EndpointError, RecipeError, TrainingError
from qzhou.experiments.pipeline import combined_error, max_parallel_trials
from qzhou.experiments.settings import load_experiment

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "recipes" / "experiments").glob("*.toml"))
EXPERIMENT = """
name = "sweep"
recipe = "{root}/recipes/quickstart.toml"
seeds = [1, 2]
scores = [{{ task = "docs_search" }}]
baseline = "low eta"

[settings]
training.stage1.steps = 6

[[variants]]
name = "low eta"
settings = {{ "training.stage2.retrieval_share" = 0.5, "training.stage2.steps" = 8 }}

[[variants]]
name = "search alone"
settings = {{ "training.stage2.retrieval_share" = 1.0 }}
only_datasets = ["docs_search"]
"""


@pytest.fixture
def write(tmp_path):
    """The file above with some of its words replaced; gives its path."""

    def written(*replacements):
        text = EXPERIMENT.format(root=ROOT)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "sweep.toml"
        path.write_text(text, "utf-8")
        return path

    return written


def test_a_trial_is_the_recipe_with_the_settings_of_all_of_the_command_line_and_of_its_variant(write):
    grid = load_experiment(write(), ["--training.stage1.learning_rate", "1e-6", "--run.storage", "/there"])

    assert [(one.variant, one.seed) for one in grid.trials] == [
        ("low eta", 1), ("search alone", 1), ("low eta", 2), ("search alone", 2),
    ]  # fmt: skip
    recipe = grid.trials[2].recipe
    assert (recipe.training.stage1.steps, recipe.training.stage1.learning_rate) == (6, 1e-6)
    assert (recipe.training.stage2.steps, recipe.training.stage2.retrieval_share) == (8, 0.5)
    assert (recipe.run.storage, recipe.run.name) == ("/there/sweep", "low-eta-seed2")
    assert recipe.run.share_stages
    assert recipe.folder == str(ROOT / "recipes")


def test_the_seed_changes_what_is_learned_and_not_what_is_held_out(write):
    grid = load_experiment(write(), seeds=[4, 5])

    assert [(one.recipe.run.seed, one.recipe.training_seed) for one in grid.trials] == [
        (7, 4),
        (7, 4),
        (7, 5),
        (7, 5),
    ]


def test_a_variant_may_train_on_some_datasets_and_is_judged_on_all(write):
    recipe = load_experiment(write()).trials[1].recipe

    assert [one.name for one in recipe.trained_datasets] == ["docs_search"]
    assert len(recipe.datasets) == 3


def test_the_plan_says_what_the_variants_differ_in(write):
    said = str(load_experiment(write(), ["--training.temperature", "0.03"]))

    assert "  all: training.stage1.steps = 6; training.temperature = 0.03\n" in said
    assert "sweep: 2 variants, seeds 1, 2, in runs/sweep" in said
    assert "low eta (baseline): training.stage2.retrieval_share = 0.5; training.stage2.steps = 8" in said
    assert "search alone: training.stage2.retrieval_share = 1.0; trained on docs_search" in said


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_experiment_of_the_project_is_valid(path):
    grid = load_experiment(path)

    assert grid.experiment.name == path.stem
    assert len(grid.trials) == 3 * len(grid.experiment.variants)


def test_the_experiments_of_the_paper_are_there():
    assert {path.stem for path in SHIPPED} == {
        "synthesis", "eta", "grouping", "llm_negatives", "alpha", "cosent_temperature", "query_query", "mining",
        "languages",
    }  # fmt: skip
    shares = {one.recipe.training.stage2.retrieval_share for one in load_experiment(SHIPPED[2]).trials}
    assert shares == {0.5, 0.6, 0.72, 0.8, 0.9}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds =", "sedes =", r"sweep\.toml: sedes: no such setting; did you mean 'seeds'"),
        (
            "only_datasets",
            "only_dataset",
            r"variants\.1\.only_dataset: no such setting; did you mean 'only_datasets'",
        ),
        (
            "stage2.steps",
            "stage2.setps",
            r"variant 'low eta' of .*quickstart\.toml: training\.stage2\.setps: no such",
        ),
        ("= 0.5", "= 1.5", r"variant 'low eta' .*training\.stage2\.retrieval_share: .*less than or equal to 1"),
        (
            '"docs_search"]',
            '"docs_serach"]',
            r"training\.datasets: there is no dataset 'docs_serach'; did you mean",
        ),
        (
            'task = "docs_search"',
            'task = "docs"',
            r"scores: none is held out as a task 'docs'; did you mean 'docs_s",
        ),
        (
            'task = "docs_search"',
            'type = "Retrival"',
            r"none of the tasks is of the type 'Retrival'; did you mean 'Re",
        ),
        ('task = "docs_search"', 'task = "x", type = "STS"', "a score is of a task or of a type"),
        ('baseline = "low eta"', 'baseline = "low"', "baseline: there is no variant 'low'; did you mean 'low eta'"),
        ('"search alone"', '"low-eta"', "'low eta' and 'low-eta' would share the folder low-eta"),
        ('"search alone"', '"???"', r"'\?\?\?' has no letter or digit"),
        (
            'settings = {{ "training.stage2.retrieval_share" = 1.0 }}\nonly_datasets = ["docs_search"]'.format(),
            'settings = { "training.stage2" = { steps = 8, retrieval_share = 0.5 } }',
            "'low eta' and 'search alone' change the same",
        ),
        ("[1, 2]", "[1, 1]", "seeds: 1, 1 names one twice"),
        ('"training.stage2.steps" = 8', '"run.seed" = 8', "low eta: 'run.seed' belongs to the experiment"),
        ("quickstart.toml", "nowhere.toml", r"nowhere\.toml: no such recipe file"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_runs(write, old, new, said):
    with pytest.raises(RecipeError, match=said):
        load_experiment(write((old, new)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.stage2.steps", "3"], r"--training\.stage2\.steps is what the variants differ in \('low eta'"),
        (
            ["--training.datasets", "docs_search"],
            r"--training\.datasets is what the variants differ in \('search alone'",
        ),
        (["--run.name", "x"], r"--run\.name belongs to the experiment"),
        (["--training.seed", "3"], r"--training\.seed belongs to the experiment"),
        (["--training.stage1.setps", "3"], r"no such setting; did you mean 'training\.stage1\.steps'"),
    ],
)
def test_an_override_that_would_undo_the_experiment_is_refused(write, words, said):
    with pytest.raises(RecipeError, match=said):
        load_experiment(write(), words)


@pytest.mark.parametrize(
    ("resources", "gpu", "count"),
    [
        ({"CPU": 4.0}, False, 1),
        ({"CPU": 12.0}, False, 4),
        ({"CPU": 1.0}, False, 1),
        ({"CPU": 64.0, "GPU": 8.0}, True, 4),
        ({"CPU": 64.0}, True, 1),
    ],
)
def test_as_many_trials_run_at_once_as_there_is_room_for_the_hungriest_stage(make_recipe, resources, gpu, count):
    """Two training workers, or two encoders, and a CPU for what reads."""
    recipes = [make_recipe(training={"workers": workers}, cluster={"gpu": gpu}) for workers in (1, 2)]

    assert max_parallel_trials(recipes, resources) == count


def test_trials_that_failed_alike_are_told_once_and_the_kind_of_their_error_stays():
    alike = combined_error({"a-seed1": DataError("no rows"), "a-seed2": DataError("no rows")}, 4)
    mixed = combined_error({"a-seed1": DataError("no rows"), "b-seed1": EndpointError("down")}, 4)

    assert type(alike) is DataError
    assert "2 of 4 trials failed; the same command goes on with them" in str(alike)
    assert str(alike).endswith("a-seed1, a-seed2: no rows")
    assert type(mixed) is TrainingError
    assert "b-seed1: down" in str(mixed)
