"""A run killed with SIGKILL and resumed equals an uninterrupted one bit for bit, records included."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from specreg.cli import main
from specreg.records import RunDirectory
from trainings import OPTIONS, assert_same_run, command, environment

# A detector that takes anything for a collapse: the guard goes back and is switched on between the two kills.
NERVOUS = [
    "--detector.warmup", "6", "--detector.window", "4", "--detector.fast", "0.001", "--detector.far", "0.001",
    "--detector.collapsed", "0.001", "--detector.patience", "1", "--guard.every", "2", "--guard.roll-back",
]  # fmt: skip
METHODS = {
    "static": ["--method", "static"],
    "dynamic": ["--method", "dynamic"],
    "guard": ["--method", "guard", *NERVOUS],
    "penalty": ["--method", "d-optimal", "--loss", "relativistic-r1r2"],
}


@pytest.fixture(scope="module", params=METHODS)
def uninterrupted(request, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("runs") / request.param
    subprocess.run(command(out, *METHODS[request.param], *OPTIONS), check=True, env=environment())
    if request.param == "guard":
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        assert [event["event"] for event in events] == ["rolled back", "guard on"]
        assert 3 < events[0]["step"] < 17
        assert json.loads((out / "result.json").read_text())["compensations"] > 0
    return request.param, out


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [3, 17])  # before the first checkpoint, and between two
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, killed_at, tmp_path):
    method, reference = uninterrupted
    out = tmp_path / "run"
    process = subprocess.Popen(command(out, *METHODS[method], *OPTIONS), env=environment())
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < killed_at:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    subprocess.run(command(out), check=True, env=environment())  # the configuration is the run's own
    assert_same_run(reference, out)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path):
    _, reference = uninterrupted
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    (out / "result.json").unlink()
    whole = bytearray((out / "checkpoint.pt").read_bytes())
    whole[len(whole) // 2] ^= 1
    (out / "checkpoint.pt").write_bytes(whole)
    assert torch.load(out / "checkpoint-before.pt", weights_only=True)["step"] == 20
    resumed = subprocess.run(command(out), check=True, env=environment(), stderr=subprocess.PIPE, text=True)
    assert "checkpoint.pt is not a readable checkpoint (the checksum of" in resumed.stderr
    assert "taking checkpoint-before.pt instead" in resumed.stderr
    assert_same_run(reference, out)
    assert (out / "checkpoint-damaged.pt").read_bytes() == whole


@pytest.mark.slow
def test_the_last_the_best_and_the_healthy_checkpoint_are_kept(uninterrupted):
    method, out = uninterrupted
    scores = {record["step"]: record["fd"] for record in RunDirectory(out).series("evaluations")}
    steps = {
        name: torch.load(out / f"checkpoint{name}.pt", weights_only=True)["step"]
        for name in ("", "-before", "-best", "-healthy")
    }
    assert steps[""] == 24
    assert steps["-before"] == 20
    assert scores[steps["-best"]] == min(scores.values())
    assert steps["-healthy"] == 24 if method != "guard" else steps["-healthy"] < 24
    assert main(["evaluate", str(out), "--checkpoint", "best", "--json"]) == 0


@pytest.mark.slow
def test_names_that_a_kill_has_cut_off_are_given_again(uninterrupted, tmp_path):
    method, reference = uninterrupted
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    for name in ("result.json", "checkpoint-healthy.pt"):  # as if it had been killed just after its last checkpoint
        (out / name).unlink()
    assert main(["train", "--quiet", "--out", str(out)]) == 0
    assert (out / "checkpoint-healthy.pt").exists() == (method != "guard")


@pytest.mark.slow
def test_an_interrupt_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    options = [*OPTIONS, "--checkpoint-every", "100000"]
    options[options.index("--steps") + 1] = "100000"
    process = subprocess.Popen(command(out, *options), env=environment(), stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "specreg: interrupted; the same command again goes on"
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert step == json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]


@pytest.mark.slow
def test_a_changed_configuration_is_refused_and_nothing_is_overwritten(uninterrupted, capsys):
    _, out = uninterrupted
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    assert main(["train", "--out", str(out), "--batch-size", "8", "--d-lr", "0.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "batch_size 4 -> 8; d_lr 0.0002 -> 0.5" in error
    assert before == {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


@pytest.mark.slow
def test_a_complete_run_is_not_made_again(uninterrupted):
    _, out = uninterrupted
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    assert main(["train", "--quiet", "--out", str(out)]) == 0
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before


def test_divergence_is_one_line_exit_code_3_and_no_result(tmp_path, capsys):
    out = tmp_path / "run"
    options = [*OPTIONS, "--d-lr", "1e30", "--loss", "wasserstein-gp"]
    assert main(["train", "--quiet", "--out", str(out), "--method", "sn", *options]) == 3
    error = capsys.readouterr().err
    assert error.startswith("specreg: error: training diverged: step ")
    assert error.count("\n") == 1
    assert not (out / "result.json").exists()


def test_divergence_keeps_the_last_checkpoint(uninterrupted, tmp_path, capsys):
    _, reference = uninterrupted
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    (out / "result.json").unlink()
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    state["step"] = 20  # as if it had stopped there, with a weight that went bad later
    state["discriminator"]["score.parametrizations.weight.original"].fill_(float("nan"))
    torch.save(state, out / "checkpoint.pt")
    before = (out / "checkpoint.pt").read_bytes()
    assert main(["train", "--quiet", "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert "step 21: the discriminator's loss is nan (NaN or inf first in the discriminator's parameter" in error
    assert "score.parametrizations.weight.original); the update was not made" in error
    assert (out / "checkpoint.pt").read_bytes() == before
