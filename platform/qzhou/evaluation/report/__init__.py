"""``report.html``: one page that needs no network, made of the files in a run folder.

Each section has a module that turns files into ``blocks`` (texts, tables, plots). ``page``
puts these into the template with its style sheet, its script and Plotly's.
"""

from qzhou.evaluation.report.page import PAGE, write_report

__all__ = ["PAGE", "write_report"]
