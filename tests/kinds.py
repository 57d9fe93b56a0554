"""Every layer kind that specreg takes, as small layers: the one table that tests multiply with shapes and dtypes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.spectra.matrices import from_matrix, to_matrix

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "linear-tall": lambda: nn.Linear(4, 9),
    "linear-row": lambda: nn.Linear(6, 1),
    "linear-column": lambda: nn.Linear(1, 6),
    "conv1d": lambda: nn.Conv1d(3, 6, 5),
    "conv2d": lambda: nn.Conv2d(3, 8, 3),
    "conv2d-1x1": lambda: nn.Conv2d(8, 4, 1),
    "conv2d-grouped": lambda: nn.Conv2d(6, 9, 3, groups=3),
    "conv2d-depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "conv3d": lambda: nn.Conv3d(2, 5, 2),
    "conv1d-transposed": lambda: nn.ConvTranspose1d(5, 3, 4),
    "conv2d-transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "conv2d-transposed-grouped": lambda: nn.ConvTranspose2d(6, 8, 3, groups=2),
    "conv3d-transposed": lambda: nn.ConvTranspose3d(4, 3, 2),
    "embedding": lambda: nn.Embedding(10, 4),
}


class OwnNormalized(nn.Conv2d):
    """Normalizes itself, its vectors in buffers, as BigGAN's and mimicry's layers do."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.register_buffer("u0", torch.randn(1, shape[1]))
        self.register_buffer("sv0", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            v = F.normalize(self.u0 @ self.weight.flatten(1))
            if self.training:
                self.u0.copy_(F.normalize(v @ self.weight.flatten(1).T))
        s1 = (self.u0 @ self.weight.flatten(1) * v).sum()
        return self._conv_forward(x, self.weight / s1, self.bias)


def layout(layer: nn.Module) -> dict[str, int]:
    """Return how a layer's weight is read as a matrix."""
    return {
        "output_dim": int(isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))),
        "groups": int(getattr(layer, "groups", 1)),
    }


def example_input(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input of batch 2 that the layer takes."""
    if isinstance(layer, nn.Embedding):
        return torch.tensor([0, 1])
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.in_features, dtype=dtype)
    return torch.randn(2, layer.in_channels, *[6] * len(layer.kernel_size), dtype=dtype)


def matrix_with_spectrum(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return a random matrix (rows, columns), float64, with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator))[0] for n in (rows, columns))
    return (u * values[:rank]) @ v.T


def set_spectrum(layer: nn.Module, spectrum: Callable[[int], Tensor], seed: int = 0) -> None:
    """Give every group's matrix of a plain layer the singular values ``spectrum(r)``."""
    weight = layer.weight
    shape = to_matrix(weight, **layout(layer)).shape
    rows, columns = shape[-2:]
    matrices = [
        matrix_with_spectrum(spectrum(min(rows, columns)), rows, columns, seed + group)
        for group in range(layout(layer)["groups"])
    ]
    stacked = torch.stack(matrices) if len(shape) == 3 else matrices[0]
    with torch.no_grad():
        weight.copy_(from_matrix(stacked, weight.shape, **layout(layer)))


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "random": lambda r: (
        torch.rand(r, generator=torch.Generator().manual_seed(r)).double().sort(descending=True)[0] + 0.1
    ),
    "repeated": lambda r: torch.tensor([3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5])[:r].double(),
    "rank-deficient": lambda r: torch.cat([torch.linspace(2, 1, r - r // 2), torch.zeros(r // 2)]).double(),
    "condition-1e4": lambda r: torch.logspace(0, -4, r, dtype=torch.float64),
}


def relative_error(actual: Tensor, expected: np.ndarray) -> float:
    """Return the Frobenius norm of the difference over that of what is expected."""
    return float(np.linalg.norm(to_numpy(actual) - expected) / np.linalg.norm(expected))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a float64 (or complex128) copy."""
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).cpu().numpy().copy()
