"""``report.html`` of a run: one page that needs no network, from the files of the run folder alone.

``files`` reads them, a module a section turns them into ``blocks`` (texts, tables, plots), and ``page`` puts these into
the template with its style sheet, its script and Plotly's.
"""

from qzhou.evaluation.report.page import PAGE, write_report

__all__ = ["PAGE", "write_report"]
