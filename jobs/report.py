"""Writes a run's report.html again, from what its stages have left so far.

python jobs/report.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.evaluation.report import PAGE, write_report
    from qzhou.run.run import Run
    from qzhou.telemetry.events import print_block

    found = Run.find(recipe)
    write_report(found)
    print_block(
        f"report:  {found.folder.uri}/{PAGE}",
        "report",
        "written",
        report=f"{found.folder.uri}/{PAGE}",
    )


if __name__ == "__main__":
    main(run, __doc__ or "")
