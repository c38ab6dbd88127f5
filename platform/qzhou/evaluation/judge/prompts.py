"""Which instruction the texts of an mteb task carry, and on which sides.

A task of the recipe's dataset has the instruction that the dataset has in training. A task
of mteb has the recipe's (``[evaluation.instructions]``), or else the one that mteb
declares. The QZhou-Embedding evaluation scripts put it before the queries alone in
retrieval, and before both sides in every other type of task. Where nothing was trained with
an instruction, tasks of mteb have none: it would cost more than training gains (LOG.md).
A model that this recipe did not train is judged with the prompts that its own files declare.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.config.evaluation import EvaluationSection
from qzhou.config.recipe import Recipe
from qzhou.data.prompts import Prompt, declared_prompt

BARE_DOCUMENTS = {"Retrieval", "InstructionRetrieval", "InstructionReranking"}
# types whose texts mteb tells apart as queries and documents
TWO_SIDED = BARE_DOCUMENTS | {"Reranking"}
# Retrieval tasks in which queries and documents are texts of the same kind.
BOTH_SIDES = {"ArguAna", "CQADupstackGamingRetrieval", "CQADupstackUnixRetrieval"}


def prompt_of_trained(
    task: Any, own: Mapping[str, Prompt], recipe: Recipe, aggregates: Sequence[str] = ()
) -> Prompt:
    """The prompt of a task's texts for the models that a recipe trains.

    Args:
        task: A task of mteb.
        own: Task name -> prompt, of the tasks made of the recipe's datasets.
        recipe: Of the run.
        aggregates: As for :func:`prompt_of`.
    """
    named = {*own, *recipe.evaluation.instructions}
    if recipe.trains_with_instructions or named & {task.metadata.name, *aggregates}:
        return prompt_of(task, own, recipe.evaluation, aggregates)
    return prompt_of_model(task, recipe.prompts)


def prompt_of(
    task: Any, own: Mapping[str, Prompt], settings: EvaluationSection, aggregates: Sequence[str] = ()
) -> Prompt:
    """The prompt with which a task's texts are encoded.

    Args:
        task: A task of mteb.
        own: Task name -> prompt, of the tasks made of the recipe's datasets.
        settings: Of the recipe: task name -> instruction, and how it stands before a query.
        aggregates: Aggregate tasks to which it belongs, whose instruction it has if it has none of its own.
    """
    metadata = task.metadata
    if metadata.name in own:
        return own[metadata.name]
    symmetric = metadata.type not in BARE_DOCUMENTS or metadata.name in BOTH_SIDES
    named = settings.instructions
    set_for = [named[name] for name in (metadata.name, *aggregates) if name in named]
    instruction = set_for[0] if set_for else _declared(task)
    return Prompt(instruction, symmetric, template=settings.instruction_template)


def prompt_of_model(task: Any, prompts: Mapping[str, str]) -> Prompt:
    """The prompt that a model's files declare for a task, chosen as mteb chooses it; bare texts where they have none.

    Args:
        task: A task of mteb.
        prompts: Name -> prefix. The name is a task, a type of task, either followed by ``-query`` or ``-document``,
            or a side: ``query``, ``document`` (``passage``, ``corpus``).
    """
    name, kind = task.metadata.name, task.metadata.type
    if kind not in TWO_SIDED:
        prefix = prompts.get(name, prompts.get(kind, ""))
        return Prompt(symmetric=True, prefixes=(prefix, prefix))
    sides = declared_prompt(prompts) or Prompt(prefixes=("", ""))
    found = []
    for side, prefix in (("query", sides.query_prefix), ("document", sides.document_prefix)):
        names = (f"{name}-{side}", name, f"{kind}-{side}", kind)
        found.append(next((prompts[one] for one in names if one in prompts), prefix))
    return Prompt(prefixes=(found[0], found[1]))


def _declared(task: Any) -> str:
    """The query instruction that mteb declares for a task or for its type."""
    declared = task.metadata.prompt
    if isinstance(declared, Mapping):
        declared = declared.get("query") or next(iter(declared.values()), "")
    return str(declared or getattr(task, "abstask_prompt", "") or "")
