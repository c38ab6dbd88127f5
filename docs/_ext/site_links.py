"""What the site reads otherwise than GitHub does.

Markdown files above ``docs/`` are no pages of the site: links to them become downloads, and links to folders their
names. Pages that no list of the index names stand where it says ``<others>``.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

ABOVE = re.compile(r"\[([^\]\n]+)\]\((\.\./[\w./-]*)(#[\w-]+)?\)")


def above(text: str, folder: Path) -> str:
    """A page with its links to what lies above ``docs/`` as Sphinx understands them."""

    def put(link: re.Match[str]) -> str:
        shown, target = link[1], link[2]
        if (folder / target).is_dir():
            return shown
        return f"[{shown}](path:{target})" if target.endswith(".md") else link[0]

    return ABOVE.sub(put, text)


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = above(source[0], Path(app.srcdir, docname).parent)
    if docname == "index":
        named = set(re.findall(r"^([\w/-]+)$", source[0], re.MULTILINE)) | {"index"}
        others = sorted(app.env.found_docs - named)
        source[0] = source[0].replace("<others>", "\n".join(others))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
