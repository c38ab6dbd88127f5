"""The recipe: what it refuses, and what it says then."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qzhou.config.recipe import load_recipe
from qzhou.config.section import Section
from qzhou.config.training import DEEPSPEED_OWNED
from qzhou.errors import RecipeError

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
RENAMED = ROOT / "platform" / "qzhou" / "config" / "renamed.toml"


def changed(tmp_path, *replacements):
    text = QUICKSTART.read_text("utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "changed.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_of_the_project_loads(recipe):
    assert load_recipe(recipe).run.name == recipe.stem


def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path):
    with pytest.raises(
        RecipeError, match=r"mining\.negative_per_query: no such setting; did you mean 'negatives_per"
    ):
        load_recipe(changed(tmp_path, ("negatives_per_query = 2", "negative_per_query = 2")))


def test_an_old_name_is_refused_with_the_new_one(tmp_path):
    old = {new: name for name, new in tomllib.loads(RENAMED.read_text("utf-8")).items()}

    with pytest.raises(RecipeError, match="no such setting; did you mean 'eval_fraction'"):
        load_recipe(changed(tmp_path, ("eval_fraction =", f"{old['eval_fraction']} =")))
    with pytest.raises(RecipeError, match=r"did you mean 'cluster\.mining\.cpus'"):
        load_recipe(QUICKSTART, [f"--cluster.{old['mining']}.cpus", "2"])


def test_an_unknown_key_inside_a_dataset_names_the_dataset_and_the_key(tmp_path):
    with pytest.raises(RecipeError, match=r"datasets\.0\.redaer: no such setting; did you mean 'reader'"):
        load_recipe(changed(tmp_path, ('name = "docs_search"\nreader', 'name = "docs_search"\nredaer')))


def test_a_wrong_type_names_the_key_and_the_value(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.stage1\.steps: .*integer.*found 'many'") as raised:
        load_recipe(changed(tmp_path, ("[training.stage1]\nsteps = 24", '[training.stage1]\nsteps = "many"')))

    assert len(str(raised.value).splitlines()) == 1, "what follows from it is no second mistake"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("synthesis.api_key_env", "sk-hunter2"),
        ("synthesis.endpoint", "https://user:hunter2@host/v1"),  # pragma: allowlist secret
        ("run.storage", "s3://AKIAEXAMPLE:hunter2@bucket/runs"),  # pragma: allowlist secret
        ("run.storage", "s3://bucket/runs?access_key=AKIAEXAMPLE&secret_key=hunter2"),
        ("mining.teacher", "https://host/v1?api_key=hunter2#model"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(setting, value):
    with pytest.raises(RecipeError, match=f"{setting}: .*not shown") as raised:
        load_recipe(QUICKSTART, [f"--{setting}", value])

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "value", ["s3://bucket/runs?region=eu-west-1", "abfs://container@account.dfs.core.windows.net/r"]
)
def test_an_address_without_a_secret_is_none(value):
    recipe = load_recipe(QUICKSTART, ["--run.storage", value])

    assert recipe.run.storage == value


def test_settings_that_contradict_each_other_are_refused_with_both_values():
    with pytest.raises(RecipeError, match=r"rank_to \(3\) is below mining\.rank_from \(10\)"):
        load_recipe(QUICKSTART, ["--mining.rank_to", "3"])


@pytest.mark.parametrize("ratio", ["10", "1.01", "0", "-0.5", "nan"])
def test_a_ratio_that_is_no_share_is_refused_with_the_way_to_switch_it_off(ratio):
    with pytest.raises(RecipeError, match=rf"mining\.positive_ratio: {ratio} is no share of a score; .* or 'off'"):
        load_recipe(QUICKSTART, ["--mining.positive_ratio", ratio])


def test_the_ratio_is_switched_off_in_a_file_and_on_the_command_line(tmp_path):
    off = changed(tmp_path, ("[mining]", '[mining]\npositive_ratio = "off"'))

    assert load_recipe(off).mining.positive_ratio is None
    assert load_recipe(QUICKSTART, ["--mining.positive_ratio", "off"]).mining.positive_ratio is None
    assert load_recipe(off, ["--mining.positive_ratio", "1.0"]).mining.positive_ratio == 1.0


def test_parameters_of_an_index_that_has_none_are_refused_with_both_values():
    with pytest.raises(
        RecipeError, match=r"index_parameters is 'nprobe=32', and mining\.index is 'Flat', .* leave"
    ):
        load_recipe(QUICKSTART, ["--mining.index_parameters", "nprobe=32"])


def test_more_training_negatives_than_mined_ones_are_refused():
    with pytest.raises(RecipeError, match=r"training\.negatives_per_query \(5\) is above .* \(2\)"):
        load_recipe(QUICKSTART, ["--training.negatives_per_query", "5"])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (200, 20), (32_000, 300)])
def test_the_warm_up_fits_the_stage_where_the_recipe_names_none(make_recipe, steps, warmup):
    stages = {"stage1": {"steps": steps, "learning_rate": 1e-4, "batch_size": 4}}

    assert make_recipe(training=stages).training.stage1.warmup_steps == warmup


def test_a_warm_up_longer_than_its_stage_is_refused_with_both_values(make_recipe):
    stages = {"stage1": {"steps": 20, "warmup_steps": 300, "learning_rate": 1e-4, "batch_size": 4}}

    with pytest.raises(RecipeError, match=r"warmup_steps \(300\) is above training.stage1.steps \(20\)"):
        make_recipe(training=stages)


def test_two_datasets_of_one_name_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="'docs_search' is used 2 times"):
        load_recipe(changed(tmp_path, ('name = "docs_package"', 'name = "docs_search"')))


def test_a_missing_file_is_named():
    with pytest.raises(RecipeError, match=r"nowhere\.toml: no such recipe file"):
        load_recipe("nowhere.toml")


def test_a_file_that_is_not_toml_is_said_to_be_none(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[run\n")

    with pytest.raises(RecipeError, match="not a TOML file"):
        load_recipe(path)


def test_a_dotted_override_replaces_one_setting_and_leaves_its_neighbours():
    recipe = load_recipe(QUICKSTART, ["--training.stage1.steps", "20"])

    assert recipe.training.stage1.steps == 20
    assert recipe.training.stage1.batch_size == 64


def settings_of(section, prefix=""):
    """Dotted name and value of each setting that is a number, a text, a truth value or a choice."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from settings_of(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str) and value != "":
            yield prefix + name, value


def test_every_setting_is_understood_as_text_as_a_command_line_gives_it():
    """Defect of a first version: ZeRO stages were a choice of numbers, and a flag's text is no number."""
    recipe = load_recipe(QUICKSTART)
    flags = dict(settings_of(recipe))
    assert len(flags) > 100

    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    again = load_recipe(QUICKSTART, words)

    assert dict(settings_of(again)) == flags


@pytest.mark.parametrize("name", sorted(DEEPSPEED_OWNED))
def test_deepspeed_is_not_told_past_the_recipe(make_recipe, name):
    outer, _, inner = name.partition(".")
    with pytest.raises(RecipeError, match=rf"deepspeed has settings that the recipe decides otherwise \({name}: "):
        make_recipe(training={"deepspeed": {outer: {inner: 1} if inner else 1}})


def test_an_unknown_override_is_answered_with_the_nearest_flag():
    with pytest.raises(RecipeError, match=r"did you mean 'training\.stage1\.steps'"):
        load_recipe(QUICKSTART, ["--training.stage1.stepps", "20"])


def test_loading_a_recipe_loads_neither_torch_nor_ray():
    code = (
        "import sys; from qzhou.config.recipe import load_recipe; "
        f"load_recipe({str(QUICKSTART)!r}); print(*sys.modules)"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "qzhou.config.recipe" in loaded
    assert not {"torch", "ray", "transformers", "datasets"} & set(loaded)


def test_the_saved_prompts_are_the_prefixes_that_training_uses():
    recipe = load_recipe(ROOT / "recipes" / "qzhou-7b.toml")

    for dataset in recipe.datasets:
        assert recipe.prompts[dataset.name] + "x" == dataset.prompt.query("x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "title_boddy"}, r"datasets\.0\.rule: Input should be 'title_body'"),
        ({"reader": "jsnl"}, r"no such reader 'jsnl'; known: jsonl, json"),
        ({"encoding": "utf9"}, r"no such encoding 'utf9'; try 'utf-8'"),
        ({"encoding": "base64"}, "no such encoding 'base64'"),
        ({"languages": ["english"]}, r"datasets\.0\.languages\.0: String should match pattern"),
        ({"reader": "csv", "delimiter": "ab"}, r"delimiter is 'ab'; csv splits at one character"),
        ({"quote": "''"}, "it is one character, or '' for none"),
        ({"rule": "qrels"}, "rule 'qrels' joins three inputs: give 'corpus'"),
        ({"corpus": {"reader": "jsonl", "paths": ["x"]}}, "'corpus' belongs to the rule 'qrels'"),
        ({"negative_grade": 1.0}, r"negative_grade \(1\) must be below positive_grade \(1\)"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_in_one_line(make_recipe, settings, said):
    dataset = {"name": "d", "reader": "jsonl", "rule": "title_body", "paths": ["x"], **settings}

    with pytest.raises(RecipeError, match=said) as raised:
        make_recipe(datasets=[dataset])

    assert len(str(raised.value).splitlines()) == 1


def test_only_training_follows_a_seed_of_its_own():
    whole, own = load_recipe(QUICKSTART), load_recipe(QUICKSTART, ["--training.seed", "3"])

    assert (whole.run.seed, whole.training_seed) == (7, 7)
    assert (own.run.seed, own.training_seed) == (7, 3)


def test_training_may_leave_datasets_out_that_are_judged_all_the_same():
    recipe = load_recipe(QUICKSTART, ["--training.datasets", "docs_search,docs_siblings"])

    assert [one.name for one in recipe.trained_datasets] == ["docs_search", "docs_siblings"]
    assert len(recipe.datasets) == 3


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("docs_serach", r"training\.datasets: there is no dataset 'docs_serach'; did you mean 'docs_search'"),
        (
            "docs_siblings",
            r"training\.stage1\.steps is \d+, and stage 1 trains on retrieval alone.*stage2\.retrieval_share is 0\.72",
        ),
        ("docs_search", r"training\.stage2\.retrieval_share is 0\.72, but every dataset that is trained"),
    ],
)
def test_datasets_to_train_on_that_cannot_be_are_refused(names, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(QUICKSTART, ["--training.datasets", names])


def test_stage_2_trains_on_everything_unless_the_recipe_says_otherwise(tmp_path):
    unsaid = changed(tmp_path, ("retrieval_share = 0.72\n", ""))

    assert load_recipe(unsaid).training.stage2.retrieval_share == 0.72
    assert load_recipe(unsaid).training.stage1.retrieval_share == 1.0
    assert load_recipe(unsaid, ["--training.stage2.retrieval_share", "1"]).training.stage2.retrieval_share == 1.0
    assert load_recipe(unsaid, ["--training.datasets", "docs_search"]).training.stage2.retrieval_share == 1.0


def test_a_recipe_without_retrieval_trains_in_stage_2_alone(tmp_path):
    pairs = ["--training.datasets", "docs_siblings", "--training.stage1.steps", "0"]
    unsaid = changed(tmp_path, ("retrieval_share = 0.72\n", ""))

    found = load_recipe(unsaid, pairs)

    assert found.training.stages == ("stage2",)
    assert found.training.stage2.retrieval_share == 0.0
    assert load_recipe(unsaid).training.stages == ("stage1", "stage2")


def test_a_table_of_stage_1_that_is_forgotten_is_no_wish(tmp_path):
    text = QUICKSTART.read_text("utf-8")
    start, end = text.index("[training.stage1]"), text.index("[training.stage2]")
    place = tmp_path / "recipe.toml"
    place.write_text(text[:start] + text[end:], "utf-8")

    with pytest.raises(RecipeError, match=r"training\.stage1 is missing.* steps = 0 trains in stage 2 only"):
        load_recipe(place)
    with pytest.raises(RecipeError, match=r"training\.stage2\.steps is 0"):
        load_recipe(QUICKSTART, ["--training.stage2.steps", "0"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.stage1.retrieval_share", "0.5"], "stage 1 trains on retrieval alone"),
        (
            ["--evaluation.instructions", '{"docs_search": "x"}'],
            "'docs_search' is a dataset, which is judged with the",
        ),
        (["--evaluation.instructions", '{"SciFact": "x"}'], "no task that is judged: evaluation.tasks is empty"),
        (["--training.loss.focal", "0.5"], "has no finite gradient where a positive is certain"),
        (["--training.stage1.learning_rate", "inf"], "finite number"),
        (
            ["--training.distillation.kind", "listwise", "--training.distillation.teacher", "x"],
            "name the model in mining.reranker or mining.teacher, and leave this one out",
        ),
        (["--training.distillation.teacher_temperature", "0.1"], "teacher_temperature is 0.1 and kind 'scores'"),
        (
            ["--training.distillation.kind", "listwise", "--training.negatives_per_query", "0"],
            "a list needs a negative beside the positive",
        ),
        (["--mining.relabel_from", "0.5"], "there is no mining.reranker, by whose scores it goes"),
        (
            ["--training.distillation.kind", "listwise", "--mining.extra_teachers", "x"],
            "name a mining.reranker, or one teacher",
        ),
    ],
)
def test_settings_that_could_only_fail_later_are_refused_at_once(words, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(QUICKSTART, words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--training.distillation.kind", "listwise"], 0.02),
        (["--training.distillation.kind", "listwise", "--training.distillation.temperature", "0.1"], 0.1),
        (["--training.distillation.kind", "listwise", "--mining.reranker", "x"], 0.2),
        (["--training.distillation.kind", "listwise", "--training.distillation.teacher_temperature", "0.3"], 0.3),
    ],
)
def test_a_temperature_fits_the_scores_that_are_learned(words, expected):
    assert load_recipe(QUICKSTART, words).training.distillation.teacher_temperature == expected


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "negatives_per_query = 2",
            'negatives_per_query = "2"',
            "mining.negatives_per_query: '2' stands in quotes",
        ),
        ("[mining]", '[mining]\npositive_ratio = "0.9"', "mining.positive_ratio: '0.9' stands in quotes"),
        ("[training]", '[training]\nquery_query = "false"', "training.query_query: 'false' stands in quotes"),
        ("[training]", '[training]\nzero_stage = "1"', "training.zero_stage: '1' stands in quotes"),
        ("[training]", '[training]\nmin_workers = " 1"', "training.min_workers: ' 1' stands in quotes"),
        ("[[datasets]]", '[[datasets]]\nchunk_overlap = "5"', "datasets.chunk_overlap: '5' stands in quotes"),
    ],
)
def test_a_number_in_quotes_is_refused(tmp_path, before, after, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(changed(tmp_path, (before, after)))
