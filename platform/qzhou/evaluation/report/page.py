"""The page itself: sections in the template, with the style sheet, the script and Plotly's own script inside."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qzhou.evaluation.report import data, findings, mining, provenance, results, synthesis, training
from qzhou.evaluation.report.blocks import KeyNumbers, Section
from qzhou.evaluation.report.tables import counts
from qzhou.run.files import RunFiles
from qzhou.run.run import Run

PAGE = "report.html"
PLACE = Path(__file__).parent
# In the order of the page.
SECTIONS = (data, synthesis, mining, training, results, findings, provenance)


def write_report(run: Run) -> None:
    """Write ``report.html`` into the run folder, from the files that the stages left there."""
    files = RunFiles(run.folder)
    sections = [one.section(files) for one in SECTIONS]
    backbone = files.recipe.get("model", {}).get("backbone", "")
    page = render(files.name, sections, summary=_summary(files), backbone=backbone)
    run.folder.write_bytes(PAGE, page.encode())


def render(name: str, sections: Sequence[Section], *, summary: KeyNumbers | None = None, backbone: str = "") -> str:
    """A page that needs no network.

    Args:
        name: The title.
        sections: In the order of the page.
        summary: Key figures at the top.
        backbone: The backbone to name below the title; empty for none.
    """
    environment = Environment(loader=FileSystemLoader(PLACE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2").render(
        name=name,
        backbone=backbone,
        summary=summary.figures if summary else (),
        sections=sections,
        style=Markup((PLACE / "style.css").read_text("utf-8")),
        script=Markup((PLACE / "page.js").read_text("utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def _summary(files: RunFiles) -> KeyNumbers:
    """The run in a few numbers; unknown ones are left out."""
    found: dict[str, int | str] = {}
    if files.transform:
        found["rows kept"] = sum(one["kept"] for one in files.transform["datasets"].values())
    if files.mining:
        negatives = [sum(one["negatives"].values()) for one in files.mining.values()]
        found["negatives"] = sum(negatives)
    if files.metrics:
        found["training steps"] = sum(map(len, files.metrics.values()))
    gains = results.gains(files.comparison)
    if gains:
        verdicts = {
            "better": sum(one.low > 0 for one in gains),
            "worse": sum(one.high < 0 for one in gains),
            "unsure": sum(not one.is_significant for one in gains),
        }
        known = {name: number for name, number in verdicts.items() if number}
        found["tasks, stage2 against backbone"] = counts(known)
    if files.diagnosis:
        found["signs of trouble"] = len({one["check"] for one in files.diagnosis["findings"]})
    if files.manifests:
        seconds = sum(one.wall_s for one in files.manifests.values())
        minutes, hours = f"{seconds / 60:,.1f} min", f"{seconds / 3600:,.1f} h"
        found["wall time"] = minutes if seconds < 7200 else hours
    return KeyNumbers(found)
