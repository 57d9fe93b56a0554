"""The page of ``specreg report``: what it says, in which order, and that nothing in a record becomes markup."""

import base64
import functools
import io
import itertools
import json
import math
import random
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from runs import HOSTILE, Page, damage, make_run
from specreg.cli import main
from specreg.files import write_json
from specreg.names import ALARMS
from specreg.records import RunDirectory
from specreg.report.figures import plot_bulks, plot_curves, plot_named, styles
from specreg.report.illustrations import Illustration, Panel, Part, _ends, illustrations, layers, samples, scores
from specreg.report.page import write_page
from specreg.report.panels import picture, write_sheet
from specreg.report.runs import Run, bulk, grouped, open_cells, ratios
from specreg.report.tables import markdown, mean_and_spread, protocol, table
from specreg.report.verdicts import line, lines, segments, sentence, tone
from specreg.spectra import statistics


def page_of(tmp_path: Path, *runs: Path) -> Page:
    write_page(tmp_path / "report.html", open_cells(runs))
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    make_run(out / "runs" / "static-seed0", "static")
    make_run(out / "runs" / "sn-seed10", "sn", 10)
    make_run(out / "runs" / "sn-seed2", "sn", 2, watched=False, complete=False)
    return out


@pytest.fixture(scope="module")
def page(comparison) -> Page:
    return page_of(comparison, comparison)


def test_the_verdict_comes_first_and_names_state_layer_and_iteration(page):
    order = ["verdict", "results", "spectra", "layers", "methods", "scores", "outputs", "samples", "settings"]
    assert [section["id"] for section in page.attributes("section")] == order
    first = page.text[page.text.index("Of 3 runs") : page.text.index("Each curve is")]
    assert "Of 3 runs: 2 collapsed, 1 not watched." in first
    assert "Collapsed since iteration 500: the bulk of s_k/s_1 fell from 0.90 to 0.20 in blocks.1 (1 of 1)" in first
    assert re.search(r"0\s*steady\s*700\s*collapsed\s*900\s*guard on", first)
    assert first.index("SN, seed 2") < first.index("SN, seed 10") < first.index("static SR, seed 0")


def test_a_run_without_verdicts_is_said_to_be_unwatched(comparison):
    run = Run(RunDirectory(comparison / "runs" / "sn-seed2"))
    assert line(run).startswith("SN, seed 2: not watched. No detector judged this run's spectra.")
    assert segments(run) == []


def test_verdicts_in_words(tmp_path):
    run = Run(RunDirectory(make_run(tmp_path / "run")))
    assert segments(run) == [(0, 700, "steady"), (700, 1100, "collapsed")]
    run.verdicts = run.verdicts[:3]
    unmeasured = "Coverage of the data was not measured."
    assert sentence(run) == f"No layer's spectrum collapsed in 200 iterations. {unmeasured}"
    steady = run.verdicts[0]
    fallen = {"state": "collapsing", "spectra": {"state": "collapsing", "since": 40, "message": ""}}
    run.verdicts = [steady, steady | {"step": 50} | fallen, steady | {"step": 90}]
    fell = "No spectrum is falling now; the fall seen from iteration 50 to 50"
    assert sentence(run) == f"{fell} ended when the guard came on. {unmeasured}"
    run.events = []
    assert sentence(run) == f"{fell} came to an end. {unmeasured}"
    run.events = [{"step": 80, "event": "dead discriminator"}]
    assert sentence(run).endswith(
        f"came to an end. {unmeasured} Its discriminator was dead at iteration 80: its gradient was 0."
    )


def test_a_run_within_the_warm_up_is_called_neither_steady_nor_healthy(tmp_path):
    run = Run(RunDirectory(make_run(tmp_path / "run")))
    early = {"state": "not judged", "since": None, "message": "not judged before iteration 1500"}
    run.verdicts = [run.verdicts[0] | early | {"spectra": early}]
    said = "SN, seed 0: not judged. The spectra are not judged before iteration 1500."
    assert line(run) == f"{said} Coverage of the data was not measured."
    run.verdicts = [run.verdicts[0] | {"coverage": early | {"message": "coverage not judged yet: x"}}]
    assert sentence(run) == "Coverage not judged yet: x. The spectra are not judged before iteration 1500."
    (cell,) = open_cells([tmp_path / "run"])
    cell.runs[0].verdicts = run.verdicts
    assert table([cell]).rows[0][-2:] == ["not judged", "1 not judged"]


def answer(state, message):
    return {"state": state, "since": 300, "message": message}


@pytest.mark.parametrize(
    ("state", "spectra", "coverage", "words"),
    [
        ("healthy", "steady", "healthy", "Coverage healthy: x. No layer's spectrum collapsed in 1100 iterations."),
        # Modes that are lost are no fall of the spectra, of which nothing came to an end.
        ("lost", "steady", "lost", "Lost modes: x. No layer's spectrum collapsed in 1100 iterations."),
        ("warning", "collapsed", "healthy", "Coverage healthy: x. Fallen."),
        ("dead", "steady", "healthy", "The discriminator is dead: y. Coverage healthy: x. No layer's spectrum"),
    ],
)
def test_what_was_measured_on_samples_is_said_first(tmp_path, state, spectra, coverage, words):
    run = Run(RunDirectory(make_run(tmp_path / "run")))
    message = "coverage healthy: x" if coverage == "healthy" else "lost modes: x"
    signal = answer("dead", "the discriminator is dead: y") if state == "dead" else answer("teaching", "it teaches")
    answers = {"spectra": answer(spectra, "fallen"), "coverage": answer(coverage, message), "signal": signal}
    run.verdicts = [verdict | {"state": state} | answers for verdict in run.verdicts]
    assert line(run).startswith(f"SN, seed 0: {state}. {words}")
    assert "not measured" not in sentence(run)
    assert tone(state) == {"healthy": "healthy", "warning": "amber"}.get(state, "red")


def test_every_state_of_a_verdict_has_a_tone_and_a_style():
    style = (files("specreg.report") / "page.css").read_text(encoding="utf-8")
    for state in (*ALARMS, "steady", "healthy", "recovered", "warning"):
        assert f".{tone(state)} {{ --state:" in style
    assert {tone(state) for state in ("not judged", "not watched")} == {"unwatched"}


def test_a_bulk_is_shaded_by_what_was_said_of_spectra_and_by_no_other_answer(tmp_path):
    shades = {}
    for spectra in ("steady", "collapsed"):
        run = Run(RunDirectory(make_run(tmp_path / spectra)))
        run.verdicts = [
            verdict | {"state": "lost", "spectra": verdict["spectra"] | {"state": spectra}} for verdict in run.verdicts
        ]
        figure, axis = plt.subplots()
        plot_bulks(axis, run)
        shades[spectra] = [patch.get_hatch() for patch in axis.patches]
        plt.close(figure)
    assert shades == {"steady": [], "collapsed": ["//"]}


@pytest.mark.usefixtures("unrendered")
def test_what_is_missing_has_a_column_a_curve_and_a_picture(tmp_path):
    paths = [
        make_run(tmp_path / str(seed), seed=seed, reading={"missing": share, "lost": 0.4, "far": 0.2, "floor": floor})
        for seed, (share, floor) in enumerate(((0.5, 0.055), (0.7, 0.057)))
    ]
    shown = table(open_cells(paths))
    assert shown.rows[0][shown.headings.index("missing ↓")] == "0.600 ± 0.141"
    page = page_of(tmp_path, *paths)
    sections = [section["id"] for section in page.attributes("section")]
    assert sections[:3] == ["verdict", "results", "missing"]
    assert "a lower bound on the share of the data's mass that is not generated" in page.text
    assert "a perfect generator stays below 0.055 to 0.057." in page.text
    alts = [image["alt"] for image in page.attributes("img")]
    assert sum(alt.startswith("Real images that nothing generated by SN, seed") for alt in alts) == 2
    assert any(alt.startswith("missing ↓ during training") for alt in alts)
    assert any(alt.startswith("lost ↓ during training") for alt in alts)
    assert not any(alt.startswith(("far", "floor")) for alt in alts)
    assert [attributes.get("class") for attributes in page.attributes("ul")].count("answers") == 2
    first = page.text[page.text.index("SN, seed 0") : page.text.index("SN, seed 1")]
    told = re.findall(r"(Spectra|Coverage|Signal)\s+(\w+)(?:\s+since iteration (\d+))?", first)
    assert told == [("Spectra", "collapsed", "500"), ("Coverage", "lost", "300"), ("Signal", "teaching", "")]


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that are drawn, which stay open until the test is over."""
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    for figure in drawn:
        plt.close(figure)


@pytest.mark.parametrize("grids", [True, False])
def test_titles_on_a_sheet_run_neither_into_each_other_nor_off_it(grids, tmp_path, figures):
    content, size = (Image.new("RGB", (32, 32)), (2.1, 2.2)) if grids else (lambda axis: axis.plot([0, 1]), None)
    titles = (
        "P(held-out image scores above generated)",
        "SN + orthogonality, seed 0: never learnt",
        "Real, img_align_celeba_cropped_128x128_train.zip",
    )
    parts = [Part([Panel(titles[number % 3], "", content, size=size) for number in range(5)])]
    write_sheet(tmp_path / "sheet.png", Illustration("scores", "Scores", "", parts))
    (figure,) = figures
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[0].x0 > 0
    assert boxes[-1].x1 < figure.bbox.x1


def test_numbers_beside_a_panel_lie_on_it_whole(figures):
    for least, most in ((0.00255, 0.0556), (-0.025, 0.01), (0.0021, 0.0029)):
        curves = {"real": {250: most, 1500: least}}
        picture(Panel("n", "n", functools.partial(plot_named, curves=curves)))
        labels = [label for label in figures[-1].axes[0].get_yticklabels(which="both") if label.get_text()]
        assert min(label.get_window_extent().x0 for label in labels) >= 0


def test_a_sheet_of_runs_with_different_layers_has_the_legend_of_each(comparison, tmp_path, figures):
    write_sheet(tmp_path / "layers.png", layers(open_cells([comparison])))
    legends = [axis.get_legend() for axis in figures[0].axes if axis.get_legend() is not None]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert ["blocks.0", "blocks.1", "head"] in texts
    assert ["blocks.0", "blocks.1"] in texts


def test_a_picture_is_read_as_a_png_alone(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **named: called.append(given))
    run = RunDirectory(make_run(tmp_path / "run"))
    run.image("samples").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n" + b" " * 99
    )
    with pytest.raises(ValueError, match="is no picture"):
        Run(run).picture("samples")
    assert not called


def test_a_run_that_failed_says_so(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", complete=False))
    run.write("failed", {"error": "no memory"})
    assert sentence(Run(run)).endswith("The run is at iteration 1100 of 1100. It failed: no memory.")


def test_panels_name_the_scores_of_the_last_weights_and_data_by_their_file(tmp_path):
    run = make_run(tmp_path / "run", reading={"last_fd": 9.0, "last_thing": 1.0})
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data"]["data"] = "/home/someone/pictures.zip"
    (run / "config.json").write_text(json.dumps(config))
    cells = open_cells([run])
    titles = [panel.title for part in scores(cells).parts for panel in part.panels]
    assert {"FD ↓", "FD ↓, last weights", "last_thing"} <= set(titles)
    assert samples(cells).parts[0].panels[0].title == "Real, pictures.zip"


def test_what_a_picture_shows_is_told_in_three_digits_but_a_thousand_in_full():
    curves = {"a": {1: 5.0, 9: 1000}, "b": {9: 0.12345}, "c": {3: 12345.6}, "d": {9: math.inf}}
    assert _ends(curves) == "at the end: a 1000, b 0.123, c 12300 (iteration 3), d inf"


def test_a_mean_says_how_many_runs_had_a_value():
    assert mean_and_spread([0.5, None, float("inf"), 1.5], 2) == "1.00 ± 0.71 (2 of 4)"
    assert mean_and_spread([1.0, 1.0], 1) == "1.0 ± 0.0"
    assert mean_and_spread([None], 1) == "-"


def test_what_would_be_rounded_to_nothing_has_two_digits():
    assert mean_and_spread([0.0031, 0.0019], 2) == "0.0025 ± 0.0008"
    assert mean_and_spread([0.0, 0.0], 2) == "0.00 ± 0.00"
    assert mean_and_spread([-0.00124, 0.00116], 3) == "-0.000 ± 0.002"


def test_scores_of_different_protocols_are_not_averaged(tmp_path):
    for seed, (name, fd) in enumerate((("a", 1.0), ("b", 9.0), ("a", 3.0))):
        run = RunDirectory(make_run(tmp_path / "runs" / str(seed), "sn", seed))
        run.write("result", {"method": "sn", "protocol": name, "fd": fd})
    assert [cells[:3] for cells in table(open_cells([tmp_path])).rows] == [
        ["SN, a", "2", "2.00 ± 1.41"], ["SN, b", "1", "9.00"],
    ]  # fmt: skip


def test_a_name_that_would_break_the_table_is_escaped(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run"))
    write_json(run.path / "method.json", {"title": "a|b\nc", "colour": "#c44e52", "order": 0})
    lines = markdown(open_cells([run.path])).splitlines()
    assert lines[2].startswith("| a\\|b")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:3]}) == 1


def test_one_protocol_of_points_is_one_line():
    row = {"features": "coordinates", "protocol": "p", "num_real": 9, "num_fake": 9}
    assert protocol(row | {"kl_floor": 0.5}) == protocol(row | {"kl_floor": 0.6})
    assert "KL of a perfect sampler: 0.5" in protocol(row | {"kl_floor": 0.5, "features": "digit-classifier"})


def test_every_picture_is_inside_decodable_and_described(page):
    images = page.attributes("img")
    assert len(images) > 20
    for image in images:
        kind, data = re.fullmatch(r"data:image/(png);base64,(.+)", image["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.load()
            assert picture.format == kind.upper()
            assert picture.size == (int(image["width"]), int(image["height"]))
        assert len(image["alt"]) > 20


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page):
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:").startswith("data:")
    policy = page.attributes("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_strings_from_records_stay_text(tmp_path):
    run = make_run(tmp_path / "run", HOSTILE, name=HOSTILE, keep=HOSTILE)
    page = page_of(tmp_path, run, make_run(tmp_path / "other", "sn", 1, name="x\ud800y"))
    assert "x?y" in page.text  # half of a surrogate pair
    assert "script" not in {name for name, _ in page.elements}
    assert all(attributes.get("id") != "hostile" and "onerror" not in attributes for _, attributes in page.elements)
    assert page.text.count(HOSTILE) > 10
    assert any(HOSTILE in image["alt"] for image in page.attributes("img"))


def test_what_a_terminal_is_told_cannot_move_its_cursor(tmp_path):
    run = Run(RunDirectory(make_run(tmp_path / "run", name="a\x1b[2J\nb")))
    assert "a�[2J�b" in line(run)
    many = [
        make_run(tmp_path / f"{len(method)}-{seed}", method, seed)
        for method in ("sn", "x\x1b[2J")
        for seed in range(13)
    ]
    assert lines(open_cells(many)) == ["Of 26 runs: 26 collapsed. SN: 13 collapsed; x�[2J: 13 collapsed."]


@pytest.mark.usefixtures("unrendered")
def test_the_results_are_grouped_by_method_and_by_setting(tmp_path):
    paths = [
        make_run(tmp_path / f"{keep}-{seed}", "static", seed, keep=keep) for keep in (0.5, 0.25) for seed in (0, 1)
    ]
    cells = open_cells(paths)
    assert list(grouped(cells[0].runs)) == ["static SR, keep 0.5", "static SR, keep 0.25"]
    assert [row[:3] for row in table(cells).rows] == [
        ["static SR, keep 0.5", "2", "500 ± 1"],
        ["static SR, keep 0.25", "2", "500 ± 1"],
    ]
    page = page_of(tmp_path, *paths)
    assert "Settings: what differs" in page.text
    assert len(page.attributes("mark")) == 2 + 2  # seed of the second and fourth run, keep of the third and fourth


def test_options_of_other_methods_tell_no_runs_apart(tmp_path):
    paths = [make_run(tmp_path / f"sn-{seed}", "sn", seed, keep=(0.5, 0.7)[seed]) for seed in (0, 1)]
    (cell,) = open_cells(paths)
    assert list(grouped(cell.runs)) == ["SN"]


def test_settings_of_loose_runs_are_those_that_they_have_in_common(tmp_path):
    paths = [make_run(tmp_path / f"sn-{seed}", "sn", seed, keep=(0.5, 0.7)[seed]) for seed in (0, 1)]
    (cell,), (alone,) = open_cells(paths), open_cells(paths[:1])
    assert alone.settings == alone.runs[0].settings
    assert alone.settings.keys() - cell.settings.keys() == {"methods.static.keep"}


@pytest.mark.parametrize("settings", [{}, {"training": {"steps": None}}, {"training": []}])
def test_a_configuration_without_its_steps_is_none(tmp_path, settings):
    path = make_run(tmp_path / "sn", "sn", 0)
    write_json(path / "config.json", json.loads((path / "config.json").read_text()) | {"settings": settings})
    with pytest.raises(ValueError, match=r"config\.json is not a run's configuration"):
        open_cells([path])


def test_a_record_without_a_key_is_damaged(tmp_path, capsys):
    path = make_run(tmp_path / "sn", "sn", 0) / "verdicts.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[-1]["coverage"]["since"]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert main(["report", str(path.parent), "-o", str(tmp_path / "page.html")]) == 2
    assert "verdicts.jsonl is damaged" in capsys.readouterr().err


def test_runs_that_are_told_apart_by_nothing_are_numbered(tmp_path):
    (cell,) = open_cells([repeated(tmp_path / "a"), repeated(tmp_path / "b", fd=13.0), tmp_path / "a"])
    assert [run.label for run in cell.runs] == ["SN, seed 0 (1: a)", "SN, seed 0 (2: b)"]
    here, there = repeated(tmp_path / "here" / "r"), repeated(tmp_path / "there" / "r", fd=13.0)
    (cell,) = open_cells([here, there])
    assert [run.label for run in cell.runs] == [f"SN, seed 0 (1: {here})", f"SN, seed 0 (2: {there})"]


def repeated(path: Path, fd: float = 12.0, **settings: Any) -> Path:
    run = RunDirectory(make_run(path, **settings))
    run.write("result", {**(run.read("result") or {}), "fd": fd})
    return path


def test_the_same_training_in_two_folders_counts_once(tmp_path):
    for folder, keep in (("first", 0.5), ("second", 0.25)):  # SN is in both, made by the same seeds
        for seed in (0, 1):
            make_run(tmp_path / folder / "runs" / f"sn-seed{seed}", "sn", seed, keep=keep)
            make_run(tmp_path / folder / "runs" / f"static-seed{seed}", "static", seed, keep=keep)
    write_json(tmp_path / "second" / "runs" / "sn-seed1" / "timing.json", {"seconds": 20.0})
    make_run(tmp_path / "second" / "runs" / "sn-seed2", "sn", 2, keep=0.25)
    cells = open_cells([tmp_path / "first", tmp_path / "second"])
    assert [row[:3] for row in table(cells).rows] == [
        ["SN", "3", "501 ± 1"], ["static SR, keep 0.5", "2", "500 ± 1"], ["static SR, keep 0.25", "2", "500 ± 1"],
    ]  # fmt: skip
    text = page_of(tmp_path, tmp_path / "first", tmp_path / "second").text
    assert "7 of 7 runs are complete." in text
    left_out = ", ".join(str(tmp_path / "second" / "runs" / f"sn-seed{seed}") for seed in (0, 1))
    assert f"Left out, the same trainings once more: {left_out}." in text


def test_an_unfinished_run_is_no_copy(tmp_path):
    (cell,) = open_cells([make_run(tmp_path / name, complete=False) for name in ("a", "b")])
    assert len(cell.runs) == 2
    assert not cell.copies


def test_a_run_that_has_only_begun(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write("config", {"method": "dynamic", "seed": 0, "settings": {"training": {"steps": 10}}})
    page = page_of(tmp_path, run.path)
    assert "The run is at iteration 0 of 10." in page.text
    assert "0 of 1 runs are complete." in page.text
    assert page.attributes("img") == []


def test_the_bulk_is_the_detectors():
    values = [4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.1, 0.0]
    assert bulk(ratios(values)) == pytest.approx((3 + 2 + 1) / 4 / 3)
    for rank in range(2, 9):  # the report imports no torch, and has the rule once more
        known = sorted((random.Random(rank).random() for _ in range(rank)), reverse=True)
        assert bulk(ratios(known)) == pytest.approx(statistics.bulk(torch.tensor(known, dtype=torch.float64)).item())
    assert bulk(ratios([2.0, 1.0])) == 0.5
    assert ratios([0.0, 0.0]) == [0.0, 0.0]


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    norms = {"real": math.nan, "generated": math.inf, "interpolated": 1.0}
    damage(runs[0] / "sensitivity.jsonl", gradient_norms=norms)
    damage(runs[0] / "metrics.jsonl", d_loss=math.inf)
    damage(runs[1] / "metrics.jsonl", d_loss=-math.inf)
    assert len(page_of(tmp_path, *runs).attributes("img")) > 15
    figure, axis = plt.subplots()
    plot_named(axis, {"a": {1: 1.0, 2: math.inf, 3: 2.0}})
    assert [math.isfinite(y) for y in axis.lines[0].get_ydata()] == [True, False, True]
    plt.close(figure)


def test_the_one_value_of_a_short_run_is_a_point_and_more_are_a_line(tmp_path):
    run = Run(RunDirectory(make_run(tmp_path / "run")))
    for curve, marker in (({60: 1.0}, "o"), ({60: 1.0, 120: 2.0}, "")):
        drawn, axes = plt.subplots(1, 2)
        plot_named(axes[0], {"a": curve})
        plot_curves(axes[1], [run], lambda _, curve=curve: curve, styles([run]))
        assert [line.get_marker() for axis in axes for line in axis.lines] == [marker, marker]
        plt.close(drawn)


def test_a_curve_that_ends_before_another_is_not_said_to_be_at_the_end(tmp_path):
    for method, last in (("sn", 300), ("static", 900)):
        run = RunDirectory(make_run(tmp_path / method, method))
        series = run.series("evaluations")
        (run.path / "evaluations.jsonl").unlink()
        for record in series:
            if record["step"] > last:
                del record["kl"]
            run.append("evaluations", record)
    shown = next(shown for shown in illustrations(open_cells([tmp_path])) if shown.name == "scores")
    kl = next(panel.alt for part in shown.parts for panel in part.panels if panel.title.startswith("KL"))
    assert kl.endswith("at the end: SN, seed 0 0.5 (iteration 300), static SR, seed 0 0.5")


def test_seeds_with_one_value_each_are_seen_beside_their_mean(tmp_path):
    runs = [Run(RunDirectory(make_run(tmp_path / str(seed), seed=seed))) for seed in (0, 1)]
    figure, axis = plt.subplots()
    for run in runs:
        run.group = "SN"
    plot_curves(axis, runs, lambda run: {60: float(run.seed)}, styles(runs))
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.0, 1.0], [0.5]]
    plt.close(figure)


def test_large_photographs_do_not_make_a_large_page(tmp_path):
    side = 2 * 700
    noise = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side**2))
    held = picture(Panel("noise", "noise", noise))
    assert held.source.startswith("data:image/jpeg;base64,")
    assert held.width == 700
    assert len(held.source) < 600_000


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["mine", "."])
def test_a_run_is_found_from_the_folder_it_is_in(name, tmp_path, monkeypatch):
    run = make_run(tmp_path / "mine", "sn")
    monkeypatch.chdir(run if name == "." else tmp_path)
    assert [cell.label for cell in open_cells([Path(name)])] == ["runs"]
    assert main(["report", name, "-o", str(tmp_path / "report.html")]) == 0


def test_the_command_prints_the_path_and_each_verdict_and_overwrites_only_when_told(tmp_path, capsys):
    run, out = make_run(tmp_path / "run"), tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(out)
    assert printed[1].startswith("SN, seed 0: collapsed. Collapsed since iteration 500: the bulk of s_k/s_1 fell")
    written = out.read_bytes()
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert "exists: choose another name with --out, or replace it with --overwrite" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(out), "--overwrite"]) == 0
    assert out.read_bytes() == written  # the same records, the same page


def test_pictures_are_drawn_in_the_style_of_the_reports_whatever_a_user_has_set(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.format: pdf\n")
    code = (
        "import specreg.report.figures, matplotlib as m; print(m.rcParams['text.usetex'], m.rcParams['savefig.format'])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "png"]
