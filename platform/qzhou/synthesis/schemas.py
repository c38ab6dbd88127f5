"""The forms that answers take: one JSON object a technique, as JSON schemas for endpoints that enforce them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qzhou.synthesis.techniques import DIFFICULTIES, QUESTION_TYPES, ChatRequest

FIELDS: Mapping[str, tuple[str, ...]] = {
    "paraphrase": ("query", "positive"),
    "text": ("text",),  # a paraphrase of a pair's side, or of a labelled text
    "augmentation": ("query", "positive", "negative"),
    "hard_negative": ("negative",),
    "query_configuration": ("persona", "question_type", "difficulty"),
    "query": ("query",),
    "judge": ("verdict",),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "question_type": QUESTION_TYPES,
    "difficulty": DIFFICULTIES,
    "verdict": ("answers", "does_not_answer"),
}


def form_of(request: ChatRequest) -> str:
    """The name of the form in which a request wants its answer."""
    return (
        "text"
        if request.technique == "paraphrase" and "text" in request.fields
        else request.technique
    )


def schema_of_answer(form: str) -> dict[str, Any]:
    """``json_schema`` of OpenAI's ``response_format``; strict, as their documentation asks."""
    properties = {
        name: {"type": "string", **({"enum": list(CHOICES[name])} if name in CHOICES else {})}
        for name in FIELDS[form]
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"name": form, "strict": True, "schema": schema}
