"""What a comparison leaves in its folder: results.json, table.md, spectra.png, curves.png, samples.png, outputs.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from specreg.files import write_json
from specreg.records import RunDirectory
from specreg.report.figures import draw_curves, draw_outputs, draw_samples, draw_spectra
from specreg.report.runs import Run
from specreg.report.tables import markdown, protocol, results, table


def write_report(out: Path, runs: Sequence[RunDirectory]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write results.json, table.md and the pictures into ``out``; returns the results and the paths.

    Raises:
        ValueError: a record is damaged; nothing is written.
    """
    complete = [Run(run) for run in runs if run.complete]
    for run in complete:
        run.read()
    rows = results(runs)
    write_json(out / "results.json", rows)
    paths = [out / "results.json"]
    if not rows:
        return rows, paths
    paths.append(out / "table.md")
    declared = "".join(f"\n{line}\n" for line in dict.fromkeys(map(protocol, rows)))
    paths[-1].write_text(markdown(*table(rows)) + declared, encoding="utf-8")
    pictures = [("spectra", draw_spectra), ("curves", draw_curves), ("samples", draw_samples)]
    if any(run.outputs for run in complete):
        pictures.append(("outputs", draw_outputs))
    for name, draw in pictures:
        paths.append(out / f"{name}.png")
        figure = draw(complete)
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return rows, paths
