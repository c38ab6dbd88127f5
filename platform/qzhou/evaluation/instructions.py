"""Which instruction an mteb task's texts carry, and on which sides.

Tasks of one's own datasets have the instruction that their dataset has in training. Tasks of mteb have the recipe's
(``[evaluation.instructions]``), or else what mteb declares for them, under the rule of the QZhou-Embedding evaluation
scripts: retrieval puts it before queries alone, everything else before both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qzhou.data.prompts import Prompt

BARE_DOCUMENTS = {"Retrieval", "InstructionRetrieval", "InstructionReranking"}
# retrieval of what is alike
BOTH_SIDES = {"ArguAna", "CQADupstackGamingRetrieval", "CQADupstackUnixRetrieval"}


def prompt_of(task: Any, own: Mapping[str, Prompt], instructions: Mapping[str, str]) -> Prompt:
    """How the texts of an mteb task are presented.

    Args:
        task: An mteb task.
        own: Of the recipe's datasets, by the name of their task.
        instructions: Of the recipe, by the name of the task.
    """
    metadata = task.metadata
    if metadata.name in own:
        return own[metadata.name]
    symmetric = metadata.type not in BARE_DOCUMENTS or metadata.name in BOTH_SIDES
    return Prompt(instructions.get(metadata.name, _declared(task)), symmetric)


def _declared(task: Any) -> str:
    """What mteb puts before the queries of a task: its own instruction, or that of its kind."""
    declared = task.metadata.prompt
    if isinstance(declared, Mapping):
        declared = declared.get("query") or next(iter(declared.values()), "")
    return str(declared or getattr(task, "abstask_prompt", "") or "")
