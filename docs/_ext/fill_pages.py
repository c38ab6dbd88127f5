"""Writes into the pages of docs/ what is made from code and results; `make docs` runs it, and a test compares.

What is made stands between two comments, so that the pages are whole on GitHub too:

    <!-- made: table, encode -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1]
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "platform")]

import bench_tables  # noqa: E402
import error_tables  # noqa: E402
import recipe_tables  # noqa: E402

from qzhou.config.recipe import Recipe  # noqa: E402
from qzhou.experiments.settings import Experiment  # noqa: E402

BEGIN = "<!-- made: "
MADE = re.compile(r"^<!-- made: ([^\n]*?) -->\n(?:.*?\n)??<!-- end -->$", re.MULTILINE | re.DOTALL)
PICTURES = "pictures"  # folder of docs/


def levels() -> str:
    """The table of levels, from the one place where they stand."""
    source = (DOCS.parent / "tests" / "test_architecture.py").read_text("utf-8")
    (found,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS"
    ]
    rows = [f"| {level} | {', '.join(f'`{name}`' for name in names)} |" for level, names in enumerate(found)]
    return "\n".join(["| level | packages |", "|---|---|", *rows])


def picture(bench: str) -> str:
    """The line that shows a picture of :func:`pictures`."""
    return f"![Bars: {bench_tables.caption(bench)}]({PICTURES}/{bench}.svg)"


MAKERS: dict[str, Callable[..., str]] = {
    "settings of a recipe": lambda: recipe_tables.reference(Recipe),
    "settings of an experiment": lambda: recipe_tables.reference(Experiment),
    "levels of the package": levels,
    "messages": error_tables.reference,
    "table": bench_tables.table,
    "picture": picture,
}


def filled(text: str, place: str) -> str:
    """A page with everything in its place.

    Raises:
        ValueError: The page asks for something that nothing here makes, or a comment has no end.
    """

    def made(mark: re.Match[str]) -> str:
        what, *of = mark[1].split(", ")
        if what not in MAKERS:
            raise ValueError(f"{place}: 'made: {mark[1]}': known are {', '.join(MAKERS)}")
        return f"{BEGIN}{mark[1]} -->\n\n{MAKERS[what](*of).strip()}\n\n<!-- end -->"

    if text.count(BEGIN) != len(MADE.findall(text)):
        raise ValueError(f"{place}: each '{BEGIN}... -->' needs its '<!-- end -->'")
    return MADE.sub(made, text)


def files() -> Iterator[tuple[Path, str]]:
    """Every file that is made, or made in part, and what it should hold."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        if BEGIN in text:
            yield page, filled(text, page.name)
        for mark in MADE.findall(text):
            if mark.startswith("picture, "):
                bench = mark.removeprefix("picture, ")
                yield DOCS / PICTURES / f"{bench}.svg", bench_tables.picture(bench)


def main() -> None:
    """Write what has changed, and say so."""
    for file, wanted in files():
        if not file.exists() or file.read_text("utf-8") != wanted:
            file.parent.mkdir(exist_ok=True)
            file.write_text(wanted, "utf-8")
            print(f"wrote {file.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
