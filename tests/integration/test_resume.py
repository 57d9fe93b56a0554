"""A run killed with SIGKILL and resumed equals an uninterrupted one bit for bit, records included."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specreg.cli import main
from specreg.data.digits import StackedDigits
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.experiments.config import RunConfig, Settings
from specreg.experiments.run import _go_on, build_state, prepare_run, saved_config
from specreg.experiments.sources import open_checked
from specreg.experiments.sources.images import Images
from specreg.monitor.verdict import Verdict
from specreg.records import RunDirectory
from specreg.training.config import TrainingConfig
from specreg.training.state import save_checkpoint
from trainings import DYNAMIC, NERVOUS_OPTIONS, OPTIONS, assert_same_run, kill, start, train, wait_for

# It is switched on between the two kills.
GUARD = ["--method", "guard", "--guard.every", "2", "--guard.roll-back", *NERVOUS_OPTIONS]
METHODS = {
    "static": ["--method", "static"],
    "dynamic": DYNAMIC,
    "guard": [*GUARD, "--lr-decay", "none"],
    "collapsed": ["--method", "sn", *NERVOUS_OPTIONS],
    "penalty": ["--method", "d-optimal", "--loss", "relativistic-r1r2"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Callable[[str], Path]:
    """Return the uninterrupted run of a method, which is made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(method: str) -> Path:
        out = folder / method
        if not out.exists():
            assert train(out, *OPTIONS, *METHODS[method])[0] == 0
        return out

    return run


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of a run that may be spoilt, without its result."""
    shutil.copytree(finished("static"), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


CASES = [  # before the first checkpoint, and between two
    ("static", 3), ("guard", 17),
    *(pytest.param(method, 3, marks=pytest.mark.soak) for method in METHODS if method != "static"),
    *(pytest.param(method, 17, marks=pytest.mark.soak) for method in METHODS if method != "guard"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("method", "killed_at"), CASES)
def test_killed_and_resumed_equals_uninterrupted(finished, method, killed_at, tmp_path):
    reference, out = finished(method), tmp_path / "run"
    if method == "guard":
        events = RunDirectory(reference).series("events")
        assert [event["event"] for event in events] == ["rolled back", "guard on"]
        assert 3 < events[0]["step"] < 17
        assert json.loads((reference / "result.json").read_text())["compensations"] > 0
    process = start(out, *OPTIONS, *METHODS[method])
    wait_for(process, out, killed_at)
    kill(process)
    assert not (out / "result.json").exists()
    assert train(out)[0] == 0  # the configuration is the run's own
    assert_same_run(reference, out)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(finished, copied):
    with zipfile.ZipFile(copied / "checkpoint.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole = bytearray((copied / "checkpoint.pt").read_bytes())
    whole[largest.header_offset + largest.file_size // 2] ^= 1  # in its numbers, not in the padding between entries
    (copied / "checkpoint.pt").write_bytes(whole)
    assert torch.load(copied / "checkpoint-before.pt", weights_only=True)["step"] == 20
    code, said = train(copied)
    assert code == 0
    assert "checkpoint.pt is not a readable checkpoint (the checksum of" in said
    assert "taking checkpoint-before.pt instead" in said
    assert_same_run(finished("static"), copied)
    assert (copied / "checkpoint-damaged.pt").read_bytes() == whole


@pytest.mark.slow
def test_a_damaged_checkpoint_that_is_the_best_is_the_best_no_more(copied):
    (copied / "checkpoint.pt").write_bytes((copied / "checkpoint.pt").read_bytes()[:-9])
    shutil.copy(copied / "checkpoint.pt", copied / "checkpoint-best.pt")  # one file, where the last is the best
    run = RunDirectory(copied)
    config = saved_config(run)
    state = build_state(config, open_checked(config.settings))
    _go_on(run, state, main=True)
    assert state.step == 20
    assert not (copied / "checkpoint-best.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "collapsed"])
def test_the_last_the_best_and_the_healthy_checkpoint_are_kept(finished, method):
    out = finished(method)
    scores = {record["step"]: record["fd"] for record in RunDirectory(out).series("evaluations")}
    steps = {
        name: torch.load(out / f"checkpoint{name}.pt", weights_only=True)["step"]
        for name in ("", "-before", "-best", "-healthy")
    }
    assert steps[""] == 24
    assert steps["-before"] == 20
    assert scores[steps["-best"]] == min(scores.values())
    assert steps["-healthy"] == 24 if method == "static" else steps["-healthy"] < 24
    assert main(["evaluate", str(out), "--checkpoint", "best", "--json"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "collapsed"])
def test_names_that_a_kill_has_cut_off_are_given_again(finished, method, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished(method), out)
    for name in ("result.json", "checkpoint-healthy.pt"):  # as if it had been killed just after its last checkpoint
        (out / name).unlink()
    assert main(["train", "--quiet", "--out", str(out)]) == 0
    assert (out / "checkpoint-healthy.pt").exists() == (method == "static")


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(12, marks=pytest.mark.soak), 15]
)  # on the readings' schedule, and off it
def test_a_run_that_goes_on_to_more_steps_equals_one_of_so_many(steps, finished, tmp_path):
    for total in ([*OPTIONS, *METHODS["guard"], "--steps", str(steps)], ["--steps", "24"]):
        assert train(tmp_path / "run", *total)[0] == 0
    assert_same_run(finished("guard"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["settings"]["training"]["steps"] == 24


@pytest.mark.slow
def test_a_run_that_goes_on_loses_no_network(tmp_path):
    short = [*OPTIONS, *METHODS["guard"], "--steps", "3", "--checkpoint-every", "2"]
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert train(run, *short)[0] == 0
    trained = (run / "checkpoint.pt").read_bytes()
    shutil.copytree(run, copy)
    (copy / "checkpoint-before.pt").write_bytes(b"spoilt")
    before = {file.name: file.read_bytes() for file in copy.glob("*.*") if file.suffix != ".lock"}
    code, said = train(copy, "--steps", "6")
    assert (code, "checkpoint-before.pt is not a readable checkpoint" in said) == (2, True)
    assert before == {file.name: file.read_bytes() for file in copy.glob("*.*") if file.suffix != ".lock"}
    (copy / "checkpoint-before.pt").unlink()
    for steps, folder in (("5", run), ("7", run), ("6", copy)):
        assert train(folder, "--steps", steps)[0] == 0
        assert (folder / "checkpoint-end-3.pt").read_bytes() == trained
    assert (run / "checkpoint-end-5.pt").exists()


# Of a short run whose end is off the schedule.
SHORT = [
    "--data", "ring", "--batch-size", "4", "--samples", "100", "--reference", "100", "--lr-decay", "none",
    "--spectra-every", "2", "--evaluate-every", "2", "--checkpoint-every", "2", "--log-every", "2",
]  # fmt: skip


def kept(out: Path) -> dict[str, int]:
    """Return the steps of a run's checkpoints by their names."""
    files = sorted(out.glob("checkpoint-*.pt"))
    return {file.stem.removeprefix("checkpoint-"): torch.load(file, weights_only=True)["step"] for file in files}


@pytest.mark.slow
def test_the_best_before_an_end_off_the_schedule_is_the_best_again_when_the_run_goes_on(tmp_path, monkeypatch, capsys):
    scores = iter((2.0, 5.0, 1.0, 3.0))  # at steps 2, 4, 5, at first the end, and 6
    monkeypatch.setattr(MixtureEvaluator, "glance", lambda self, points: {"fd": next(scores)})
    out = tmp_path / "run"
    assert main(["train", "--quiet", "--out", str(out), *SHORT, "--steps", "5"]) == 0
    assert kept(out) == {"before": 4, "best": 5, "best-before": 2, "healthy": 5, "healthy-before": 4}
    assert main(["train", "--quiet", "--out", str(out), "--steps", "6"]) == 0
    assert kept(out) == {"before": 4, "best": 2, "end-5": 5, "healthy": 6}
    picture = tmp_path / "end.png"
    sample = ["sample", str(out), "--out", str(picture), "--checkpoint"]
    assert main([*sample, "end-4"]) == 2
    assert "has no end-4 checkpoint (only end-5): take the last one" in capsys.readouterr().err
    assert main([*sample, "end-5"]) == 0
    assert picture.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("alarming", "healthy"), [({6}, 4), ({4, 6}, 2)])  # an end off the schedule hides none
def test_the_step_that_a_run_goes_back_to_is_the_last_healthy_one(alarming, healthy, tmp_path, monkeypatch):
    monkeypatch.setattr(Verdict, "alarming", property(lambda verdict: verdict.iteration in alarming))
    out = tmp_path / "run"
    for steps in ("5", "6"):
        assert main(["train", "--quiet", "--out", str(out), *SHORT, "--steps", steps]) == 0
    assert kept(out)["healthy"] == healthy


def test_what_was_killed_before_its_end_was_saved_goes_on_from_its_checkpoint(tmp_path):
    run, config = RunDirectory(tmp_path), RunConfig("sn", settings=Settings(training=TrainingConfig(steps=1550)))
    prepare_run(config, run)
    state = build_state(config, Images(StackedDigits()))
    state.step = 1000
    save_checkpoint(state.state_dict(), run.checkpoint)
    (run.path / "verdicts.jsonl").write_text(json.dumps({"step": 1550}) + "\n")
    prepare_run(replace(config, settings=Settings(training=TrainingConfig(steps=3000))), run)
    assert [path.name for path in run.checkpoints] == ["checkpoint.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare", "evaluate"])
def test_other_data_is_refused_before_anything_of_a_complete_run_is_changed(tmp_path, command, capsys):
    out, data = tmp_path / "out", tmp_path / "images.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (140, 8, 8), dtype=np.uint8))
    run = out / "runs" / "sn-seed0" if command == "compare" else out
    several = ["--methods", "sn"] if command == "compare" else ["--method", "sn", "--quiet"]
    options = [*OPTIONS, "--lr-decay", "none", "--steps", "4", "--data", str(data), "--out", str(out), *several]
    begin = "compare" if command == "compare" else "train"
    assert main([begin, *options]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    np.savez(data, images=np.zeros((141, 8, 8), dtype=np.uint8))
    again = ["evaluate", str(run)] if command == "evaluate" else [command, *options, "--steps", "8"]
    assert main(again) == 2
    assert "was trained on 140 images, and its data have 141 now: restore" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
