"""Answers of the builtin endpoint: rules instead of a language model, so that everything runs where there is none.

It speaks the protocol over real HTTP on the loopback address, so that the client, the journal and the parsing are
exercised as with a real endpoint, and it answers as ``builtin-rules``, whatever model was asked for, so that no record
passes for an LLM's. Its texts are good enough to try the pipeline and to train on in small doses; for real data name a
real endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from qzhou.synthesis.mock_endpoint import MockEndpoint, serving
from qzhou.synthesis.rules import apply_rules


@contextmanager
def builtin_endpoint() -> Iterator[str]:
    """Serve the rules on a free port for the length of the block; gives the base URL."""
    with serving(MockEndpoint(answer_by_rules)) as url:
        yield url


def answer_by_rules(messages: Sequence[Mapping[str, str]]) -> str:
    """What answers a chat of the synthesis prompts: its first user message holds the request.

    Raises:
        ValueError: It is no chat of theirs.
    """
    try:
        fields = json.loads(messages[1]["content"])
        return json.dumps(apply_rules(fields), ensure_ascii=False)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a request of the synthesis prompts: {error!r}") from None
