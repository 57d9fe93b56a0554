"""Tables, pictures and a page from records: what a comparison leaves in its folder, and ``specreg report``.

Reads run directories only (see ``specreg.records``) and never imports torch.

- ``runs``: records, checked; labels; which runs are repetitions of each other
- ``tables``, ``verdicts``, ``figures``: numbers, words and curves
- ``folder``: results.json, table.md and three pictures
- ``markup``, ``sections``, ``page``: one HTML page that holds everything
- ``sweeps``, ``sweep_figures``, ``sweep_page``: the paper's table and figures from sweeps, and a page about them
"""

from specreg.report.folder import write_report
from specreg.report.page import write_page
from specreg.report.runs import Run, open_runs
from specreg.report.sweep_page import folder_of, write_sweep_report
from specreg.report.sweeps import SweepTable, is_sweep, open_sweeps, sweep_table
from specreg.report.tables import COLUMNS, markdown, protocol, results, table
from specreg.report.verdicts import line as verdict_line

__all__ = [
    "COLUMNS",
    "Run",
    "SweepTable",
    "folder_of",
    "is_sweep",
    "markdown",
    "open_runs",
    "open_sweeps",
    "protocol",
    "results",
    "sweep_table",
    "table",
    "verdict_line",
    "write_page",
    "write_report",
    "write_sweep_report",
]
