"""docs/records.md names every file of a run's folder and every field of it, and none that is not there."""

import json
import re
from collections import defaultdict
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import specreg
from specreg.experiments.jobs import end
from specreg.monitor.writers import JsonlWriter
from specreg.records import RunDirectory
from specreg.report.runs import open_cells
from specreg.report.tables import results
from specreg.training.state import load_checkpoint
from trainings import NERVOUS_OPTIONS, OPTIONS, train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
WHOLE = {"config", "settings", "verdict"}  # described elsewhere
BY_LAYER = {"layers", "attainment", "evidence", "singular_values"}


def fields(value: object, prefix: str = "") -> set[str]:
    """Return the paths of a record's fields, with LAYER for the names of layers."""
    if not isinstance(value, dict):
        return set()
    by_layer, names = prefix.rstrip(".") in BY_LAYER, set()
    for key, inner in value.items():
        name = prefix + ("LAYER" if by_layer else key)
        names |= {name} if key in WHOLE else {name} | fields(inner, f"{name}.")
    return names


def described(cell: str) -> set[str]:
    """Return the paths that a table's cell has: "`a`; `b`, `c`: `d`" is a, b, c, b.d and c.d."""
    parts = [[re.findall(r"`([\w.]+)`", level) for level in part.split(": ")] for part in cell.split("; ")]
    chains = (levels[:depth] for levels in parts for depth in range(1, len(levels) + 1))
    return {".".join(path) for chain in chains for path in product(*chain)}


def documented() -> dict[str, set[str]]:
    """Return the documented fields of each file: of its section's table, or of the rows that begin with its name."""
    files = defaultdict(set)
    for title, text in re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE, re.M | re.S):
        for cells in (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")):
            names_file = re.fullmatch(r"`([\w.]+\.jsonl?)`", cells[0])
            file, cell = (names_file[1], cells[1]) if names_file else (title.strip("`"), cells[0])
            files[file] |= described(cell)
    files["checkpoint.pt"] = {name for name in files.pop("Checkpoints") if not name.endswith(".pt")}
    return files


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A run of images whose guard goes back and is switched on, and one of points."""
    folder = tmp_path_factory.mktemp("runs")
    guard = ["--method", "guard", "--guard.every", "2", "--guard.roll-back", *NERVOUS_OPTIONS]
    for name, options in (("run", guard), ("points", ["--data", "ring"])):
        code, printed = train(folder / name, *OPTIONS, "--steps", "12", "--no-tensorboard", *options)
        assert code == 0, printed
    (folder / "failed").mkdir()
    end(RunDirectory(folder / "failed"), -9)  # as that of a comparison whose process was killed
    return [folder / name for name in ("run", "points", "failed")]


@pytest.mark.slow
def test_the_page_has_the_fields_of_every_file(runs):
    written = defaultdict(set)
    for path in (file for run in runs for file in run.glob("*.json*")):
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        written[path.name] |= set().union(*(fields(json.loads(line)) for line in lines))
    written["checkpoint.pt"] = set(load_checkpoint(runs[0] / "checkpoint.pt"))
    written["results.json"] = set().union(*(fields(row) for row in results(open_cells(runs[:2]))))
    written["results.json"] -= written["result.json"]
    pages = documented()
    del pages["JsonlWriter"]
    assert pages == written


@pytest.mark.slow
def test_the_page_has_every_file_and_event_and_its_code_runs(runs, monkeypatch, capsys):
    written = {path.name + "/" * path.is_dir() for run in runs for path in run.iterdir()}
    assert sorted(name for name in written if f"`{name}`" not in PAGE) == []
    source = (ROOT / "src" / "specreg" / "experiments" / "recorder.py").read_text(encoding="utf-8")
    events = re.findall(r'_event\("([\w ]+)"', source)
    assert events
    assert sorted(event for event in events if f"`{event}`" not in PAGE) == []
    monkeypatch.chdir(runs[0].parent)
    exec("".join(re.findall(r"^```python\n(.+?)^```", PAGE, re.M | re.S)), {})
    assert capsys.readouterr().out


def test_the_page_has_the_fields_of_a_writers_line(tmp_path):
    networks = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)) for name in "DG"})
    real = torch.randn(500, 4)
    monitor = specreg.Monitor(networks, samples=lambda: (real, real), scores=networks["D"])
    monitor.actions.append(JsonlWriter(monitor, tmp_path / "spectra.jsonl"))
    monitor.step(1)
    line = json.loads((tmp_path / "spectra.jsonl").read_text(encoding="utf-8"))
    assert fields(line) == documented()["JsonlWriter"]
    top = {name for name in documented()["verdicts.jsonl"] if "." not in name}
    assert set(line["verdict"]) == top - {"step"} | {"groups"}
