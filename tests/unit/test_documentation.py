"""What the pages of docs/ say is true: their settings parse, their tables are whole, their code runs."""

import dataclasses
import importlib
import io
import json
import re
import tomllib
import typing
from pathlib import Path

import pytest

from qzhou.config.cluster import ClusterSection
from qzhou.config.dataset import READERS, RULE_TASKS, Dataset
from qzhou.config.mining import MiningSection
from qzhou.config.model import ModelSection
from qzhou.config.section import Section
from qzhou.config.serving import ServingSection
from qzhou.config.synthesis import SynthesisSection
from qzhou.evaluation.diagnosis import Facts
from qzhou.evaluation.diagnosis.checks import CHECKS
from qzhou.experiments.settings import load_experiment
from qzhou.serving.keys import ApiKeys
from qzhou.serving.observing import ROUTES
from qzhou.serving.schemas import EmbeddingRequest
from qzhou.transform.rules.fields import DEFAULT_COLUMNS, OPTIONAL_FIELDS, columns_of
from tests.llm_faults import Behaviour

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = DOCS.parent / "recipes"
PAGES = ("data", "synthesis", "mining", "evaluation", "experiments", "serving")
TEXT, SYNTHESIS, MINING, EVALUATION, EXPERIMENTS, SERVING = (
    (DOCS / f"{name}.md").read_text("utf-8") for name in PAGES
)


@pytest.fixture(scope="module")
def pages():
    """The script that fills the pages, as `make docs` runs it: its folder is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        yield importlib.import_module("fill_pages")


def test_what_is_made_stands_in_the_pages_as_it_would_be_made_now(pages):
    made = dict(pages.files())

    assert {path.name for path in made} > {
        "benchmarks.md",
        "design.md",
        "experiments.md",
        "recipe.md",
        "encode.svg",
    }
    old = [path.name for path, wanted in made.items() if path.read_text("utf-8") != wanted]
    assert old == [], "run `make docs`"


def test_every_package_has_its_messages_on_the_page_each_with_a_link_of_its_own(pages):
    package = DOCS.parent / "platform" / "qzhou"
    folders = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {name for names in pages.error_tables.GROUPS.values() for name in names} == folders
    page = pages.error_tables.reference()
    anchors = re.findall(r'<a id="([^"]*)"', page)
    assert len(anchors) == len(set(anchors)) > 200
    assert "no file matches" in page
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*(-\w+)+", one) for one in anchors)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- made: gold -->\n<!-- end -->", "page.md: 'made: gold': known are settings of a recipe"),
        ("<!-- made: levels of the package -->\n\nand no end", "needs its '<!-- end -->'"),
    ],
)
def test_what_nobody_makes_cannot_be_asked_for(pages, text, said):
    with pytest.raises(ValueError, match=said):
        pages.filled(f"# A page\n\n{text}\n", "page.md")


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


MADE = re.compile(r"<!-- made: .*?<!-- end -->", re.DOTALL)
BLOCK = re.compile(r"```.*?```", re.DOTALL)
LONGEST = 25  # words of a sentence


def sentences(page):
    """Those of paragraphs, list items and table cells; code counts as one word, a link as what it shows."""
    text = BLOCK.sub("", MADE.sub("", page))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`\n]*`", "x", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*[-|#*]|\s*\d+\. )", text):
        if not block.strip().startswith("#"):
            for part in block.split("|"):
                yield from re.split(
                    r"(?<=[.!?:;])\s+(?=[\"'(*A-Z0-9`x])", " ".join(part.split()).removeprefix("- ")
                )


PROSE = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_sentences_are_short(path):
    assert [one for one in sentences(path.read_text("utf-8")) if len(one.split()) > LONGEST] == []


def test_long_sentences_are_seen_wherever_they_stand():
    long = "one word and " * 9 + "end."

    for page in (
        long,
        f"- {long}",
        f"| a | {long} |",
        f"Short. {long.capitalize()}",
        f"See [a page](x.md): {long.capitalize()}",
    ):
        assert [len(one.split()) for one in sentences(page) if len(one.split()) > LONGEST] == [28], page
    for page in (f"```\n{long}\n```", f"`{long}`", f"<!-- made: x -->\n{long}\n<!-- end -->", f"## {long}"):
        assert not [one for one in sentences(page) if len(one.split()) > LONGEST], page


def test_the_readme_is_short():
    assert len((DOCS.parent / "README.md").read_text("utf-8").splitlines()) <= 125


def test_every_dataset_of_the_page_is_valid():
    found = [one for block in blocks("toml") for one in tomllib.loads(block)["datasets"]]

    assert len(found) == 4
    for one in found:
        columns_of(Dataset.model_validate(one))


def test_the_tables_name_every_reader_and_every_rule_with_its_fields():
    readers, rules = TEXT.split("## Rules")
    for reader in READERS:
        assert f"| `{reader}` |" in readers
    for rule in RULE_TASKS:
        (row,) = [line for line in rules.splitlines() if line.startswith("|") and f"`{rule}`" in line.split("|")[1]]
        for field in (*DEFAULT_COLUMNS[rule], *OPTIONAL_FIELDS.get(rule, ())):
            assert f"`{field}`" in row, (rule, field)


def test_the_reader_of_the_page_reads():
    scope: dict[str, typing.Any] = {}
    exec(blocks("python")[0], scope)

    assert list(scope["rows"](io.BytesIO(b"why::because\n"))) == [{"question": "why", "answer": "because\n"}]


def test_the_settings_of_the_synthesis_page_are_valid_and_its_endpoint_takes_its_flags():
    one, several, local, filters = (
        SynthesisSection.model_validate(tomllib.loads(block)["synthesis"]) for block in blocks("toml", SYNTHESIS)
    )
    (command,) = blocks("sh", SYNTHESIS)

    assert local.local_models == ("Qwen/Qwen3-4B-Instruct-2507",)
    assert (one.max_cost, [model.model for model in several.pool], filters.filters.min_positive_score) == (
        25.0, ["large", "qwen2.5-7b-instruct"], 0.4,
    )  # fmt: skip
    flags = set(re.findall(r"--(\w+)", command)) - {"port"}
    assert flags <= {field.name for field in dataclasses.fields(Behaviour)}
    for setting in ("paraphrase_rows", "augment_rows", "hard_negative_rows", "query_rows"):
        assert f"| `{setting}` |" in SYNTHESIS


def test_the_mining_page_names_every_setting_and_its_recipe_is_the_default():
    (block,) = blocks("toml", MINING)
    fields = {**MiningSection.model_fields, **ClusterSection.model_fields}
    # tables: recipe.md
    settings = {name for name, field in fields.items() if not isinstance(field.default, Section)}

    assert MiningSection.model_validate(tomllib.loads(block)["mining"]) == MiningSection()
    assert {name for name in settings if not re.search(rf"\b{name}\b", MINING)} <= {
        "teacher_api_key_env", "sampling_temperature"
    }  # fmt: skip
    assert {"encoding_dtype", "compiled"} <= set(ModelSection.model_fields)


def test_the_evaluation_page_names_every_sign_in_its_order_and_settings_that_there_are(make_recipe):
    page = EVALUATION.partition("## Diagnosis")[2]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    facts = Facts(settings=make_recipe().model_dump(mode="json"))

    assert [row[1].strip(" `") for row in rows] == [check.__name__ for check in CHECKS]
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row[4]):
            setting = name.replace("<stage>", "stage2")
            assert setting.startswith("datasets.") or facts.setting(setting)
    (example,) = blocks("json", page)
    assert set(json.loads(example)) == {"findings", "skipped"}


def test_the_experiment_of_the_page_is_valid_and_every_one_of_the_project_is_listed(tmp_path):
    (block,) = blocks("toml", EXPERIMENTS)
    path = tmp_path / "eta.toml"
    path.write_text(block, "utf-8")

    plan = load_experiment(path, recipe=str(RECIPES / "quickstart.toml"))

    assert [one.recipe.training.stage2.retrieval_share for one in plan.trials[:3]] == [0.72, 0.9, 1.0]
    listed = re.findall(r"^\| `(\w+\.toml)` \|.*\| (\S+) \|$", EXPERIMENTS, re.MULTILINE)
    recipes = {file.name: Path(load_experiment(file).experiment.recipe).stem for file in RECIPES.glob("*/*.toml")}
    assert dict(listed) == recipes


def test_the_settings_routes_and_fields_of_the_serving_page_exist(tmp_path):
    serving, keys = blocks("toml", SERVING)
    ServingSection.model_validate(tomllib.loads(serving)["serving"])
    (tmp_path / "keys.toml").write_text(keys.replace('"..."', f'"{"0" * 64}"'), "utf-8")
    assert ApiKeys(file=str(tmp_path / "keys.toml")).asked
    (request,) = blocks("json", SERVING)
    EmbeddingRequest.model_validate_json(request)

    named = set(re.findall(r"`serving\.([a-z_]+)`", SERVING))
    limits = re.search(r"## Limits and overload(.*?)##", SERVING, re.DOTALL)[1]
    named |= {name for name in re.findall(r"`([a-z_]+)`", limits) if name.startswith("max_")}
    assert named <= set(ServingSection.model_fields)
    assert set(re.findall(r"`(?:GET|POST) (/[a-z0-9/]*)`", SERVING)) - {"/openapi.json"} == set(ROUTES)
    fields = {*re.findall(r"^\| `([a-z_]+)` \|", SERVING, re.MULTILINE)}
    assert fields <= set(EmbeddingRequest.model_fields)
