"""What each path to a compensated weight costs by its rank: the measurement behind the choice between them.

    python benchmarks/paths.py [--device cuda] [--out FILE.json]

Weights of r x 9r (a 3x3 convolution of r channels), static compensation of the first half, milliseconds for one weight:
the limit (two products), following the head (one weight, and three at a time), a Gram matrix in float32 and in float64
with its eigendecomposition, and the thin decomposition in float64.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from measure import environment, interleaved, print_table, summary, write
from specreg.spectra import lifting
from specreg.spectra.lifting import Raising, lift_all

RANKS = (8, 16, 27, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


def by(dtypes: tuple[torch.dtype, ...], matrices: list[Tensor], heads: dict[str, lifting.Head]) -> None:
    """Compensate by the first of these dtypes whatever the expected error, or by the thin decomposition if none."""
    readers = {str(index): functools.partial(lambda matrix: matrix, matrix) for index, matrix in enumerate(matrices)}
    with (
        mock.patch.object(lifting, "gram_dtypes", return_value=dtypes),
        mock.patch.object(lifting, "expected_error", return_value=torch.zeros(())),
    ):
        for _ in lift_all(readers, Raising(matrices[0].shape[0] // 2, heads=heads), unit=True, all_values=False):
            pass


def measure(rank: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    single, double = (torch.float32,), (torch.float64,)
    followed_dtype = single if device.type == "cpu" else double
    matrices = [torch.randn(rank, 9 * rank, device=device) / (9 * rank) ** 0.5 for _ in range(3)]
    remembered: dict[str, lifting.Head] = {}
    with mock.patch.object(lifting, "FOLLOWED_RANKS", range(1, 10**6)):
        by(followed_dtype, matrices, remembered)
        known = dict(remembered)
        contenders: dict[str, Callable[[], object]] = {
            "limit": lambda: (matrices[0] @ matrices[0].T) @ matrices[0],
            "followed": lambda: by(followed_dtype, matrices[:1], {"0": known["0"]}),
            "3 followed, each": lambda: by(followed_dtype, matrices, dict(known)),
            "float32": lambda: by(single, matrices[:1], {}),
            "float64": lambda: by(double, matrices[:1], {}),
            "svd": lambda: by((), matrices[:1], {}),
        }
        times = interleaved(contenders, rounds=51 if rank <= 128 else 9 if rank <= 512 else 3, device=device)
    medians = {name: row["median"] for name, row in summary(times).items()}
    medians["3 followed, each"] /= 3
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {str(rank): measure(rank, device) for rank in RANKS}
    print_table("milliseconds for one weight", [{"r": rank} | row for rank, row in results.items()])
    write(options.out, {"environment": environment(device), "results": results})


if __name__ == "__main__":
    main()
