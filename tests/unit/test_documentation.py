"""What docs/data.md says is true: its datasets parse, its tables name every reader and rule, its reader reads."""

import io
import re
import tomllib
import typing
from pathlib import Path

from qzhou.dataset import READERS, RULE_TASKS, Dataset
from qzhou.transform.fields import DEFAULT_COLUMNS, OPTIONAL_FIELDS, columns_of

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


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
