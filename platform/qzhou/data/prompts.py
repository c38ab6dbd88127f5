"""The only place where a prompt is put together.

Training, mining, evaluation, the exported model and the endpoint all take their text from
here, so that an instruction is byte-identical everywhere. The template is the one of the
official QZhou-Embedding evaluation scripts: a space follows ``Query:`` (its README leaves
it out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

DOCUMENT_NAMES = ("document", "passage", "corpus")  # of a model's prompt for documents
TEMPLATE = "Instruct: {instruction}\nQuery: "
EMPTY_TEXT = "Null"  # what the official embedder encodes for an empty string


@dataclass(frozen=True, slots=True)
class Prompt:
    """How the texts of one dataset or task are presented to the encoder.

    Attributes:
        instruction: The task in one sentence; empty for none.
        symmetric: Whether both sides have the prompt of queries (STS, classification, clustering,
            pair classification, reranking). Retrieval is asymmetric.
        prefixes: Before a query and before a document, byte for byte, in place of the template.
        template: How an instruction stands before a query, with ``{instruction}`` in it.
    """

    instruction: str = ""
    symmetric: bool = False
    prefixes: tuple[str, str] | None = None
    template: str = TEMPLATE

    @property
    def query_prefix(self) -> str:
        """The text before each query; empty for an empty instruction."""
        if self.prefixes is not None:
            return self.prefixes[0]
        return self.template.replace("{instruction}", self.instruction) if self.instruction else ""

    @property
    def document_prefix(self) -> str:
        """The text before each document; with an instruction, documents of retrieval stay bare."""
        if self.symmetric:
            return self.query_prefix
        return self.prefixes[1] if self.prefixes is not None else ""

    def with_instruction(self, instruction: str) -> Prompt:
        """The prompt of a query that has an instruction of its own; the same where that is empty."""
        return replace(self, instruction=instruction) if instruction else self

    def query(self, text: str) -> str:
        """A query with its prefix, ready for the tokenizer."""
        return self.query_prefix + (text or EMPTY_TEXT)

    def document(self, text: str) -> str:
        """A document with its prefix, ready for the tokenizer."""
        return self.document_prefix + (text or EMPTY_TEXT)


def declared_prompt(prompts: Mapping[str, str]) -> Prompt | None:
    """The prefixes of queries and documents among the ``prompts`` of a sentence-transformers model; None without any.

    Args:
        prompts: Name -> prefix. Documents' is named ``document``, ``passage`` or ``corpus``.
    """
    found = [prompts[name] for name in DOCUMENT_NAMES if prompts.get(name)]
    prefixes = prompts.get("query") or "", found[0] if found else ""
    return Prompt(prefixes=prefixes) if any(prefixes) else None
