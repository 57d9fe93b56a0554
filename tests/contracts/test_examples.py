"""The examples run as their docstrings say, in a few steps."""

import json
import re
import time
from pathlib import Path

import pytest

from trainings import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def example(tmp_path):
    """Return what runs an example and returns what it printed."""
    return lambda name, *options: run_script(tmp_path / f"printed by {time.monotonic_ns()}", EXAMPLES / name, *options)


def test_every_example_is_tested():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    examples = [example.name for example in EXAMPLES.glob("*.py")]
    assert examples
    assert [name for name in examples if f'"{name}"' not in tests] == []


def test_the_plain_loop_is_watched(example, tmp_path):
    printed = example("monitor_plain_loop.py", "--steps", "60", "--jsonl", str(tmp_path / "spectra.jsonl"))
    assert "step 60: " in printed
    assert "not judged before iteration 501: the warm-up began at 1 (2 of rank > 1 watched)" in printed
    lines = [json.loads(line) for line in (tmp_path / "spectra.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines] == [1, 50]


def test_the_accelerate_loop_goes_on_with_its_monitor(example, tmp_path):
    options = ["monitor_accelerate.py", "--checkpoint", str(tmp_path / "checkpoint"), "--steps"]
    assert "step 60: not judged before" in example(*options, "60")
    printed = example(*options, "110")
    assert "going on after step 60: 2 snapshots so far" in printed
    assert "step 110: not judged before" in printed


def test_the_lightning_module_is_watched(example):
    printed = example("monitor_lightning.py", "--steps", "60")
    assert "step 60: not judged before iteration 501: the warm-up began at 1 (2 of rank > 1 watched)" in printed


def test_the_convolutions_of_a_vocoders_discriminator_keep_their_spectra_up(example):
    printed = example("conv1d_discriminator.py", "--steps", "60")
    assert "spectral_norm: 4 layers" in printed
    assert "2  Conv1d  4 groups of 4 x 36" in printed
    last = re.search(r"step 60: .*least s2/s1 (\S+)", printed)
    assert last is not None
    assert float(last[1]) > 0.9
