"""How accurate each path to a compensated weight is, against numpy's decomposition in float64, and which one is taken.

    python benchmarks/accuracy.py [--out FILE.json]

Float32 weights of 128x1152 with hard spectra, static compensation of the first half and of all singular values, three
seeds each, the worst relative error (Frobenius). `estimate` is what the path itself expects; a path is taken while its
estimate is at most 2e-6. This is the measurement behind the constants of specreg.spectra.gram.
"""

import math
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from measure import arguments, environment, print_table, write
from specreg.spectra import fast
from specreg.spectra.fast import TOLERANCE, compensate
from specreg.spectra.reference import static_target

SHAPE = (128, 1152)
SEEDS = range(3)
SPECTRA = {
    "random weights": None,
    "flat, 1.3 to 0.7": lambda r: torch.linspace(1.3, 0.7, r),
    "after SR: a step": lambda r: torch.cat([torch.linspace(1.02, 0.97, r // 2), torch.linspace(0.5, 0.05, r // 2)]),
    "collapsed": lambda r: torch.cat([torch.ones(1), torch.linspace(0.1, 0.001, r - 1)]),
    "condition 1e2": lambda r: torch.logspace(0, -2, r),
    "condition 1e4": lambda r: torch.logspace(0, -4, r),
    "three repeated values": lambda r: torch.tensor([3.0, 2.0, 1.0]).repeat_interleave(math.ceil(r / 3))[:r],
    "a quarter zero": lambda r: torch.cat([torch.linspace(2, 1, r - r // 4), torch.zeros(r // 4)]),
}


def matrix_of(spectrum: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = SPECTRA[spectrum]
    rows, columns = SHAPE
    if values is None:
        return torch.randn(SHAPE, generator=generator) / columns**0.5
    u, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64, generator=generator))
    return ((u * values(rows).double()) @ v.T).float()


def error_of(actual: Tensor, matrix: Tensor, count: int) -> float:
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    s = np.concatenate([np.full(count, s[0]), s[count:]])
    expected = (u * s) @ vh
    return float(np.linalg.norm(actual.double().numpy() - expected) / np.linalg.norm(expected))


def measure(spectrum: str, count: int) -> dict[str, object]:
    row: dict[str, object] = {"spectrum": spectrum, "i": count}
    taken = None
    for name, dtypes in {"float32": (torch.float32,), "float64": (torch.float64,), "svd": ()}.items():
        errors, estimates = [], [0.0]
        for seed in SEEDS:
            matrix = matrix_of(spectrum, seed)
            expected_error = fast.expected_error

            def record(*args: Any, all_values: bool, estimate=expected_error, into=estimates) -> Any:  # type: ignore[no-untyped-def]
                into.append(float(estimate(*args, all_values=all_values)))
                return np.zeros(())

            with (
                mock.patch.object(fast, "precisions", lambda matrix, dtypes=dtypes: dtypes),
                mock.patch.object(fast, "expected_error", record),
            ):
                _, result = compensate(matrix, lambda s: static_target(s, count), all_values=False)
            assert result is not None
            errors.append(error_of(result.matrix, matrix, count))
        row[name] = max(errors) if all(map(math.isfinite, errors)) else math.nan
        if dtypes:
            row[f"{name} estimate"] = max(estimates) if all(map(math.isfinite, estimates)) else math.inf
        if taken is None and all(estimate <= TOLERANCE for estimate in estimates):
            taken = name
    return row | {"taken": taken}


def main() -> None:
    options = arguments(__doc__, device=False).parse_args()
    rows = [measure(spectrum, count) for spectrum in SPECTRA for count in (SHAPE[0] // 2, SHAPE[0])]
    print_table(f"relative error of a compensated weight of {SHAPE[0]}x{SHAPE[1]}", rows)
    write(options.out, {"environment": environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
