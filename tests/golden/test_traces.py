"""Loss and spectrum traces are those that were recorded; make_traces.py, beside this file, made them.

The tolerance allows for another processor's order of summation over ten steps, and for nothing else: a different
initialization, stream, schedule, cadence or map moves the losses in the first digits.
"""

import itertools
import json

import pytest
from make_traces import TRACES, trace

GOLDEN = json.loads(TRACES.read_text(encoding="utf-8"))


def test_every_method_of_the_paper_is_recorded():
    assert list(GOLDEN) == ["sn", "static", "dynamic"]


@pytest.mark.parametrize("method", GOLDEN)
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
    for one, other in itertools.combinations(GOLDEN, 2):
        ends = (GOLDEN[method]["spectra"][-1]["layers"] for method in (one, other))
        pairs = (zip(*values, strict=True) for values in zip(*(end.values() for end in ends), strict=True))
        assert max(abs(a - b) for pair in pairs for a, b in pair) > 1e-2, (one, other)
