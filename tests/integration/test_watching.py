"""Runs of the lab are watched: verdicts, events and sensitivity are recorded, and a collapse can end a run."""

import json
import math

import numpy as np
import pytest

from specreg.cli import main
from specreg.records import RunDirectory
from trainings import NERVOUS_OPTIONS, OPTIONS

OPTIONS = [*OPTIONS, "--no-tensorboard"]


@pytest.mark.slow
def test_a_collapse_can_end_a_run(tmp_path, capsys):
    command = ["train", "--quiet", "--out", str(tmp_path / "run"), "--method", "sn", *OPTIONS, *NERVOUS_OPTIONS]
    command += ["--reference", "500", "--evaluate-every", "24"]  # samples are read at 0, and at 24 if it comes to that
    assert main([*command, "--stop-on-collapse"]) == 0
    run = RunDirectory(tmp_path / "run")
    result = run.read("result")
    assert result["verdict"] == "collapsed"
    assert 6 <= result["steps"] < 24
    assert result["compensations"] == 0
    assert "lost" not in run.series("evaluations")[-1]
    assert main(["evaluate", str(run.path), "--json"]) == 0
    anew = json.loads(capsys.readouterr().out)
    assert "lost" in anew
    assert {key: result[key] for key in anew} == anew
    (event,) = run.series("events")
    assert event["event"] == "stopped"
    assert event["step"] == result["steps"] == run.series("verdicts")[-1]["step"]
    assert "collapsed since iteration" in event["message"]
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    assert main([*command, "--stop-on-collapse"]) == 0  # complete: nothing is made again
    assert before == {file.name: file.read_bytes() for file in run.path.iterdir()}
    (run.path / "result.json").unlink()  # as if it had been killed during its last evaluation
    assert main([*command, "--stop-on-collapse"]) == 0
    assert run.read("result") == result
    assert run.series("events") == [event]


@pytest.mark.slow
def test_layers_without_a_spectrum_are_no_damage(tmp_path):
    run, page = str(tmp_path / "run"), str(tmp_path / "page.html")
    assert main(["train", "--quiet", "--out", run, *OPTIONS, "--d-channels", "1", "--steps", "2"]) == 0
    assert main(["report", run, "--out", page]) == 0


@pytest.mark.slow
def test_a_single_image_can_be_learned(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=image)
    command = ["train", "--quiet", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "one.npz"), *OPTIONS]
    assert main([*command, "--image-size", "32", "--steps", "2", "--evaluate-every", "1"]) == 0
    records = RunDirectory(tmp_path / "run").series("sensitivity")
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert set(record) == {"step", "attainment", "gradient_norms"}


@pytest.mark.slow
def test_what_is_recorded_of_a_watched_run(tmp_path):
    command = ["train", "--quiet", "--out", str(tmp_path / "run"), "--method", "dynamic", *OPTIONS]
    assert main([*command, "--dynamic.start", "10"]) == 0
    run = RunDirectory(tmp_path / "run")
    assert [record["step"] for record in run.series("verdicts")] == list(range(0, 25, 2))
    verdicts = run.series("verdicts")
    assert {(record["state"], record["spectra"]["state"]) for record in verdicts} == {("not judged", "not judged")}
    assert {(record["coverage"]["state"], record["signal"]["state"]) for record in verdicts} == {
        ("not judged", "teaching")
    }
    sensitivity = run.series("sensitivity")
    assert [record["step"] for record in sensitivity] == [6, 12, 18, 24]
    layers = set(run.series("spectra")[0]["layers"])
    for record in sensitivity:
        assert layers < set(record["attainment"])  # the score's one singular value has no distribution, but a gain
        assert all(0 < value <= 1 for value in record["attainment"].values())
        assert set(record["gradient_norms"]) == {"real", "generated", "interpolated"}
        assert all(value > 0 and math.isfinite(value) for value in record["gradient_norms"].values())
        assert 0 < record["diversity"]["ratio"] < 2
    assert run.read("result")["compensations"] == math.ceil((48 - 10) / 5) - 1  # the first acting call began the record
    assert json.loads((run.path / "config.json").read_text())["settings"]["detector"]["warmup"] == 500
