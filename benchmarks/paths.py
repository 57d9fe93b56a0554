"""What each path to a compensated weight costs by its rank: the measurement behind the choice between them.

    python benchmarks/paths.py [--device cuda] [--out FILE.json]

Weights of r x 9r (a 3x3 convolution of r channels), static compensation of the first half, milliseconds for one weight:
what cannot be avoided (a Gram matrix in float32, its eigendecomposition, one product), the whole of it in float32 and
in float64, and the thin decomposition in float64. Beside them, for a weight whose head has been compensated, the head's
projector without an eigendecomposition: the sign of 2 G / s_1^2 - 1 by Newton-Schulz products (Higham 2008,
*Functions of Matrices*, chapter 5), whose trace is i.
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


def sign_projector(matrix: Tensor, first: float, products: int = 4) -> Tensor:
    """Return the projector (r, r) on the singular vectors above s_1 / sqrt(2); ``first`` is s_1^2."""
    sign = 2 * (matrix @ matrix.T) / first
    sign.diagonal().sub_(1)
    for _ in range(products):
        sign = 1.5 * sign - 0.5 * sign @ sign @ sign
    sign.diagonal().add_(1)
    return sign / 2


def measure(rank: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    matrix = torch.randn(rank, 9 * rank, device=device) / (9 * rank) ** 0.5
    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(matrix),
        "float32": lambda: by((torch.float32,), matrix),
        "float64": lambda: by((torch.float64,), matrix),
        "svd": lambda: by((), matrix),
    }
    # In a training what is not raised falls to a few tenths.
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = torch.where(torch.arange(rank, device=device) < -(-rank // 2), s[0], 0.3 * s)
    compensated, first = ((u * values) @ v).float(), float(s[0] ** 2)
    contenders |= {
        "eigh, of a compensated weight": lambda: torch.linalg.eigh(compensated @ compensated.T),
        "sign projector": lambda: sign_projector(compensated, first),
    }
    times = interleaved(contenders, rounds=51 if rank <= 128 else 9 if rank <= 512 else 3, device=device)
    medians = {name: row["median"] for name, row in summary(times).items()}
    trace = float(sign_projector(compensated, first).trace())
    return medians | {"float32 / bare": medians["float32"] / medians["bare"], "trace - i": trace - -(-rank // 2)}


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
