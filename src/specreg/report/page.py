"""One self-contained HTML page about runs (``page.html.j2``), and what comparisons and sweeps leave in their folder."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from specreg.files import exists, write_json, write_text
from specreg.names import QUESTIONS, counted
from specreg.report import tables, verdicts
from specreg.report.illustrations import NAMES, illustrations, shown_runs
from specreg.report.panels import picture, write_sheet
from specreg.report.runs import Cell, differing, grouped, open_cells, runs_of
from specreg.report.tables import Table

_MADE = ("results.json", "table.md", *(f"{name}.png" for name in NAMES))


def write_page(path: Path, cells: Sequence[Cell]) -> None:
    """Write the page about cells: the same page from the same records, and none if a record is damaged."""
    _check(cells)
    sections: dict[str, tuple[str, Any]] = {
        "verdict": ("Verdict", verdict(cells)),
        "results": ("Results", results(cells)),
    }
    sections |= {shown.name: (shown.heading, shown) for shown in illustrations(cells)}
    sections["settings"] = ("Settings and environment", settings(cells))
    environment = Environment(
        loader=PackageLoader("specreg", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        title=_title(cells),
        subject=_subject(cells),
        style=files(__package__).joinpath("page.css").read_text(encoding="utf-8"),
        sections={anchor: section for anchor, section in sections.items() if section[1]},
        one_cell=len(cells) == 1,
        picture=picture,
        verdicts=verdicts,
    )
    write_text(path, page)


def write_folder(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write results.json, and where a run is complete table.md and the pictures; none if a record is damaged.

    Returns the paths. What an earlier state of the runs has left, and these have no more, is deleted.
    """
    _check(cells)
    rows = tables.results(cells)
    written = [folder / "results.json"]
    write_json(written[0], rows)
    if rows:
        written.append(folder / "table.md")
        write_text(written[-1], tables.markdown(cells))
    for illustration in illustrations(cells) if rows else ():
        written.append(folder / f"{illustration.name}.png")
        write_sheet(written[-1], illustration)
    for path in {folder / name for name in _MADE}.difference(written):
        path.unlink(missing_ok=True)
    return written


def check_folder(folder: Path) -> list[Cell]:
    """Return the cells that a comparison's or sweep's folder has; ValueError if a record or picture is damaged."""
    cells = open_cells([folder]) if exists(folder / "sweep.json") else []
    is_ours = cells or exists(folder / "config.json") or any(folder.glob("*/*/method.json"))  # a run is refused later
    if not is_ours and (others := [name for name in _MADE if exists(folder / name)]):
        raise ValueError(f"{folder / others[0]} is there, and no comparison's: choose another folder, or move it away")
    _check(cells)
    return cells


def _check(cells: Sequence[Cell]) -> None:
    for run in runs_of(cells):
        run.read()
    for run in shown_runs(cells):
        for name in ("data", "samples", "missing"):
            run.picture(name)


def verdict(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """What the detector says: the runs that are told of one by one, or a table of many."""
    runs = runs_of(cells)
    if not runs:
        return None
    told_singly = len(cells) == 1 and len(runs) <= verdicts.MOST_RUNS
    rows = []
    for run in runs:
        states = [state for _, state, _ in verdicts.answers(run)] or ["-"] * len(QUESTIONS)
        rows.append([run.label, verdicts.state_of(run), *states, verdicts.sentence(run)])
    return {
        "tally": verdicts.tally(runs) if len(runs) > 1 else "",
        "runs": runs if told_singly else [],
        "table": None if told_singly else Table(["run", "verdict", *QUESTIONS, "in words"], rows, 6),
        "judged": any(run.verdicts for run in runs),
    }


def results(cells: Sequence[Cell]) -> dict[str, Any]:
    """The final evaluation by method and by run, published scores beside, and the runs that are missing."""
    by_method, by_run = tables.table(cells), tables.table(cells, by_run=True)
    repeated = any(len(alike) > 1 for cell in cells for alike in grouped(cell.runs).values())
    return {
        "notes": tables.notes(cells),
        "by_method": by_method.narrow() if by_run.rows or any(cell.published for cell in cells) else None,
        "by_run": by_run if by_run.rows and repeated else None,
        "missing": Table(["run", "state"], tables.missing(cells), 2),
    }


def settings(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What differs between the runs, or between several cells, what they share, and where the runs were made."""
    runs = cells[0].runs if len(cells) == 1 else []
    values: dict[str, dict[str, Any]] = {cell.label: cell.settings for cell in cells}
    if runs:
        values = {run.label: {"method": run.method, "seed": run.seed} | run.settings for run in runs}
    made = {run.label: run.environment for run in runs if run.environment}
    return [_facts(title, facts) for title, facts in (("settings", values), ("environment", made)) if facts]


def _facts(title: str, values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    different = differing(list(values.values()))
    rows = [[label, *(_text(facts.get(key, "-")) for key in different)] for label, facts in values.items()]
    first = next(iter(values.values()))
    shared = [[key, _text(value)] for key, value in first.items() if key not in different]
    return {
        "title": title,
        "alone": len(values) == 1,
        "only_these": different if set(different) <= {"method", "seed"} else None,
        "different": Table(["", *different], rows, len(different) + 1),
        "shared": Table(["key", "value"], shared, 2),
    }


def _title(cells: Sequence[Cell]) -> str:
    runs = runs_of(cells)
    if presets := ", ".join(dict.fromkeys(cell.preset for cell in cells if cell.preset)):
        return f"Sweep: {presets}"
    return f"Spectra of {runs[0].label}" if len(runs) == 1 else f"Spectra of {len(runs)} runs"


def _subject(cells: Sequence[Cell]) -> str:
    runs = runs_of(cells)
    data = dict.fromkeys(str(run.settings.get("data.data", "unknown data")) for run in runs)
    trained = f"Trained on {', '.join(data)}." if data else "No run has begun."
    if len(cells) > 1:
        return f"{len(cells)} settings, {sum(len(cell.planned) for cell in cells)} runs. {trained}"
    groups = grouped(runs)
    names = "; ".join(f"{group}, {counted(len(alike), 'seed')}" for group, alike in groups.items())
    subject = trained if len(runs) < 2 else f"{names}. {trained}"
    return subject if len(runs) <= verdicts.MOST_RUNS else f"{subject} Single runs below are the first of each method."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
