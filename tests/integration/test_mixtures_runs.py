"""Trainings on points, through the command line: compare, report, sample, evaluate."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pictures import assert_drawn
from specreg.cli import main
from specreg.records import RunDirectory
from trainings import forked_jobs

OPTIONS = [
    "--data", "ring", "--steps", "24", "--d-channels", "1", "--g-channels", "1", "--latent", "2", "--batch-size", "8",
    "--d-steps", "1", "--log-every", "1", "--spectra-every", "2", "--evaluate-every", "6", "--checkpoint-every", "4",
    "--samples", "200", "--reference", "300", "--ema-decay", "0.9", "--no-tensorboard",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mixtures") / "out"
    with forked_jobs():
        assert main(["compare", "--out", str(out), "--methods", "sn,static", *OPTIONS]) == 0
    return out


def test_a_comparison_on_points_ends_with_its_table_and_pictures(compared):
    rows = json.loads((compared / "results.json").read_text())
    assert [row["method"] for row in rows] == ["sn", "static"]
    assert {row["protocol"] for row in rows} == {"pacgan_ring_200"}
    assert rows[0]["compensations"] == 0
    assert rows[1]["compensations"] == 5
    assert "high quality" in (compared / "table.md").read_text()
    for name in ("spectra", "scores", "samples"):
        assert_drawn(compared / f"{name}.png")
    layers = RunDirectory(compared / "runs" / "static-seed0").series("spectra")[-1]["layers"]
    assert [len(values) for values in layers.values()] == [2, 16, 16]


def test_a_run_on_points_is_reported_sampled_and_evaluated(compared, tmp_path, capsys):
    run, page, picture = compared / "runs" / "sn-seed0", tmp_path / "page.html", tmp_path / "points.png"
    assert main(["report", str(compared), "--out", str(page)]) == 0
    assert "high quality" in page.read_text()
    assert main(["sample", str(run), "--out", str(picture)]) == 0
    with Image.open(picture) as one, Image.open(run / "samples.png") as other:
        assert one.size == other.size
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    again, result = json.loads(capsys.readouterr().out), json.loads((run / "result.json").read_text())
    assert again == {key: result[key] for key in again}
