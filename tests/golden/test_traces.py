"""Loss and spectrum traces are those that were recorded; make_traces.py, beside this file, made them.

The tolerance allows for another processor's order of summation over ten steps, and for nothing else: a different
initialization, stream, schedule, cadence or map moves the losses in the first digits.
"""

import itertools
import json

import pytest
from make_traces import METHODS, TRACES, trace

GOLDEN = json.loads(TRACES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", METHODS)
def test_traces_are_the_recorded_ones(method):
    now = trace(method)
    assert len(now["metrics"]) == len(GOLDEN[method]["metrics"]) == 10
    for found, expected in zip(now["metrics"], GOLDEN[method]["metrics"], strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    for found, expected in zip(now["spectra"], GOLDEN[method]["spectra"], strict=True):
        assert found["step"] == expected["step"]
        for layer, values in expected["layers"].items():
            assert found["layers"][layer] == pytest.approx(values, rel=2e-3, abs=2e-3)


def test_the_methods_differ_by_more_than_the_tolerance():
    ends = sorted(GOLDEN[method]["metrics"][-1]["d_loss"] for method in METHODS)
    assert min(after - before for before, after in itertools.pairwise(ends)) > 2e-3 * (1 + max(ends))
