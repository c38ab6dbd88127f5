"""The only place where a prompt is put together.

Training, mining, evaluation, the exported model and the endpoint all take their text from
here, so that an instruction is byte-identical everywhere. The template is the one of the
official QZhou-Embedding evaluation scripts: a space follows ``Query:`` (its README leaves
it out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EMPTY_TEXT = "Null"  # what the official embedder encodes for an empty string


@dataclass(frozen=True, slots=True)
class Prompt:
    """How the texts of one dataset or task are presented to the encoder.

    Attributes:
        instruction: The task in one sentence; empty for none.
        symmetric: Whether both sides have the instruction (STS, classification, clustering,
            pair classification, reranking). Retrieval is asymmetric: documents stay bare.
    """

    instruction: str = ""
    symmetric: bool = False

    @property
    def query_prefix(self) -> str:
        """The text before each query; empty for an empty instruction."""
        return f"Instruct: {self.instruction}\nQuery: " if self.instruction else ""

    @property
    def document_prefix(self) -> str:
        """The text before each document."""
        return self.query_prefix if self.symmetric else ""

    def query(self, text: str) -> str:
        """A query with its prefix, ready for the tokenizer."""
        return self.query_prefix + (text or EMPTY_TEXT)

    def document(self, text: str) -> str:
        """A document with its prefix, ready for the tokenizer."""
        return self.document_prefix + (text or EMPTY_TEXT)


@dataclass(frozen=True, slots=True)
class DeclaredPrompts:
    """What another model was trained to read before a query and before a document."""

    query_prefix: str
    document_prefix: str

    @classmethod
    def of(cls, prompts: Mapping[str, str]) -> DeclaredPrompts | None:
        """Those in the ``prompts`` of a sentence-transformers model; None if there is none for either side."""
        found = [prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)]
        prefixes = cls(prompts.get("query") or "", found[0] if found else "")
        return prefixes if prefixes != cls("", "") else None

    def query(self, text: str) -> str:
        """A query with its prefix, ready for the tokenizer."""
        return self.query_prefix + (text or EMPTY_TEXT)

    def document(self, text: str) -> str:
        """A document with its prefix, ready for the tokenizer."""
        return self.document_prefix + (text or EMPTY_TEXT)
