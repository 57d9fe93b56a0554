"""The benchmarks run, and what they promise about memory holds here and now; what they time is theirs to say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainings import run_script

FOLDER = Path(__file__).parents[2] / "benchmarks"


def measure(folder: Path, name: str, *options: str) -> tuple[str, dict[str, dict]]:
    """Run a benchmark; return what it printed and what it wrote."""
    out = folder / "new" / "out.json"
    printed = run_script(folder / "printed", FOLDER / name, *options, "--out", str(out))
    return printed, json.loads(out.read_text())


def test_a_table_has_three_digits_but_a_thousand_in_full():
    shown = runpy.run_path(str(FOLDER / "measure.py"))["_shown"]
    assert [shown(value) for value in (7, 0.12345, 99.95, 999.4, 999.7, 12345.6)] == [
        "7", "0.123", "100", "999", "1000", "12346",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [["cifar-32"], pytest.param(["cifar-64", "cifar-128"], marks=pytest.mark.soak)], ids=len
)
def test_memory_stays_below_three_times_the_largest_weight(cases, tmp_path):
    results = measure(tmp_path, "memory.py", "--cases", *cases)[1]["results"]
    assert list(results) == cases
    for row in results.values():
        assert 1 <= row["static"] <= 3  # one new weight at least
        assert 1 <= row["dynamic"] <= 3


@pytest.mark.slow
def test_compensation_benchmark_compares_in_one_run(tmp_path):
    printed, written = measure(tmp_path, "compensation.py", "--cases", "cifar-32")
    assert "ratios" in printed
    assert written["results"]["cifar-32"]["ratios"]["svd / static"] > 0
    assert len(written["results"]["cifar-32"]["layers"]) == 10


@pytest.mark.slow
def test_overhead_is_timed_inside_a_training(tmp_path):
    small = ("--channels", "4", "--g-channels", "4", "--batch", "4", "--rounds", "1")
    rows = measure(tmp_path, "training.py", "--part", "overhead", *small)[1]["overhead"]["overhead"]
    assert rows["sn"]["compensation ms"] == 0 < rows["static"]["compensation ms"] < rows["static"]["ms / iteration"]


@pytest.mark.slow
def test_every_verb_works_on_a_device(tmp_path):
    printed, written = measure(tmp_path, "smoke.py", "--tiny")
    assert len(written["results"]) == 8 * 4 + 2
    assert all(row["works"] for row in written["results"]), printed


@pytest.mark.soak
def test_the_gpu_run_goes_through_and_measures_nothing_twice(tmp_path):
    random = np.random.default_rng(0)
    classes = np.arange(40) % 10
    for name, shape in (("cifar", (40, 32, 32, 3)), ("mnist", (40, 28, 28))):
        np.savez(tmp_path / f"{name}.npz", images=random.integers(0, 256, shape, dtype=np.uint8), labels=classes)
    command = [
        sys.executable, str(FOLDER.parent / "scripts" / "gpu_run.py"), "--device", "cpu", "--tiny", "--minutes", "30",
        "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"),
        "--cifar", str(tmp_path / "cifar.npz"), "--mnist", str(tmp_path / "mnist.npz"),
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    runs = {
        f"{cell}-{method}-seed0.safetensors" for cell in ("C64-32", "unrolled-quarter") for method in ("sn", "static")
    }
    measured = {f"{name}.json" for name in ("smoke", "compensation", "paths", "overhead", "trainer")}
    assert names == {*runs, *measured, "records.tar.gz"}
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in measured}
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in measured} == before
