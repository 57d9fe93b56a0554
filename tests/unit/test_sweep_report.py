"""What ``specreg report`` makes of a sweep: the paper's table beside ours, figures, what is missing."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from runs import HOSTILE, make_run
from specreg.cli import main
from specreg.files import write_json
from specreg.report import open_runs, open_sweeps
from specreg.report.runs import grouped
from specreg.report.sweeps import missing, notes, published, summary, tables


def make_sweep(out: Path, cells: dict[str, list[str]], *, preset: str = "paper", changed: str = "") -> Path:
    """Write a sweep's folder in which every second planned run of a cell has been made, the first and so on."""
    described = {
        name: {"changes": [changed] if changed else [], "runs": runs, "settings": {"training": {"steps": 1100}}}
        for name, runs in cells.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", {"preset": preset, "cells": described})
    return out


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    planned = ["sn-seed0", "static-seed0", "dynamic-seed0", "sn-seed2", "static-seed2"]
    out = make_sweep(tmp_path_factory.mktemp("sweep") / "out", {"A16-128": planned[:3], "C8-32": planned})
    for seed in (0, 2):
        make_run(out / "C8-32" / f"sn-seed{seed}", "sn", seed)
    make_run(out / "C8-32" / "static-seed0", "static", 0)
    make_run(out / "C8-32" / "static-seed2", "static", 2, complete=False)
    (out / "C8-32" / "dynamic-seed0").mkdir()
    write_json(out / "C8-32" / "dynamic-seed0" / "failed.json", {"error": "no memory", "code": 1})
    return out


def test_the_published_scores_are_the_papers():
    paper = published("paper")["cells"]
    assert len(paper) == 26
    assert [name for name, cell in paper.items() if cell["collapse"]] == [
        "B64-64", "B128-64", "B256-64", "C8-32", "C16-32", "C32-32", "C64-32", "C128-32", "E256-64", "E256-32",
    ]  # fmt: skip
    assert paper["A16-128"]["FID"] == {"sn": [22.31, 0.28], "static": [24.67, 0.28]}
    worse = [name for name, cell in paper.items() if cell["FID"]["static"][0] > cell["FID"]["sn"][0]]
    assert worse == ["A16-128"]
    sums = [sum(cell[score][method][part] for cell in paper.values())
            for score in ("IS", "FID") for method in ("sn", "static") for part in (0, 1)]  # fmt: skip
    assert sums == pytest.approx([185.34, 3.03, 194.23, 2.91, 1137.66, 14.06, 968.35, 10.95])
    assert published("sttp")["cells"]["C64-32"]["FID"] == {"sn": [55.17], "dynamic": [27.24]}
    assert published("digits") == {}


def test_the_table_has_settings_as_rows_and_methods_as_columns(sweep):
    cells = open_sweeps([sweep])
    found = {table.key: table for table in tables(cells)}
    distance = found["fd"]
    assert distance.headings == [
        "setting", "SN", "static SR", "dynamic",  # of which no run has begun to say what it is called
        "published FID, SN", "published FID, static SR", "published IS, SN", "published IS, static SR",
    ]  # fmt: skip
    a16 = ["A16-128", "-", "-", "-", "22.31 ± 0.28", "24.67 ± 0.28", "8.15 ± 0.09", "8.35 ± 0.09"]
    c8 = ["C8-32", "13.00 ± 1.41 (2)", "12.00 (1)", "-"]
    assert distance.rows == [a16, [*c8, "80.00 ± 1.12", "66.05 ± 2.12", "4.21 ± 0.18", "4.93 ± 0.20"]]
    assert found["modes"].headings == ["setting", "SN", "static SR", "dynamic"]
    assert found["modes"].rows[1] == ["C8-32", "501 ± 1 (2)", "500 (1)", "-"]
    assert "seconds" not in found
    collapse = found["collapse"]
    assert collapse.headings[-1] == "published, SN"
    assert collapse.rows == [
        ["A16-128", "-", "-", "-", "no"],
        ["C8-32", "2 of 2, from 700", "2 of 2, from 700", "-", "yes"],
    ]
    said = " ".join(notes(cells))
    assert said.startswith("3 of 8 runs are complete.")
    assert "static SR against SN, 1 setting: Fréchet distance -7.7% in the mean, lower in 1." in said
    assert "Inception" in said


def test_what_is_missing_is_said(sweep):
    assert missing(open_sweeps([sweep])) == [
        ("A16-128/sn-seed0", "not begun"),
        ("A16-128/static-seed0", "not begun"),
        ("A16-128/dynamic-seed0", "not begun"),
        ("C8-32/dynamic-seed0", "failed: no memory"),
        ("C8-32/static-seed2", "at iteration 1100 of 1100"),
    ]


def test_the_command_writes_page_tables_and_figures_and_overwrites_only_when_told(sweep, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(sweep), "-o", str(page)]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == [
        "page.html", "table.md", "results.json", "figures1-4-spectra-C.png", "figures1-4-scores-C.png",
        "figure5-final-C.png", "outputs-C.png", "scores-by-setting.png",
    ]  # fmt: skip
    assert {file.parent for file in files[1:]} == {tmp_path / "page-files"}
    for file in files[3:]:
        with Image.open(file) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").resize((50, 50)).getcolors(256) or []) > 5  # not blank
    assert "| C8-32 | 13.00 ± 1.41 (2) | 12.00 (1) | - | 80.00 ± 1.12 |" in files[1].read_text()
    assert "- C8-32/dynamic-seed0: failed: no memory" in files[1].read_text()
    results = json.loads(files[2].read_text())
    assert results == json.loads(json.dumps(summary(open_sweeps([sweep]))))
    assert results["cells"][1]["methods"]["sn"]["fd"] == [12.0, 14.0]
    text = page.read_text()
    assert text.count("<img") == 5
    assert re.findall(r'<section id="(\w+)"', text) == ["results", "missing", "figures", "verdict", "settings"]
    assert main(["report", str(sweep), "-o", str(page)]) == 2
    assert main(["report", str(sweep), "-o", str(page), "--overwrite"]) == 0
    page.unlink()
    capsys.readouterr()
    assert main(["report", str(sweep), "-o", str(page)]) == 2
    assert "page-files exists: choose another name with --out, or replace it with" in capsys.readouterr().err


def test_a_sweep_that_has_only_begun(tmp_path):
    out = make_sweep(tmp_path / "sweep", {"a cell": ["sn-seed0"]}, preset="mine")
    assert main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "0 of 1 runs are complete." in (tmp_path / "page.html").read_text()
    assert sorted(file.name for file in (tmp_path / "page-files").iterdir()) == ["results.json", "table.md"]


def test_several_sweeps_share_a_table_and_one_setting_has_a_page_of_its_own(sweep, tmp_path, capsys):
    other = make_sweep(tmp_path / "other", {"C8-32": ["sn-seed0"], "B8-64": ["sn-seed0"]}, changed="steps 9 -> 1100")
    make_run(other / "C8-32" / "sn-seed0", "sn", 0)
    cells = open_sweeps([sweep, other])
    assert [cell.label for cell in cells] == ["A16-128", "B8-64", "C8-32 (out)", "C8-32 (other)"]
    assert "Not the preset's settings in B8-64, C8-32 (other): steps 9 -> 1100." in notes(cells)
    assert list(grouped(open_runs([sweep / "C8-32"]))) == ["SN", "static SR"]
    assert main(["report", str(sweep), str(sweep / "C8-32"), "-o", str(tmp_path / "page.html")]) == 2
    assert "give sweeps' folders alone" in capsys.readouterr().err


def test_strings_of_a_sweep_stay_text_and_a_damaged_one_is_named(tmp_path, capsys):
    out = make_sweep(tmp_path / "sweep", {HOSTILE.replace("/", ""): ["sn-seed0"]}, preset=HOSTILE, changed=HOSTILE)
    assert main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "<script" not in (tmp_path / "page.html").read_text()
    write_json(out / "sweep.json", {"preset": "paper", "cells": {"A": 3}})
    assert main(["report", str(out), "-o", str(tmp_path / "other.html")]) == 2
    assert "sweep.json does not hold a sweep" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()
