"""What ``specreg report`` makes of a sweep: the paper's table beside ours, figures, what is missing."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from pictures import assert_drawn
from runs import HOSTILE, make_run
from specreg.cli import main
from specreg.experiments.methods import METHODS
from specreg.files import write_json
from specreg.records import RunDirectory
from specreg.report.figures import plot_by_setting, styles
from specreg.report.illustrations import NAMES, illustrations, scores
from specreg.report.page import check_folder, write_folder
from specreg.report.runs import Cell, grouped, open_cells, published
from specreg.report.tables import markdown, missing, notes, results, table


def make_sweep(out: Path, cells: dict[str, list[str]], *, preset: str = "paper", changed: str = "") -> Path:
    """Write the plan of a sweep, and none of its runs."""
    described = {
        name: {"changes": [changed] if changed else [], "runs": runs, "settings": {"training": {"steps": 1100}}}
        for name, runs in cells.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", {"preset": preset, "cells": described})
    return out


def scored(path: Path, method: str, protocol: str, fd: float, steps: int = 1100, **options) -> Path:
    """Make a run whose result is a Fréchet distance by a protocol."""
    result = {"method": method, "protocol": protocol, "fd": fd, "steps": steps}
    RunDirectory(make_run(path, method, **options)).write("result", result)
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    planned = ["sn-seed0", "static-seed0", "dynamic-seed0", "sn-seed2", "static-seed2"]
    out = make_sweep(tmp_path_factory.mktemp("sweep") / "out", {"A16-128": planned[:3], "C8-32": planned})
    for seed in (0, 2):
        make_run(out / "C8-32" / f"sn-seed{seed}", "sn", seed)
    make_run(out / "C8-32" / "static-seed0", "static", 0)
    make_run(out / "C8-32" / "static-seed2", "static", 2, complete=False)
    (out / "C8-32" / "dynamic-seed0").mkdir()
    write_json(out / "C8-32" / "dynamic-seed0" / "failed.json", {"error": "no memory"})
    return out


def test_the_published_scores_are_the_papers():
    paper = published("paper")["cells"]
    assert len(paper) == 26
    assert [name for name, cell in paper.items() if cell["collapse"] == "yes"] == [
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


def test_the_table_has_a_row_for_each_method_of_each_setting_with_what_is_published_beside(sweep):
    cells = open_cells([sweep])
    headings, rows, num_texts = table(cells)
    assert (headings[:6], num_texts) == (["setting", "method", "seeds", "modes ↑", "KL (nats) ↓", "FD ↓"], 2)
    assert headings[-5:] == ["collapsed", "verdict", "published FID", "published IS", "published collapse"]
    assert [row[0] for row in rows] == ["A16-128"] * 3 + ["C8-32"] * 3
    assert [[*row[1:4], row[5], *row[-5:]] for row in rows] == [
        ["SN", "0", "-", "-", "-", "-", "22.31 ± 0.28", "8.15 ± 0.09", "no"],
        ["static SR", "0", "-", "-", "-", "-", "24.67 ± 0.28", "8.35 ± 0.09", "-"],
        ["dynamic", "0", "-", "-", "-", "-", "-", "-", "-"],
        ["SN", "2", "501 ± 1", "13.00 ± 1.41", "2 of 2, from 700", "2 collapsed", "80.00 ± 1.12", "4.21 ± 0.18", "yes"],
        ["static SR", "1", "500", "12.00", "2 of 2, from 700", "2 collapsed", "66.05 ± 2.12", "4.93 ± 0.20", "-"],
        ["dynamic", "0", "-", "-", "-", "-", "-", "-", "-"],
    ]
    text = " ".join(notes(cells))
    assert text.startswith("3 of 8 runs are complete.")
    assert "static SR against SN, 1 setting: Fréchet distance +0.0% in the mean, lower in 0." in text  # seed 0
    assert "Inception" in text


def test_what_is_published_stands_beside_methods_that_nobody_planned(tmp_path):
    out = make_sweep(tmp_path / "sweep", {"C8-32": ["sn-seed0"]})
    assert [row[0] for row in table(open_cells([out])).rows] == ["sn", "static"]  # no run says how it is called


def test_a_terminal_gets_a_few_rows_as_columns_and_of_many_what_says_most(sweep):
    cells = open_cells([sweep])
    few, many = table(cells[1:]).brief(), table(cells).brief()
    assert few.headings == ["", "SN", "static SR", "dynamic"]
    assert ["FD ↓", "13.00 ± 1.41", "12.00", "-"] in few.rows
    assert many.headings == ["setting", "method", "seeds", "modes ↑", "KL (nats) ↓", "FD ↓", "verdict"]
    assert many.rows[3][-2:] == ["13.00 ± 1.41", "2 collapsed"]


def test_what_a_table_in_a_file_says_cannot_move_the_cursor_of_who_prints_it(tmp_path):
    out = make_sweep(tmp_path / "sweep", {"C8-32": ["sn-seed0", "static-seed0"]}, changed="a\x1b[2J\nb")
    make_run(out / "C8-32" / "sn-seed0")
    (out / "C8-32" / "static-seed0").mkdir()
    write_json(out / "C8-32" / "static-seed0" / "failed.json", {"error": "c\x1b[2J\nd"})
    text = markdown(open_cells([out]))
    assert "a�[2J�b." in text
    assert text.endswith("failed: c�[2J�d\n")


def test_what_is_missing_is_said(sweep):
    assert missing(open_cells([sweep])) == [
        ["A16-128/sn-seed0", "not begun"],
        ["A16-128/static-seed0", "not begun"],
        ["A16-128/dynamic-seed0", "not begun"],
        ["C8-32/dynamic-seed0", "failed: no memory"],
        ["C8-32/static-seed2", "at iteration 1100 of 1100"],
    ]


def test_spectra_of_runs_of_several_lengths_have_legends_of_their_own(tmp_path):
    names = ["sn-seed0", "static-seed0"]
    out = make_sweep(tmp_path / "sweep", {"A16-128": names, "C8-32": names})
    for cell in ("A16-128", "C8-32"):
        for name in names:
            make_run(out / cell / name, name.removesuffix("-seed0"))
    series = out / "C8-32" / "static-seed0" / "spectra.jsonl"
    series.write_text("".join(series.read_text().splitlines(keepends=True)[:5]))
    shown = next(shown for shown in illustrations(open_cells([out])) if shown.name == "spectra")
    alike, different = shown.parts
    whole, short = ([f"iteration {step}" for step in steps] for steps in ((0, 300, 600, 800, 1100), range(0, 500, 100)))
    assert [list(alike.legend), *(list(panel.legend) for panel in alike.panels)] == [whole, [], []]
    assert [list(different.legend), *(list(panel.legend) for panel in different.panels)] == [[], whole, short]


def test_a_sweep_leaves_results_tables_and_pictures(sweep):
    cells = open_cells([sweep])
    files = write_folder(sweep, cells)
    assert [file.name for file in files] == [
        "results.json", "table.md", "spectra.png", "methods.png", "scores.png", "outputs.png", "samples.png",
    ]  # fmt: skip
    for file in files[2:]:
        assert_drawn(file)
    assert {file.stem for file in files[2:]} <= set(NAMES)  # of those, what is outdated is deleted
    assert "| C8-32 | SN | 2 | 501 ± 1 | 0.50 ± 0.00 | 13.00 ± 1.41 |" in files[1].read_text(encoding="utf-8")
    assert "- C8-32/dynamic-seed0: failed: no memory" in files[1].read_text(encoding="utf-8")
    assert json.loads(files[0].read_text()) == results(cells)
    written = [(run["cell"], run["method"], run["seed"], run["fd"], run["collapsed"]) for run in results(cells)]
    assert written == [("C8-32", "sn", 0, 12.0, 700), ("C8-32", "sn", 2, 14.0, 700), ("C8-32", "static", 0, 12.0, 700)]


@pytest.mark.usefixtures("unrendered")
def test_the_page_of_several_settings_has_the_papers_figures(sweep, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(sweep), "-o", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("C8-32: SN, seed 0: collapsed. ")
    text = page.read_text()
    shown = ["spectra", "methods", "scores", "outputs", "samples"]
    assert re.findall(r'<section id="(\w+)"', text) == ["verdict", "results", *shown, "settings"]
    assert "as in figure 5 of the paper" in text
    assert text.count("<img") == 2 + 1 + 5 + 2 + 3  # two methods, one final, five scores, two outputs, real and two
    assert "failed: no memory" in text


@pytest.mark.usefixtures("unrendered")
def test_the_final_scores_of_several_settings_are_drawn_side_by_side(tmp_path):
    out = make_sweep(tmp_path / "sweep", {"a": ["sn-seed0"], "b": ["sn-seed0"]}, preset="mine")
    for cell in ("a", "b"):
        make_run(out / cell / "sn-seed0", "sn")
    assert "settings-compared" in NAMES
    assert "settings-compared.png" in [file.name for file in write_folder(out, open_cells([out]))]


def test_a_setting_has_no_panel_of_what_it_does_not_measure(tmp_path):
    out = make_sweep(tmp_path / "out", {"A": ["sn-seed0"], "B": ["sn-seed0"]})
    make_run(out / "A" / "sn-seed0")
    run = RunDirectory(make_run(out / "B" / "sn-seed0"))
    series = run.series("evaluations")
    (run.path / "evaluations.jsonl").unlink()
    for record in series:
        run.append("evaluations", {key: value for key, value in record.items() if key != "modes"})
    first, second = scores(open_cells([out])).parts
    assert {panel.title for panel in first.panels} - {panel.title for panel in second.panels} == {"modes ↑"}


def test_a_damaged_picture_is_found_before_anything_is_trained(tmp_path):
    out = make_sweep(tmp_path / "out", {"A": ["sn-seed0"]})
    run = RunDirectory(make_run(out / "A" / "sn-seed0"))
    assert check_folder(out)
    run.image("samples").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no picture"):
        check_folder(out)


def test_a_sweep_that_has_only_begun(tmp_path):
    out = make_sweep(tmp_path / "sweep", {"a cell": ["sn-seed0"]}, preset="mine")
    assert main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "0 of 1 runs are complete." in (tmp_path / "page.html").read_text()
    for name in ("table.md", "samples.png", "missing.png", "mine.png"):
        (out / name).write_text("of runs that went on since")
    assert [path.name for path in write_folder(out, open_cells([out]))] == ["results.json"]
    assert sorted(path.name for path in out.iterdir()) == ["mine.png", "results.json", "sweep.json"]
    assert json.loads((out / "results.json").read_text()) == []


def test_a_comparison_is_a_sweep_of_one_cell(tmp_path):
    out = make_sweep(tmp_path / "out", {"runs": ["sn-seed0", "sn-seed1"]}, preset="")
    make_run(out / "runs" / "sn-seed0", "sn")
    (cell,) = open_cells([out, out / "runs"])
    assert [run.label for run in cell.runs] == ["SN, seed 0"]
    assert missing([cell]) == [["runs/sn-seed1", "not begun"]]


@pytest.mark.usefixtures("unrendered")
def test_of_many_runs_the_page_shows_the_first_of_each_method(tmp_path, capsys):
    for seed in range(30):
        make_run(tmp_path / "runs" / str(seed), "sn", seed)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "Of 30 runs: 30 collapsed."
    text = (tmp_path / "page.html").read_text()
    assert text.count("<img") < 30
    assert "What was said of each run" in text
    assert "SN, seed 29" in text


def test_several_sweeps_share_a_page_and_one_setting_has_a_page_of_its_own(sweep, tmp_path):
    other = make_sweep(tmp_path / "other", {"C8-32": ["sn-seed0"], "B8-64": ["sn-seed0"]}, changed="steps 9 -> 1100")
    make_run(other / "C8-32" / "sn-seed0", "sn", 0)
    cells = open_cells([sweep, other])
    assert [cell.label for cell in cells] == ["A16-128", "B8-64", "C8-32 (out)", "C8-32 (other)"]
    assert "Not the preset's settings in B8-64, C8-32 (other): steps 9 -> 1100." in notes(cells)
    (cell,) = open_cells([sweep / "C8-32"])
    assert list(grouped(cell.runs)) == ["SN", "static SR"]


def test_a_gain_is_not_taken_between_protocols(tmp_path):
    methods = ("sn", "static", "none")
    for name, protocols in (("A16-128", ("a", "a", "b")), ("C8-32", ("a", "b", "b"))):
        for method, kind in zip(methods, protocols, strict=True):
            scored(tmp_path / "out" / name / f"{method}-seed0", method, kind, 10.0 if method == "sn" else 5.0)
    planned = {name: [f"{method}-seed0" for method in methods] for name in ("A16-128", "C8-32")}
    text = " ".join(notes(open_cells([make_sweep(tmp_path / "out", planned)])))
    assert "static SR against SN, 1 setting: Fréchet distance -50.0% in the mean, lower in 1." in text
    assert "no normalization against" not in text


def test_what_ended_early_is_named_and_gains_nothing(tmp_path):
    planned = {name: ["sn-seed0", "static-seed0"] for name in ("A16-128", "C8-32")}
    for name, steps in (("A16-128", 1100), ("C8-32", 200)):
        scored(tmp_path / "out" / name / "sn-seed0", "sn", "a", 10.0, steps)
        scored(tmp_path / "out" / name / "static-seed0", "static", "a", 5.0)
    text = " ".join(notes(open_cells([make_sweep(tmp_path / "out", planned)])))
    assert "Ended before the last iteration, and judged as they were then: C8-32: SN, seed 0 at 200 of 1100." in text
    assert "static SR against SN, 1 setting: Fréchet distance -50.0% in the mean, lower in 1." in text


def test_settings_of_folders_of_one_name_have_labels_of_their_own(tmp_path):
    folders = [make_sweep(tmp_path / place / "demo", {"C8-32": ["sn-seed0"]}) for place in "ab"]
    cells = open_cells(folders)
    assert [cell.label for cell in cells] == [f"C8-32 ({folder})" for folder in folders]


def test_a_methods_line_is_the_same_in_each_setting_whichever_have_begun(tmp_path):
    out = make_sweep(tmp_path / "out", {"A16-128": ["sn-seed0", "static-seed0"], "C8-32": ["static-seed0"]})
    for run in ("A16-128/sn-seed0", "A16-128/static-seed0", "C8-32/static-seed0"):
        make_run(out / run, run.split("/")[1].split("-")[0], 0)
    patterns = []
    for panel in (part.panels[0] for shown in illustrations(open_cells([out])) if shown.name == "scores"
                  for part in shown.parts):  # fmt: skip
        figure, axis = plt.subplots()
        panel.content(axis)
        patterns += [line.get_linestyle() for line in axis.lines if line.get_color() == METHODS["static"].colour]
        plt.close(figure)
    assert patterns == ["--", "--"]


def test_a_setting_whose_runs_have_two_protocols_has_no_bar(tmp_path):
    out = make_sweep(tmp_path / "out", {"A16-128": ["sn-seed0"], "C8-32": ["sn-seed0", "sn-seed1"]})
    scored(out / "A16-128" / "sn-seed0", "sn", "a", 5.0)
    scored(out / "C8-32" / "sn-seed0", "sn", "a", 10.0)
    scored(out / "C8-32" / "sn-seed1", "sn", "b", 99.0, seed=1)
    figure, axis = plt.subplots()
    cells = open_cells([out])
    plot_by_setting(axis, cells, "fd", styles(cells[0].runs))
    assert list(axis.lines[0].get_ydata()) == [5.0]  # the others are the ends of its bar
    plt.close(figure)


@pytest.fixture
def mixed(tmp_path) -> list[Cell]:
    """A setting of a sweep with SN and static SR, and runs beside it of static SR with two options and of longer SN."""
    make_sweep(tmp_path / "out", {"C8-32": ["sn-seed0", "static-seed0"]})
    scored(tmp_path / "out/C8-32/sn-seed0", "sn", "a", 10.0)
    scored(tmp_path / "out/C8-32/static-seed0", "static", "a", 5.0)
    scored(tmp_path / "loose/a", "sn", "a", 20.0)
    scored(tmp_path / "loose/b", "static", "a", 40.0, keep=0.25)
    scored(tmp_path / "loose/c", "static", "a", 80.0, keep=0.75)
    return open_cells([tmp_path / "out", tmp_path / "loose"])


def test_a_gain_is_of_one_group_and_of_runs_that_differ_in_the_methods_options_alone(mixed, tmp_path):
    gain = "static SR against SN, 1 setting: Fréchet distance -50.0% in the mean, lower in 1."
    assert gain in notes(mixed)
    for name in ("b", "c"):
        config = json.loads((tmp_path / "loose" / name / "config.json").read_text())
        config["settings"]["methods"]["static"]["keep"] = 0.5
        config["settings"]["training"]["steps"] = 7
        write_json(tmp_path / "loose" / name / "config.json", config)
    assert gain in notes(open_cells([tmp_path / "out", tmp_path / "loose"]))


def test_settings_compared_have_the_tables_numbers_and_a_legend_of_the_marks(mixed):
    shown = next(shown for shown in illustrations(mixed) if shown.name == "settings-compared")
    figure, axis = plt.subplots()
    shown.parts[0].panels[-1].content(axis)
    rows = {(row[0], row[1]): row[3] for row in table(mixed).rows if row[3] != "-"}
    drawn = {
        (mixed[round(x)].label, bars.get_label()): f"{y:.2f}"
        for bars in axis.containers for x, y in zip(*bars.lines[0].get_data(), strict=True)
    }  # fmt: skip
    assert drawn == rows
    marks = {(line.get_color(), line.get_marker()) for line in (bars.lines[0] for bars in axis.containers)}
    assert len(marks) == len(axis.containers) == len(axis.get_legend().get_texts()) == 4
    assert not shown.parts[0].legend  # which would show lines, that nothing here has
    plt.close(figure)


def test_strings_of_a_sweep_stay_text(tmp_path):
    out = make_sweep(tmp_path / "sweep", {HOSTILE.replace("/", ""): ["sn-seed0"]}, preset=HOSTILE, changed=HOSTILE)
    assert main(["report", str(out), "-o", str(tmp_path / "page.html")]) == 0
    assert "<script" not in (tmp_path / "page.html").read_text()
