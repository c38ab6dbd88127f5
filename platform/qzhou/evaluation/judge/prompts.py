"""Which instruction the texts of an mteb task carry, and on which sides.

A task of the recipe's dataset has the instruction that the dataset has in training. A task
of mteb has the recipe's (``[evaluation.instructions]``), or else the one that mteb
declares. The QZhou-Embedding evaluation scripts put it before the queries alone in
retrieval, and before both sides in every other type of task.
"""

from collections.abc import Mapping
from typing import Any

from qzhou.data.prompts import Prompt

BARE_DOCUMENTS = {"Retrieval", "InstructionRetrieval", "InstructionReranking"}
# Retrieval tasks in which queries and documents are texts of the same kind.
BOTH_SIDES = {"ArguAna", "CQADupstackGamingRetrieval", "CQADupstackUnixRetrieval"}


def prompt_of(task: Any, own: Mapping[str, Prompt], instructions: Mapping[str, str]) -> Prompt:
    """The prompt with which a task's texts are encoded.

    Args:
        task: A task of mteb.
        own: Task name -> prompt, of the tasks made of the recipe's datasets.
        instructions: Task name -> instruction, as the recipe sets them.
    """
    metadata = task.metadata
    if metadata.name in own:
        return own[metadata.name]
    symmetric = metadata.type not in BARE_DOCUMENTS or metadata.name in BOTH_SIDES
    return Prompt(instructions.get(metadata.name, _declared(task)), symmetric)


def _declared(task: Any) -> str:
    """The query instruction that mteb declares for a task or for its type."""
    declared = task.metadata.prompt
    if isinstance(declared, Mapping):
        declared = declared.get("query") or next(iter(declared.values()), "")
    return str(declared or getattr(task, "abstask_prompt", "") or "")
