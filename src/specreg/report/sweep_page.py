"""What ``specreg report`` makes of sweeps: the page, and beside it a folder with tables, results and figures."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from specreg.files import write_json, write_text
from specreg.report import sweeps, verdicts
from specreg.report.markup import Markup, fold, image, join, table, tag
from specreg.report.page import document
from specreg.report.runs import differing
from specreg.report.sweep_figures import CAPTIONS, write_figures
from specreg.report.sweeps import Cell, SweepTable
from specreg.report.tables import markdown

_IN_FRONT = ("modes", "kl", "fd", "inception_score", "collapse")


def folder_of(page: Path) -> Path:
    """Return the folder beside a page: PAGE-files."""
    return page.with_name(f"{page.stem}-files")  # a name that the sweep itself hardly has


def write_sweep_report(page: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write the page, and table.md, results.json and the figures into the folder beside it; returns all paths.

    Raises:
        ValueError: a record is damaged; nothing is written.
    """
    folder = folder_of(page)
    for cell in cells:
        for run in cell.runs.values():
            run.read()
    made, lacking, said = sweeps.tables(cells), sweeps.missing(cells), sweeps.notes(cells)
    folder.mkdir(exist_ok=True)
    figures = write_figures(folder, cells)
    parts = [*said, *(f"## {one.title}\n\n{markdown(one.headings, one.rows).rstrip()}" for one in made)]
    if lacking:
        parts.append("## Missing runs\n\n" + "\n".join(f"- {name}: {state}" for name, state in lacking))
    (folder / "table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_json(folder / "results.json", sweeps.summary(cells))
    contents = {
        "results": ("Results", _results(made, said)),
        "missing": ("Missing runs", _missing(lacking)),
        "figures": ("Figures", _figures(figures)),
        "verdict": ("Verdicts", _verdicts(cells)),
        "settings": ("Settings", _settings(cells)),
    }
    presets = ", ".join(dict.fromkeys(cell.preset for cell in cells))
    runs = sum(len(cell.planned) for cell in cells)
    subject = (
        f"Settings: {len(cells)}, runs: {runs}. specreg report SWEEP/SETTING makes a page about one setting's runs."
    )
    text = document(f"Sweep: {presets}", tag("p", subject, class_="soft"), contents)
    write_text(page, text)
    return [page, folder / "table.md", folder / "results.json", *figures]


def _results(made: Sequence[SweepTable], said: Sequence[str]) -> Markup:
    if not made:
        return join(tag("p", line) for line in said)
    shown = {one.key: join(tag("h3", one.title.capitalize() if one.key == "collapse" else one.title),
                           table(one.headings, one.rows, label=one.title)) for one in made}  # fmt: skip
    others = [content for key, content in shown.items() if key not in _IN_FRONT]
    return join(
        [tag("p", line, class_="soft") for line in said],
        [content for key, content in shown.items() if key in _IN_FRONT],
        [fold("Other measures", *others)] if others else [],
    )


def _missing(lacking: Sequence[tuple[str, str]]) -> Markup:
    if not lacking:
        return Markup()
    rows = table(["run", "state"], lacking, label="Missing runs", texts=2)
    return rows if len(lacking) <= 12 else fold(f"{len(lacking)} runs are not complete", rows)


def _figures(paths: Sequence[Path]) -> Markup:
    parts: list[Markup] = []
    for name, caption in CAPTIONS.items():
        alike = [path for path in paths if re.fullmatch(f"{name}(-[A-Z])?", path.stem)]
        pictures = [_picture(path, caption) for path in alike]
        if pictures:
            parts.append(tag("figure", tag("figcaption", caption), join(pictures)))
    return join(parts)


def _picture(path: Path, caption: str) -> Markup:
    with Image.open(path) as opened:
        small = opened.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    drawn = image(file.getvalue(), f"{path.name}: {caption}", small.size)
    return tag("div", drawn, class_="scroll wide", tabindex=0, role="region", aria_label=path.name)


def _verdicts(cells: Sequence[Cell]) -> Markup:
    runs = [run for cell in cells for run in cell.runs.values()]
    if not runs:
        return Markup()
    rows = [[run.label, verdicts.state_of(run), verdicts.sentence(run)] for run in runs]
    return table(["run", "state", "what the detector says"], rows, label="Verdicts by run", texts=3)


def _settings(cells: Sequence[Cell]) -> Markup:
    keys = differing([cell.settings for cell in cells])
    shared = [[key, str(value)] for key, value in cells[0].settings.items() if key not in keys]
    parts = [fold("Settings of all runs", table(["key", "value"], shared, label="Shared settings", texts=2))]
    if keys:
        rows = [[cell.label, *(str(cell.settings.get(key, "-")) for key in keys)] for cell in cells]
        parts.insert(0, table(["setting", *keys], rows, label="Settings that differ"))
    return join(parts)
