"""The builtin endpoint: rules instead of a language model, inside the process.

It needs neither a network nor a key, so that the whole pipeline can be tried offline. It is
used like an endpoint of the SDK, and every answer names ``builtin-rules`` as its model, so
that no record passes for an LLM's. For real data name a real endpoint.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.config.synthesis import BUILTIN_MODEL
from qzhou.synthesis.builtin_rules import apply_rules


class BuiltinEndpoint:
    """Answers chat requests of the synthesis prompts by rules; see :class:`qzhou.synthesis.client.ChatEndpoint`."""

    async def post(self, path: str, *, cast_to: type[object], body: Mapping[str, Any]) -> object:
        """The chat completion for ``body``; ``path`` and ``cast_to`` are the SDK's.

        Raises:
            ValueError: The messages are no chat of the synthesis prompts.
        """
        del path, cast_to
        return completion(body, answer_by_rules(body["messages"]))

    async def close(self) -> None:
        """Nothing is open."""


def answer_by_rules(messages: Sequence[Mapping[str, str]]) -> str:
    """The answer to a synthesis chat, whose first user message holds the request.

    Raises:
        ValueError: It is no such chat.
    """
    try:
        fields = json.loads(messages[1]["content"])
        return json.dumps(apply_rules(fields), ensure_ascii=False)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a request of the synthesis prompts: {error!r}") from None


def completion(request: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The body of a chat completion, in OpenAI's format. Words are counted as tokens."""
    prompt_tokens = sum(len(str(message["content"]).split()) for message in request["messages"])
    completion_tokens = len(content.split())
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-builtin",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": BUILTIN_MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
