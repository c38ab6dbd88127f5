"""Which instruction a task of mteb carries for a model that the recipe trains."""

import mteb
import pytest

from qzhou.evaluation.judge.prompts import prompt_of_trained

BARE = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["x"]}
ASKED = "Find the answer"
E5 = ["query: ", "passage: "]
OF_SCIFACT = "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery: "


@pytest.mark.parametrize(
    ("datasets", "evaluation", "query", "document"),
    [
        ([BARE], {}, "", ""),
        ([BARE | dict(zip(("query_prefix", "document_prefix"), E5, strict=True))], {}, *E5),
        ([BARE | {"instruction": ASKED}], {}, OF_SCIFACT, ""),
        # judged and not trained on
        ([BARE, BARE | {"name": "test", "instruction": ASKED, "eval_fraction": 1.0}], {}, "", ""),
        # the recipe wants it so
        ([BARE], {"tasks": ["SciFact"], "instructions": {"SciFact": ASKED}}, f"Instruct: {ASKED}\nQuery: ", ""),
    ],
)
def test_only_models_that_were_trained_with_instructions_read_those_of_mteb(
    make_recipe, datasets, evaluation, query, document
):
    recipe = make_recipe(datasets=datasets, evaluation=evaluation)

    found = prompt_of_trained(mteb.get_task("SciFact"), {}, recipe)

    assert (found.query_prefix, found.document_prefix) == (query, document)
