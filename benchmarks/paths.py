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
from specreg.spectra.lifting import Raising, lift_all
from torch import Tensor

from measure import environment, interleaved, print_table, summary, write
from specreg.spectra import lifting

RANKS = (8, 16, 27, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


def by(
    dtypes: tuple[torch.dtype, ...], matrices: list[Tensor], heads: dict[str, lifting.Head]
) -> Callable[[], list[Tensor | None]]:
    """Return a static compensation by the first of some dtypes, or by the thin decomposition if there is none."""
    readers = {str(index): functools.partial(lambda matrix: matrix, matrix) for index, matrix in enumerate(matrices)}

    def run() -> list[Tensor | None]:
        chosen[:] = dtypes
        target = Raising(len(matrices[0]) // 2, heads=dict(heads))
        return [lifted.matrix for _, lifted in lift_all(readers, target, unit=True, all_values=False)]

    return run


chosen: list[torch.dtype] = []
_expected_error = lifting.expected_error


def accepted(*arguments: Tensor, **options: bool) -> Tensor:
    """Estimate an error at its usual cost, and find nothing wrong with it."""
    return _expected_error(*arguments, **options) * 0


def measure(rank: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    single, double = (torch.float32,), (torch.float64,)
    first = [torch.randn(rank, 9 * rank, device=device) / (9 * rank) ** 0.5 for _ in range(3)]
    heads: dict[str, lifting.Head] = {}
    chosen[:] = single
    readers = {str(index): functools.partial(lambda matrix: matrix, matrix) for index, matrix in enumerate(first)}
    target = Raising(rank // 2, heads=heads)
    matrices = []
    for _, lifted in lift_all(readers, target, unit=True, all_values=False):
        assert lifted.matrix is not None
        size = 0.01 * lifted.matrix.norm() / lifted.matrix.numel() ** 0.5  # an optimizer's step of one percent
        matrices.append(lifted.matrix + size * torch.randn_like(lifted.matrix))
    followed_dtype = single if device.type == "cpu" else double
    contenders: dict[str, Callable[[], object]] = {
        "limit": lambda: (matrices[0] @ matrices[0].T) @ matrices[0],
        "followed": by(followed_dtype, matrices[:1], heads),
        "3 followed, each": by(followed_dtype, matrices, heads),
        "float32": by(single, matrices[:1], {}),
        "float64": by(double, matrices[:1], {}),
        "svd": by((), matrices[:1], {}),
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
    with (
        mock.patch.object(lifting, "gram_dtypes", lambda matrix: tuple(chosen)),  # noqa: PT008
        mock.patch.object(lifting, "expected_error", accepted),
        mock.patch.object(lifting, "FOLLOWED_RANKS", range(1, 10**6)),
    ):
        results = {str(rank): measure(rank, device) for rank in RANKS}
    print_table("milliseconds for one weight", [{"r": rank} | row for rank, row in results.items()])
    write(options.out, {"environment": environment(device), "results": results})


if __name__ == "__main__":
    main()
