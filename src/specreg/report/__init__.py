"""Tables, pictures and a page from records: what a comparison leaves in its folder, and ``specreg report``.

Reads run directories only (see ``specreg.records``) and never imports torch.

- ``runs``: records, checked; labels; which runs are repetitions of each other
- ``tables``, ``verdicts``, ``figures``: numbers, words and curves
- ``folder``: results.json, table.md and three pictures
- ``markup``, ``sections``, ``page``: one HTML page that holds everything
"""

from specreg.report.folder import write_report
from specreg.report.page import write_page
from specreg.report.runs import Run, open_runs
from specreg.report.tables import COLUMNS, TITLES, markdown, results, table
from specreg.report.verdicts import line as verdict_line

__all__ = [
    "COLUMNS",
    "TITLES",
    "Run",
    "markdown",
    "open_runs",
    "results",
    "table",
    "verdict_line",
    "write_page",
    "write_report",
]
