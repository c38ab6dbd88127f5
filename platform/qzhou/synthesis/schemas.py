"""Each request's JSON answer as a JSON schema, for endpoints that enforce one."""

from collections.abc import Mapping
from typing import Any

from qzhou.synthesis.techniques import PERSONAS_SHOWN, SynthesisRequest

FIELDS: Mapping[str, tuple[str, ...]] = {
    "paraphrase": ("query", "positive"),
    "text": ("text",),  # a paraphrase of one text of a pair, or of a labelled text
    "augmentation": ("query", "positive", "negative"),
    "hard_negative": ("negative",),
    "query": ("persona", "query"),
    "relevance_check": ("verdict",),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "persona": tuple(map(str, range(1, PERSONAS_SHOWN + 1))),
    "verdict": ("answers", "does_not_answer"),
}


def schema_name(request: SynthesisRequest) -> str:
    """The key in ``FIELDS`` of the answer that a request asks for."""
    if request.technique == "paraphrase" and "text" in request.fields:
        return "text"
    return request.technique


def response_schema(name: str) -> dict[str, Any]:
    """``json_schema`` of OpenAI's ``response_format`` for a name in ``FIELDS``; strict, as their documentation asks."""
    properties: dict[str, dict[str, Any]] = {field: {"type": "string"} for field in FIELDS[name]}
    for field in CHOICES.keys() & properties.keys():
        properties[field]["enum"] = list(CHOICES[field])
    required = list(properties)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"name": name, "strict": True, "schema": schema}
