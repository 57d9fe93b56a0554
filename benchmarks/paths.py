"""What each path to a compensated weight costs by its rank: the measurement behind the choice between them.

    python benchmarks/paths.py [--device cuda] [--out FILE.json]

Weights of r x 9r (a 3x3 convolution of r channels), static compensation of the first half, milliseconds for one weight:
what cannot be avoided (a Gram matrix in float32, its eigendecomposition, one product), the whole of it in float32 and
in float64, and the thin decomposition in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from measure import arguments, environment, interleaved, print_table, summary, write
from specreg.spectra import fast
from specreg.spectra.fast import compensate
from specreg.spectra.reference import static_target

RANKS = (8, 16, 27, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


def by(dtypes: tuple[torch.dtype, ...], matrix: Tensor) -> object:
    """Compensate a matrix by the first of some dtypes, or by the thin decomposition if there is none."""
    fast.precisions = lambda matrix: dtypes  # a mock costs as much as a small layer
    return compensate(matrix, lambda s: static_target(s, len(matrix) // 2), all_values=False)


def bare(matrix: Tensor) -> object:
    """Make a Gram matrix, its eigendecomposition and one product."""
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors @ matrix


def measure(rank: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    matrix = torch.randn(rank, 9 * rank, device=device) / (9 * rank) ** 0.5
    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(matrix),
        "float32": lambda: by((torch.float32,), matrix),
        "float64": lambda: by((torch.float64,), matrix),
        "svd": lambda: by((), matrix),
    }
    times = interleaved(contenders, rounds=51 if rank <= 128 else 9 if rank <= 512 else 3, device=device)
    medians = {name: row["median"] for name, row in summary(times).items()}
    return medians | {"float32 / bare": medians["float32"] / medians["bare"]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = {str(rank): measure(rank, device) for rank in options.ranks}
    print_table("milliseconds for one weight", [{"r": rank} | row for rank, row in results.items()])
    write(options.out, {"environment": environment(device), "results": results})


if __name__ == "__main__":
    main()
