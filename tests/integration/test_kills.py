"""Killed at any moment, with a full disk, with a checkpoint of another version: a run goes on to the same end."""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from trainings import DYNAMIC, OPTIONS, assert_same_run, train

# 12 checkpoints, and 24.
SHORT = [*OPTIONS, *DYNAMIC, "--checkpoint-every", "2", "--spectra-every", "8", "--evaluate-every", "16"]
LONG = [*SHORT, "--steps", "48"]


def killed_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def killed_in_checkpoint() -> None:
    """Let this process die with half of the third checkpoint written."""
    save, calls = torch.save, []

    def torn(state: object, file: io.IOBase) -> None:
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


def limited() -> None:
    """Limit the size of files: as on a full disk, the write of a checkpoint fails, those of lines succeed."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kills") / "run"
    assert train(out, *SHORT) == (0, "")
    return out


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("kills") / "long"
    began = time.monotonic()
    assert train(out, *LONG) == (0, "")
    return out, time.monotonic() - began


@pytest.fixture(scope="module")
def torn_run(tmp_path_factory) -> Path:
    """A run that was killed while it wrote its third checkpoint."""
    out = tmp_path_factory.mktemp("kills") / "torn"
    assert train(out, *SHORT, before=killed_in_checkpoint)[0] == -signal.SIGKILL
    return out


def survive(reference: Path, folder: Path, kills: int, options: list[str]) -> int:
    """Kill a run so many times, each after a random time, go on to its end, and return how many had half a file.

    A run that is done before all kills are has to be the reference, too, and another one takes its place.
    """
    delays, torn, killed, ended = random.Random(0), 0, 0, 0
    longest = json.loads((reference / "timing.json").read_text())["seconds"] / 3
    while killed < kills:
        out = folder / f"run{ended}"
        code, errors = train(out, *options, before=partial(killed_after, delays.uniform(0, longest)))
        assert errors == ""
        if code == 0:
            assert_same_run(reference, out)
            ended += 1
        else:
            assert code == -signal.SIGKILL
            killed += 1
            torn += any(out.glob(".*.partial"))
    assert train(out, *options) == (0, "")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert_same_run(reference, out)
    return torn


@pytest.mark.soak
def test_twenty_kills_at_random_moments(long, tmp_path, record_property):
    reference, seconds = long
    torn = survive(reference, tmp_path, 20, LONG)
    record_property("kills", 20)
    record_property("kills that left a half-written file", torn)
    record_property("uninterrupted, seconds", round(seconds, 1))


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written(uninterrupted, torn_run, tmp_path):
    out = shutil.copytree(torn_run, tmp_path / "run")
    (partial,) = out.glob(".checkpoint.pt.*")
    assert partial.stat().st_size > 1000
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 4
    assert train(out) == (0, "")
    assert not partial.exists()
    assert_same_run(uninterrupted, out)


@pytest.mark.slow
def test_a_file_that_may_not_grow(uninterrupted, torn_run, tmp_path):
    out = shutil.copytree(torn_run, tmp_path / "run")
    whole = (out / "checkpoint.pt").read_bytes()
    assert len(whole) > 20_000
    code, errors = train(out, before=limited)
    assert code == 1
    assert errors.count("\n") == 1
    assert "File too large" in errors
    assert "make room; the same command then goes on from the last checkpoint" in errors
    assert (out / "checkpoint.pt").read_bytes() == whole
    assert train(out) == (0, "")
    assert_same_run(uninterrupted, out)


@pytest.mark.soak
def test_a_full_disk(long, tmp_path):
    reference, _ = long
    disk = tmp_path / "disk"
    disk.mkdir()
    room = sum(path.stat().st_blocks * 512 for path in reference.rglob("*") if path.is_file()) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small disk may be mounted here")
    try:
        code, errors = train(disk / "run", *LONG)
        assert code == 1
        assert errors.count("\n") == 1
        assert "No space left on device" in errors
        assert "make room" in errors
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert 0 < torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] < 48
    assert train(tmp_path / "run") == (0, "")
    assert_same_run(reference, tmp_path / "run")
