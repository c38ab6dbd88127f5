"""The reference of settings is made from the models: what it says is what a recipe is checked against."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator

from qzhou.config.recipe import Recipe
from qzhou.config.section import Section
from qzhou.experiments.settings import Experiment

CODE = Path(__file__).parents[2] / "docs" / "_ext" / "recipe_tables.py"


@pytest.fixture(scope="module")
def tables():
    """The module as the site imports it: its folder is no package."""
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location("recipe_tables", CODE)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "recipe_tables", module)  # dataclasses look themselves up
        spec.loader.exec_module(module)
        yield module


class Inner(Section):
    """A table inside."""

    size: Annotated[int, Field(ge=1)] = Field(3, description="How | large.")


class Outer(Section):
    """Not shown."""

    inner: Inner = Inner()
    several: tuple[Inner, ...] = Field((), description="More of them.")
    kind: Literal["a", "b"] | None = Field(None, description="Which.")
    wait_s: Annotated[float, Field(gt=0)] = Field(description="How long.")

    @field_validator("wait_s")
    @classmethod
    def _not_too_long(cls, value: float) -> float:
        if value > 9:
            raise ValueError(f"{value:g} is too long; take 9 or less")
        return value


@pytest.mark.parametrize("root", [Recipe, Experiment])
def test_every_setting_and_every_table_says_what_it_does(tables, root):
    for model in (root, *(table.model for table in tables.tables(root))):
        assert model.__doc__, model
        for name, field in model.model_fields.items():
            is_table = tables.section_of(field.annotation)[0]
            assert is_table or field.description, f"{model.__name__}.{name} has no description"


def test_a_row_has_type_unit_default_and_description_and_refusals_are_listed(tables):
    lines = tables.reference(Outer).splitlines()

    assert '| <a id="top-wait-s"></a>`wait_s` | number > 0, seconds<br>**required** | How long. |' in lines
    assert '| <a id="top-kind"></a>`kind` | `"a"` \\| `"b"`<br>not set | Which. |' in lines
    assert "## `[inner]`, `[[several]]`" in lines
    assert '| <a id="inner-size"></a>`size` | integer ≥ 1<br>default `3` | How \\| large. |' in lines
    assert "- … is too long; take 9 or less" in lines


def test_every_setting_of_a_recipe_is_in_its_reference(tables):
    page = tables.reference(Recipe)

    for table in tables.tables(Recipe):
        assert f"## {table.heading}\n" in page
        for name, field in table.model.model_fields.items():
            if field.description:
                anchor = f"{table.anchor}-{name.replace('_', '-')}"
                assert f'<a id="{anchor}"></a>`{name}`' in page
    assert "computed" in re.search(r".*stage1-warmup-steps.*", page)[0]


def test_what_the_recipe_refuses_stands_in_the_words_of_its_messages(tables, make_recipe):
    page = tables.reference(Recipe).replace("\\", "")

    with pytest.raises(Exception, match="raise rank_to") as refused:
        make_recipe(mining={"rank_from": 9, "rank_to": 3})
    assert "mining.rank_to (3) is below mining.rank_from (9); raise rank_to" in str(refused.value)
    assert "- mining.rank_to (…) is below mining.rank_from (…); raise rank_to" in page
    for words in ("two examples each", "cluster.gpu is false", "is no URL", "max_replicas (…) must not"):
        assert words in page, words
