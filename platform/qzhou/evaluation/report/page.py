"""The page itself: sections in the template, with the style sheet, the script and Plotly's own script inside."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qzhou.evaluation.comparison import differences_of, gains
from qzhou.evaluation.report import data, findings, mining, provenance, results, synthesis, training
from qzhou.evaluation.report.blocks import KeyNumbers, Section
from qzhou.evaluation.report.tables import counts
from qzhou.run.files import RunFiles
from qzhou.run.run import Run

PAGE = "report.html"
PLACE = Path(__file__).parent
# In the order of the page: anchor -> title, and what makes the blocks.
SECTIONS = {
    "data": ("What went in", data.blocks),
    "synthesis": ("What was bought", synthesis.blocks),
    "mining": ("What was mined", mining.blocks),
    "training": ("How training went", training.blocks),
    "results": ("How good it is", results.blocks),
    "diagnosis": ("Diagnosis", findings.blocks),
    "provenance": ("How it was made", provenance.blocks),
}


def write_report(run: Run) -> None:
    """Write ``report.html`` into the run folder, from the files that the stages left."""
    files = RunFiles(run.folder)
    sections = [Section(anchor, title, list(blocks(files))) for anchor, (title, blocks) in SECTIONS.items()]
    backbone = files.recipe.get("model", {}).get("backbone", "")
    page = render(files.name, sections, summary=_summary(files), backbone=backbone)
    run.folder.write_bytes(PAGE, page.encode())


def render(name: str, sections: Sequence[Section], *, summary: KeyNumbers | None = None, backbone: str = "") -> str:
    """A page that needs no network, with key figures at the top and the backbone below the title where given."""
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
        found["negatives"] = sum(sum(one["negatives"].values()) for one in files.mining.values())
    if files.metrics:
        found["training steps"] = sum(map(len, files.metrics.values()))
    if gained := gains(differences_of(files.comparison)):
        verdicts = {
            "better": sum(one.low > 0 for one in gained),
            "worse": sum(one.high < 0 for one in gained),
            "unsure": sum(not one.is_significant for one in gained),
        }
        known = {name: number for name, number in verdicts.items() if number}
        found["tasks, stage2 against backbone"] = counts(known)
    if files.diagnosis:
        found["signs of trouble"] = len({one["check"] for one in files.diagnosis["findings"]})
    if files.manifests:
        seconds = sum(one.wall_s for one in files.manifests.values())
        found["wall time"] = f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
    return KeyNumbers(found)
