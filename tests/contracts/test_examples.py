"""The examples run as their docstrings say, in a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(name: str, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_example_is_tested():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    examples = [example.name for example in EXAMPLES.glob("*.py")]
    assert examples
    assert [name for name in examples if f'"{name}"' not in tests] == []


def test_the_plain_loop_is_watched(tmp_path):
    printed = run("monitor_plain_loop.py", "--steps", "60", "--jsonl", str(tmp_path / "spectra.jsonl"))
    assert "step 60: " in printed
    assert "healthy so far: the first 500 iterations are not judged (2 watched)" in printed
    lines = [json.loads(line) for line in (tmp_path / "spectra.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in lines] == [1, 50]


def test_the_accelerate_loop_goes_on_with_its_monitor(tmp_path):
    options = ["monitor_accelerate.py", "--checkpoint", str(tmp_path / "checkpoint"), "--steps"]
    assert "step 60: healthy" in run(*options, "60")
    printed = run(*options, "110")
    assert "going on after step 60: 2 snapshots so far" in printed
    assert "step 110: healthy" in printed


def test_the_lightning_module_is_watched():
    assert "step 60: healthy so far: the first 500 iterations are not judged (2 watched)" in run(
        "monitor_lightning.py", "--steps", "60"
    )
