"""What the diagnosis found."""

from collections.abc import Iterator

from qzhou.evaluation.report.blocks import Block, Heading, Notice, Section, Text
from qzhou.evaluation.report.tables import Table, texts
from qzhou.run.files import DIAGNOSIS, EVALUATION, Content, RunFiles


def section(files: RunFiles) -> Section:
    """The section of the diagnosis."""
    return Section("diagnosis", "Diagnosis", [*outdated(files), *_blocks(files.diagnosis)])


def outdated(files: RunFiles) -> Iterator[Block]:
    """A warning where a stage has run again after the models were scored."""
    if changed := files.outdated_inputs(EVALUATION):
        stages = " and ".join(changed)
        yield Text(
            f"This shows an earlier execution of {stages}, which ran again since. Run `qzhou evaluate` to score the "
            "models that are there now."
        )


def _blocks(diagnosis: Content) -> Iterator[Block]:
    if not diagnosis:
        yield Text(f"Signs of trouble were not looked for: {DIAGNOSIS} is not there.")
        return
    if not diagnosis["findings"]:
        yield Text("Nothing was found.")
    for one in diagnosis["findings"]:
        yield Notice(one["check"], one["message"], one["evidence"], one["setting"])
    if diagnosis["skipped"]:
        yield Heading("Not looked for")
        rows = [[one["check"], one["reason"]] for one in diagnosis["skipped"]]
        columns = [*texts("sign"), *texts("why", style="prose")]
        yield Table("Signs that were not looked for", columns, rows)
