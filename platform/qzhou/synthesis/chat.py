"""One exchange with an LLM: what is sent, what is answered, and the key under which the answer is cached. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """Messages for one model, and the answer's JSON schema if endpoints can enforce it."""

    model: str
    messages: Sequence[Message]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an endpoint answered.

    Attributes:
        key: Of the request, see :func:`request_key`.
        model: What the endpoint calls itself.
        cost: Money at the recipe's prices.
        finish_reason: As the endpoint says: ``length`` where the answer was cut.
    """

    key: str
    model: str
    content: str
    prompt_tokens: int
    completion_tokens: int
    cost: float = 0.0
    finish_reason: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it says something to its end; others are paid, too, but are asked for again by the next attempt."""
        return bool(self.content.strip()) and self.finish_reason != "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult:
    """How a request ended: with an answer, or with the reason why there is none.

    ``reused`` answers come from the response cache or from an identical request, and cost
    nothing.
    """

    answer: Answer | None
    reused: bool = False
    failure: str = ""


def request_key(model: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
    """SHA-256 of everything that the answer depends on, as canonical JSON."""
    sent = {"model": model, "messages": list(messages), **sampling}
    content = json.dumps(sent, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
