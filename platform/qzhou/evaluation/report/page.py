"""The page itself: sections into the template, with style sheet, script and Plotly's own script inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qzhou.evaluation.report import bought, findings, made, mined, results, training, went_in
from qzhou.evaluation.report.files import Found
from qzhou.evaluation.report.tables import count, counts
from qzhou.run.run import Run

PAGE = "report.html"
PLACE = Path(__file__).parent
SECTIONS = (went_in, bought, mined, training, results, findings, made)  # in the order of the page


def write_report(run: Run) -> None:
    """Write ``report.html`` into the run folder, from what the stages left there."""
    run.folder.write_bytes(PAGE, page(Found.read(run.folder)).encode())


def page(found: Found) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(PLACE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        name=found.name,
        backbone=found.recipe.get("model", {}).get("backbone", ""),
        summary=list(_summary(found)),
        sections=[one.section(found) for one in SECTIONS],
        style=Markup((PLACE / "style.css").read_text("utf-8")),
        script=Markup((PLACE / "page.js").read_text("utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def _summary(found: Found) -> Iterator[tuple[str, str]]:
    """The run in a few numbers; those that are not known are left out."""
    if found.transform:
        kept = {name: one["kept"] for name, one in found.transform.get("datasets", {}).items()}
        yield "rows kept", count(sum(kept.values()))
    if found.mining:
        yield (
            "negatives",
            count(sum(sum(one["negatives"].values()) for one in found.mining.values())),
        )
    if found.metrics:
        yield "training steps", count(sum(map(len, found.metrics.values())))
    gained = results.gains(found.comparison)
    if gained:
        sure = {
            "better": sum(one.low > 0 for one in gained),
            "worse": sum(one.high < 0 for one in gained),
            "unsure": sum(not one.sure for one in gained),
        }
        yield (
            "tasks, stage2 against backbone",
            counts({name: number for name, number in sure.items() if number}),
        )
    if found.diagnosis is not None:
        yield (
            "signs of trouble",
            count(len({one["sign"] for one in found.diagnosis.get("findings", [])})),
        )
    if found.manifests:
        seconds = sum(one["wall_s"] for one in found.manifests.values())
        yield (
            "wall time",
            f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h",
        )
