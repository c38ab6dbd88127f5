"""What the diagnosis found."""

from collections.abc import Iterator

from qzhou.evaluation.report.blocks import Block, Heading, Notice, Text
from qzhou.evaluation.report.tables import Table, texts
from qzhou.run.files import DIAGNOSIS, EVALUATION, RunFiles


def outdated(files: RunFiles) -> Iterator[Block]:
    """A warning where a stage has run again after the models were scored."""
    if changed := files.outdated_inputs(EVALUATION):
        stages = " and ".join(changed)
        yield Text(
            f"This shows an earlier execution of {stages}, which ran again since. Run `qzhou evaluate` to score the "
            "models that are there now."
        )


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the diagnosis found, and what it did not look for."""
    yield from outdated(files)
    diagnosis = files.diagnosis
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
        yield Table("Signs that were not looked for", [*texts("sign"), *texts("why", style="prose")], rows)
