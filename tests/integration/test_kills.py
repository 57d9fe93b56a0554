"""Killed at any moment, with a full disk, with a checkpoint of another version: a run goes on to the same end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specreg.cli import main
from trainings import OPTIONS, assert_same_run, environment

# 24 checkpoints.
LONG = [
    *OPTIONS,
    "--steps",
    "48",
    "--checkpoint-every",
    "2",
    "--spectra-every",
    "8",
    "--evaluate-every",
    "16",
    "--method",
    "dynamic",
]
# Runs the command line after some lines of its own, in a process whose imports are behind it.
PROGRAM = """
import os, resource, signal, sys, threading
import specreg.display, specreg.experiments.run, torch.utils.tensorboard
from specreg.cli import main
{before}
sys.exit(main(sys.argv[1:]))
"""
KILLED_AFTER = "threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGKILL)).start()"
# Dies with half of the third checkpoint written.
KILLED_IN_CHECKPOINT = """
import io, torch
save, calls = torch.save, []
def torn(state, file):
    calls.append(1)
    whole = io.BytesIO()
    save(state, whole)
    if len(calls) < 3:
        file.write(whole.getvalue())
        return
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = torn
"""
# A limit on the size of files is what a full disk is: the write of a checkpoint fails, those of lines succeed.
LIMITED = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"


def start(out: Path, *options: str, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(before=before), "train", "--quiet", "--out", str(out), *options],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(out: Path, *options: str, before: str = "") -> tuple[int, str]:
    process = start(out, *options, before=before)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("kills") / "run"
    began = time.monotonic()
    assert finish(out, *LONG) == (0, "")
    return out, time.monotonic() - began


def survive(reference: Path, folder: Path, kills: int) -> int:
    """Kill a run so many times, each after a random time, go on to its end, and return how many had half a file.

    A run that is done before all kills are has to be the reference, too, and another one takes its place.
    """
    delays, torn, killed, ended = random.Random(0), 0, 0, 0
    longest = json.loads((reference / "timing.json").read_text())["seconds"] / 3
    while killed < kills:
        out = folder / f"run{ended}"
        code, errors = finish(out, *LONG, before=KILLED_AFTER.format(seconds=delays.uniform(0, longest)))
        assert errors == ""
        if code == 0:
            assert_same_run(reference, out)
            ended += 1
        else:
            assert code == -signal.SIGKILL
            killed += 1
            torn += any(out.glob(".*.partial"))
    assert finish(out, *LONG) == (0, "")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert_same_run(reference, out)
    return torn


@pytest.mark.slow
def test_two_kills_at_random_moments(uninterrupted, tmp_path):
    reference, _ = uninterrupted
    survive(reference, tmp_path, 2)


@pytest.mark.soak
def test_twenty_kills_at_random_moments(uninterrupted, tmp_path, record_property):
    reference, seconds = uninterrupted
    torn = survive(reference, tmp_path, 20)
    record_property("kills", 20)
    record_property("kills that left a half-written file", torn)
    record_property("uninterrupted, seconds", round(seconds, 1))


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written(uninterrupted, tmp_path):
    reference, _ = uninterrupted
    out = tmp_path / "run"
    assert finish(out, *LONG, before=KILLED_IN_CHECKPOINT)[0] == -signal.SIGKILL
    (partial,) = out.glob(".checkpoint.pt.*")
    assert partial.stat().st_size > 1000
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    assert finish(out) == (0, "")
    assert not partial.exists()
    assert_same_run(reference, out)


@pytest.mark.slow
def test_a_file_that_may_not_grow(uninterrupted, tmp_path):
    reference, _ = uninterrupted
    out = tmp_path / "run"
    assert finish(out, *LONG, before=KILLED_IN_CHECKPOINT)[0] == -signal.SIGKILL
    whole = (out / "checkpoint.pt").read_bytes()
    assert len(whole) > 20_000
    code, errors = finish(out, before=LIMITED)
    assert code == 1
    assert errors.count("\n") == 1
    assert "File too large" in errors
    assert "make room; the same command then goes on from the last checkpoint" in errors
    assert (out / "checkpoint.pt").read_bytes() == whole
    assert finish(out) == (0, "")
    assert_same_run(reference, out)


@pytest.mark.slow
def test_a_full_disk(uninterrupted, tmp_path):
    reference, _ = uninterrupted
    disk = tmp_path / "disk"
    disk.mkdir()
    room = sum(path.stat().st_blocks * 512 for path in reference.rglob("*") if path.is_file()) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk may be mounted here")
    try:
        code, errors = finish(disk / "run", *LONG)
        assert code == 1
        assert errors.count("\n") == 1
        assert "No space left on device" in errors
        assert "make room" in errors
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert 0 < torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] < 48
    assert finish(tmp_path / "run") == (0, "")
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 99])
def test_a_checkpoint_of_another_version_is_refused(uninterrupted, schema, tmp_path, capsys):
    reference, _ = uninterrupted
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    (out / "result.json").unlink()
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    torch.save(state | {"schema": schema}, out / "checkpoint.pt")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["train", "--quiet", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"checkpoint.pt has schema {schema}, this version of specreg reads 2" in error
    assert error.count("\n") == 1
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert after == {path: content for path, content in before.items() if path.name != "run.lock"}
