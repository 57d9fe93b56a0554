"""Sweeps as a report reads them: cells with their runs, the paper's table, what is missing.

The folders are those of ``specreg sweep``: ``sweep.json`` and CELL/METHOD-seedN. What the papers published for a cell
stands in ``published.json``, with its source.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from specreg.files import read_json
from specreg.records import RunDirectory
from specreg.report.methods import Look
from specreg.report.runs import Run, flat
from specreg.report.tables import COLUMNS, protocol
from specreg.report.verdicts import is_judged

# Our measure -> the published score that answers the same question; the other scores stand beside the first table.
_COUNTERPARTS = {"fd": "FID", "inception_score": "IS"}
_LAST = "seconds"  # a column of comparisons that says nothing here: machines differ


@dataclass
class Cell:
    """One setting of a sweep.

    Attributes:
        label: a name that no other cell of the report has.
        changes: in what its settings differ from the preset's.
        planned: names of its runs.
        runs: those that have begun, by name, in the order of the methods.
    """

    folder: Path
    preset: str
    name: str
    label: str
    changes: list[str]
    planned: list[str]
    settings: dict[str, Any]
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The letter of the paper's settings, or nothing."""
        found = re.match(r"[A-Z](?=\d+-\d+$)", self.name)
        return found[0] if found else ""

    @property
    def published(self) -> dict[str, Any]:
        """What a paper says of this setting, by score and method; empty where none does."""
        found: dict[str, Any] = published(self.preset).get("cells", {}).get(self.name, {})
        return found

    def complete(self, method: str) -> list[Run]:
        """Return a method's complete runs."""
        return [run for run in self.runs.values() if run.method == method and run.result]

    def values(self, method: str, key: str) -> list[float]:
        """Return what a method's complete runs have for a measure."""
        known = (run.result.get(key) for run in self.complete(method))
        return [value for value in known if value is not None and math.isfinite(value)]


class SweepTable(NamedTuple):
    """One measure of all cells: a row for each cell, a column for each method.

    Attributes:
        key: the measure, "collapse" for what the detector saw.
    """

    key: str
    title: str
    headings: list[str]
    rows: list[list[str]]


def is_sweep(path: str | Path) -> bool:
    """Return whether a folder is a sweep's."""
    return (Path(path) / "sweep.json").exists()


def open_sweeps(paths: Iterable[str | Path]) -> list[Cell]:
    """Open the folders of sweeps; cells in their order, with labels set.

    Raises:
        ValueError: a ``sweep.json`` or a run's configuration is damaged.
    """
    cells: list[Cell] = []
    for path in dict.fromkeys(map(Path, paths)):
        saved = read_json(path / "sweep.json")
        try:
            preset = str(saved["preset"])
            found = [
                Cell(path, preset, name, name, list(map(str, one["changes"])), list(map(str, one["runs"])),
                     flat(one["settings"]))
                for name, one in saved["cells"].items()
            ]  # fmt: skip
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path / 'sweep.json'} does not hold a sweep ({type(error).__name__}: {error}): restore it"
            ) from error
        for cell in found:
            if led := [name for name in (cell.name, *cell.planned) if name in ("", ".", "..") or "/" in name]:
                raise ValueError(f"{path / 'sweep.json'} names {led[0]!r:.60}, no folder of its own: restore it")
            _open_runs(cell)
        cells += found
    names = [cell.name for cell in cells]
    for cell in cells:
        if names.count(cell.name) > 1:
            cell.label = f"{cell.name} ({cell.folder.name or cell.folder})"
        for run in cell.runs.values():
            run.label = f"{cell.label}: {run.look.title}, seed {run.seed}"
    return sorted(cells, key=lambda cell: (cell.preset, cell.group))


def sweep_table(path: Path) -> list[SweepTable]:
    """Return the tables of one sweep's folder that fit a terminal: modes, KL and distances, and the verdicts."""
    return [one for one in tables(open_sweeps([path])) if one.key in ("modes", "kl", "fd", "collapse")]


def methods(cells: Iterable[Cell]) -> dict[str, Look]:
    """Return the methods that the cells' runs are planned with, in their order, and how they are called and drawn."""
    cells = list(cells)
    looks = {method: Look(method) for cell in cells for method in (name.rsplit("-seed", 1)[0] for name in cell.planned)}
    looks |= {run.method: run.look for cell in cells for run in cell.runs.values() if run.method in looks}
    return dict(sorted(looks.items(), key=lambda item: item[1].order))


def tables(cells: Sequence[Cell]) -> list[SweepTable]:
    """Return a table for each measure that a run has, as mean ± standard deviation (number of seeds).

    Published scores stand beside the measure that answers the same question, the others beside the first table.
    """
    shown = methods(cells)
    measures = [
        (key, heading, decimals) for key, heading, decimals in COLUMNS
        if key != _LAST and any(cell.values(method, key) for cell in cells for method in shown)
    ]  # fmt: skip
    scores = [score for score in ("FID", "IS") if any(score in cell.published for cell in cells)]
    keys = [key for key, _, _ in measures]
    beside = {key: [score for score in scores if _COUNTERPARTS.get(key) == score] for key in keys}
    if keys and (left := [score for score in scores if all(score not in one for one in beside.values())]):
        beside["fd" if "fd" in beside else keys[0]] += left
    found = [
        SweepTable(
            key,
            heading,
            ["setting", *(look.title for look in shown.values()), *_published_headings(cells, beside[key])],
            [
                [cell.label, *(_said(cell.values(method, key), decimals) for method in shown)]
                + [_published(cell, score, method) for score in beside[key] for method in _published_methods(cells)]
                for cell in cells
            ],
        )
        for key, heading, decimals in measures
    ]
    return found + (
        [_collapses(cells, shown)] if any(run.verdicts for one in cells for run in one.runs.values()) else []
    )


def missing(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return the runs that are not complete, and how far each one is."""
    found = []
    for cell in cells:
        for name in cell.planned:
            run = cell.runs.get(name)
            if run is None or not run.result:
                failure = RunDirectory(cell.folder / cell.name / name).read("failed") or {}
                if "error" in failure:
                    said = f"failed: {failure['error']}"
                elif run is None or not run.last_step:
                    said = "not begun"
                else:
                    said = f"at iteration {run.last_step} of {run.settings.get('training.steps')}"
                found.append((f"{cell.label}/{name}", said))
    return found


def notes(cells: Sequence[Cell]) -> list[str]:
    """Return in sentences: how much is done, the protocol, what was changed, what was gained, the sources."""
    planned = sum(len(cell.planned) for cell in cells)
    complete = [run for cell in cells for run in cell.runs.values() if run.result]
    said = [f"{len(complete)} of {planned} runs are complete. Mean ± standard deviation over seeds, their number in "
            "brackets; last checkpoint of every run."]  # fmt: skip
    protocols = dict.fromkeys(
        f"{Path(str(run.settings.get('data.data'))).name}: {protocol(run.result)}" for run in complete
    )
    said += [f"{'; '.join(protocols)}."] if protocols else []
    changed: dict[str, list[str]] = {}
    for cell in cells:
        if cell.changes:
            changed.setdefault("; ".join(cell.changes), []).append(cell.label)
    said += [f"Not the preset's settings in {', '.join(names)}: {one}." for one, names in changed.items()]
    said += [line for method in methods(cells) if method != "sn" and (line := _gain(cells, method))]
    for preset in dict.fromkeys(cell.preset for cell in cells if cell.published):
        said.append(f"Published: {published(preset)['source']}. Published FID and IS are comparable with nothing here "
                    "that was not taken in Inception's features under the same protocol.")  # fmt: skip
    return said


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return everything that the tables say as plain values, for ``results.json``."""
    keys = [key for key, _, _ in COLUMNS if key != _LAST]
    return {
        "notes": notes(cells),
        "cells": [
            {
                "preset": cell.preset,
                "cell": cell.name,
                "folder": cell.folder.name,
                "changes": cell.changes,
                "methods": {
                    method: {
                        "seeds": [run.seed for run in cell.complete(method)],
                        "collapsed": _collapse_steps(cell, method),
                        **{key: values for key in keys if (values := cell.values(method, key))},
                    }
                    for method in methods([cell])
                },
                "published": cell.published,
            }
            for cell in cells
        ],
        "missing": [{"run": name, "state": state} for name, state in missing(cells)],
    }


@cache
def _all_published() -> dict[str, Any]:
    text = files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published(preset: str) -> dict[str, Any]:
    """Return what a paper published of a preset: its source and cells; empty where there is none."""
    found: dict[str, Any] = _all_published().get(preset, {})
    return found


def _open_runs(cell: Cell) -> None:
    found = [
        (name, Run(RunDirectory(path))) for name in cell.planned
        if (path := cell.folder / cell.name / name).joinpath("config.json").exists()
    ]  # fmt: skip
    cell.runs = dict(sorted(found, key=lambda item: (item[1].look.order, item[1].method, item[1].seed)))


def _said(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread} ({len(values)})"


def _published_methods(cells: Iterable[Cell]) -> list[str]:
    given = {method for cell in cells for score in ("FID", "IS") for method in cell.published.get(score, {})}
    return [*(method for method in methods(cells) if method in given), *sorted(given - methods(cells).keys())]


def _published_headings(cells: Sequence[Cell], scores: Sequence[str]) -> list[str]:
    shown = methods(cells)
    return [
        f"published {score}, {shown.get(method, Look(method)).title}"
        for score in scores for method in _published_methods(cells)
    ]  # fmt: skip


def _published(cell: Cell, score: str, method: str) -> str:
    value: Sequence[float] = cell.published.get(score, {}).get(method, ())
    return " ± ".join(f"{number:.2f}" for number in value) or "-"


def _collapse_steps(cell: Cell, method: str) -> dict[int, int | None]:
    """Return by seed the first step at which the detector said collapsed, None where it never did."""
    watched = [run for run in cell.runs.values() if run.method == method and is_judged(run)]
    return {
        run.seed: next((verdict["step"] for verdict in run.verdicts if verdict["state"] == "collapsed"), None)
        for run in watched
    }


def _collapses(cells: Sequence[Cell], shown: Mapping[str, Look]) -> SweepTable:
    def said(steps: Mapping[int, int | None]) -> str:
        known = [step for step in steps.values() if step is not None]
        return (f"{len(known)} of {len(steps)}" + (f", from {min(known)}" if known else "")) if steps else "-"

    beside = any("collapse" in cell.published for cell in cells)
    rows = [
        [cell.label, *(said(_collapse_steps(cell, method)) for method in shown)]
        + ([_said_collapse(cell)] if beside else [])
        for cell in cells
    ]
    headings = ["setting", *(look.title for look in shown.values()), *(["published, SN"] if beside else [])]
    return SweepTable("collapse", "runs whose spectra collapsed, and the earliest iteration", headings, rows)


def _said_collapse(cell: Cell) -> str:
    return "-" if "collapse" not in cell.published else "yes" if cell.published["collapse"] else "no"


def _gain(cells: Sequence[Cell], method: str) -> str:
    """Return how a method's Fréchet distance differs from SN's, over the cells that have both."""
    pairs = [(cell.values("sn", "fd"), cell.values(method, "fd")) for cell in cells]
    changes = [statistics.fmean(ours) / base - 1 for theirs, ours in pairs
               if theirs and ours and (base := statistics.fmean(theirs))]  # fmt: skip
    if not changes:
        return ""
    lower = sum(change < 0 for change in changes)
    title = methods(cells)[method].title
    return (f"{title} against SN, {len(changes)} setting{'s' if len(changes) > 1 else ''}: Fréchet distance "
            f"{100 * statistics.fmean(changes):+.1f}% in the mean, lower in {lower}.")  # fmt: skip
