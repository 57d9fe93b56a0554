"""The benchmarks run, and what they promise about memory holds here and now; what they time is theirs to say."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from trainings import Fork

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str, options: tuple[str, ...]) -> None:
    sys.path.insert(0, str(FOLDER))
    sys.argv = [name, *options]
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def run(folder: Path, name: str, *options: str) -> tuple[str, dict[str, dict]]:
    """Run a benchmark; return what it printed and what it wrote of each case."""
    out = folder / "new" / "out.json"
    code, printed = Fork(folder / "printed", script, name, (*options, "--out", str(out))).finish()
    assert code == 0, printed
    return printed, json.loads(out.read_text())["results"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [["cifar-32"], pytest.param(["cifar-64", "cifar-128"], marks=pytest.mark.soak)], ids=len
)
def test_memory_stays_below_three_times_the_largest_weight(cases, tmp_path):
    _, results = run(tmp_path, "memory.py", "--cases", *cases)
    assert list(results) == cases
    for row in results.values():
        assert 1 <= row["static"] <= 3  # one new weight at least
        assert 1 <= row["dynamic"] <= 3


@pytest.mark.slow
def test_compensation_benchmark_compares_in_one_run(tmp_path):
    printed, results = run(tmp_path, "compensation.py", "--cases", "cifar-32")
    assert "ratios" in printed
    assert results["cifar-32"]["ratios"]["svd / static"] > 0
    assert len(results["cifar-32"]["layers"]) == 10
