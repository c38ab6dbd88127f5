"""Fills pages with what is made when the site is built: a line ``<!-- made: WHAT -->`` stands where it goes.

GitHub shows such pages without it, so they say where else it can be read. Markdown files above ``docs/`` are no pages
of the site: links to them become downloads, and links to folders their names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import bench_tables
import recipe_tables
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from qzhou.config.recipe import Recipe
from qzhou.experiments.settings import Experiment

ABOVE = re.compile(r"\[([^\]\n]+)\]\((\.\./[\w./-]*)(#[\w-]+)?\)")
MARK = re.compile(r"^<!-- made: (.*?) -->$", re.MULTILINE)


def _bench_picture(bench: str) -> str:
    return f"````{{raw}} html\n<figure class='bars'>\n{bench_tables.picture(bench)}\n</figure>\n````"


def _levels() -> str:
    """The table of levels, from the one place where they stand."""
    source = (Path(__file__).parents[2] / "tests" / "test_architecture.py").read_text("utf-8")
    (levels,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS"
    ]
    rows = [f"| {level} | {', '.join(f'`{name}`' for name in names)} |" for level, names in enumerate(levels)]
    return "\n".join(["| level | packages |", "|---|---|", *rows])


MAKERS: dict[str, Callable[..., str]] = {
    "settings of a recipe": lambda: recipe_tables.reference(Recipe),
    "settings of an experiment": lambda: recipe_tables.reference(Experiment),
    "levels of the package": _levels,
    "table": bench_tables.table,
    "picture": _bench_picture,
}


def fill(text: str, place: str) -> str:
    """A page with everything in its place.

    Raises:
        ExtensionError: The page asks for something that nothing here makes.
    """

    def made(mark: re.Match[str]) -> str:
        what, *of = mark[1].split(", ")
        if what not in MAKERS:
            raise ExtensionError(f"{place}: 'made: {mark[1]}': known are {', '.join(MAKERS)}")
        return MAKERS[what](*of)

    return MARK.sub(made, text)


def above(text: str, folder: Path) -> str:
    """A page with its links to what lies above ``docs/`` as Sphinx understands them."""

    def put(link: re.Match[str]) -> str:
        shown, target = link[1], link[2]
        if (folder / target).is_dir():
            return shown
        return f"[{shown}](path:{target})" if target.endswith(".md") else link[0]

    return ABOVE.sub(put, text)


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = above(fill(source[0], docname), Path(app.srcdir, docname).parent)
    if docname == "index":  # pages that no list of the index names
        named = set(re.findall(r"^([\w/-]+)$", source[0], re.MULTILINE)) | {"index"}
        others = sorted(app.env.found_docs - named)
        source[0] = source[0].replace("<others>", "\n".join(others))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
