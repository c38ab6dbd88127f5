"""reStructuredText as HTML, with the directives and roles of Sphinx that docutils does not know."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.core import publish_parts
from docutils.parsers.rst import Directive, directives, languages, roles

ABOUT_FILES = ("toctree", "index", "currentmodule", "module", "tabularcolumns", "highlight", "literalinclude")
ABOUT_VERSIONS = ("versionadded", "versionchanged", "versionremoved", "deprecated")
CODE_BLOCKS = ("code-block", "sourcecode", "doctest", "testcode", "testoutput", "prompt")
DESCRIBING = (  # the names of what they describe stand beside them
    "function", "class", "method", "attribute", "data", "exception", "option", "confval", "envvar", "describe",
)  # fmt: skip
DIRECTIVE = re.compile(r"^\s*\.\.[ \t]+([\w:.+-]+)::", re.MULTILINE)
ROLE = re.compile(r":([\w:.+-]+):`")
ENGLISH = languages.get_language("en")
SETTINGS = {
    "report_level": 5,
    "halt_level": 5,
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "embed_stylesheet": False,
    "syntax_highlight": "none",
    "initial_header_level": 2,
}


class AnyOptions(dict[str, Any]):
    """Every option is known, and means nothing."""

    def __bool__(self) -> bool:
        return True

    def __missing__(self, _: str) -> Any:
        return directives.unchanged


class Content(Directive):  # type: ignore[misc]  # docutils has no types
    """A directive whose content is text like any other."""

    has_content, optional_arguments, final_argument_whitespace = True, 100, True
    option_spec = AnyOptions()

    def run(self) -> list[Any]:
        """Its own words, where they are text, and its content."""
        node, words = nodes.container(), self.arguments
        is_version = self.name in ABOUT_VERSIONS
        if is_version:
            words = words[1:]
        if words and (is_version or ":" in self.name or self.name in DESCRIBING):
            node += nodes.paragraph("", " ".join(words))
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


class Code(Content):
    """A block of code, whatever options it has."""

    def run(self) -> list[Any]:
        """The code as it stands there."""
        text = "\n".join(self.content)
        return [nodes.literal_block(text, text)] if text else []


class Nothing(Content):
    """A directive that is about files and not about the reader."""

    def run(self) -> list[Any]:
        """No text."""
        return []


def html_of(text: str) -> tuple[str, str]:
    """Title and body of a document, as HTML."""
    for name in CODE_BLOCKS:
        directives.register_directive(name, Code)
    for name in set(DIRECTIVE.findall(text)) - set(CODE_BLOCKS):
        if name not in ENGLISH.directives:
            directives.register_directive(name, Nothing if name in ABOUT_FILES else Content)
    for name in set(ROLE.findall(text)):
        if name not in ENGLISH.roles:
            roles.register_local_role(name, _role)
    parts = publish_parts(text, writer="html5", settings_overrides=SETTINGS)
    return parts["title"], parts["html_body"]


def _role(_: str, rawtext: str, content: str, *__: Any, **___: Any) -> tuple[list[Any], list[Any]]:
    """A role's text without its target: "the lamp <lamp>", "~package.name"."""
    shown = re.sub(r"\s*<[^>]*>$", "", content).lstrip("~!")
    return [nodes.literal(rawtext, shown) if " " not in shown else nodes.inline(rawtext, shown)], []
