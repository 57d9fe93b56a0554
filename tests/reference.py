"""Independent references: numpy in float64, written from the paper's formulas and from the authors' description."""

import math

import numpy as np
from torch import nn


def as_matrices(weight: np.ndarray, layer: nn.Module) -> list[np.ndarray]:
    """Cut a weight into one matrix (outputs, rest) for each group, entry by entry."""
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    groups = getattr(layer, "groups", 1)
    step = weight.shape[0] // groups
    matrices = []
    for group in range(groups):
        block = weight[group * step : (group + 1) * step]
        outputs = block.shape[1] if transposed else block.shape[0]
        rows = [(block[:, output] if transposed else block[output]).reshape(-1) for output in range(outputs)]
        matrices.append(np.array(rows))
    return matrices


def from_matrices(matrices: list[np.ndarray], weight: np.ndarray, layer: nn.Module) -> np.ndarray:
    """Put the matrices of :func:`as_matrices` back into a weight of the same shape."""
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    result = np.empty(weight.shape, dtype=matrices[0].dtype)
    step = weight.shape[0] // len(matrices)
    for group, matrix in enumerate(matrices):
        block = result[group * step : (group + 1) * step]
        for output, row in enumerate(matrix):
            if transposed:
                block[:, output] = row.reshape(block[:, output].shape)
            else:
                block[output] = row.reshape(block[output].shape)
    return result


def static(matrix: np.ndarray, keep: float | int, unit: bool = False) -> np.ndarray:
    """The static scheme, one singular value after the other."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    count = min(keep, len(s)) if isinstance(keep, int) else math.ceil(keep * len(s))
    result = np.zeros_like(matrix)
    for k in range(len(s)):
        value = s[0] if k < count else s[k]
        result = result + (value / s[0] if unit else value) * np.outer(u[:, k], vh[k])
    return result


def static_compensation(matrix: np.ndarray, keep: float | int, unit: bool = False) -> np.ndarray:
    """The static scheme on a layer, which is left as it is where nothing is raised."""
    rank = min(matrix.shape)
    count = min(keep, rank) if isinstance(keep, int) else math.ceil(keep * rank)
    return matrix if count == 1 else static(matrix, keep, unit)


def authors_static(matrix: np.ndarray) -> np.ndarray:
    """The authors' static code: s / s1, the first half set to 1, written back."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    s = s / s[0]
    s[: len(s) // 2] = 1
    return (u * s) @ vh


class Dynamic:
    """The dynamic scheme with its memory, one matrix."""

    def __init__(self, unit: bool = False) -> None:
        self.record: np.ndarray | None = None
        self.unit = unit

    def __call__(self, matrix: np.ndarray) -> np.ndarray:
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        if self.record is None:
            self.record = s / s[0]
            return matrix
        if len(s) == 1:
            return matrix  # there is nothing to raise
        self.record = np.maximum(self.record, s / s[0])
        lifted = s[0] * self.record
        return (u * (lifted / s[0] if self.unit else lifted)) @ vh


def paper_gradient(matrix: np.ndarray, upstream: np.ndarray, count: int) -> np.ndarray:
    """The paper's four terms, for one entry (a, b) of the weight after the other."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    outer = [np.outer(u[:, k], vh[k]) for k in range(len(s))]
    delta = sum(((s[0] - s[k]) * outer[k] for k in range(count)), np.zeros_like(matrix))
    gradient = np.empty_like(matrix)
    for a in range(matrix.shape[0]):
        for b in range(matrix.shape[1]):
            unit = np.zeros_like(matrix)
            unit[a, b] = 1
            derivative = unit - matrix / s[0] * outer[0][a, b] - delta / s[0] * outer[0][a, b]
            for k in range(1, count):
                derivative = derivative + (outer[0] - outer[k])[a, b] * outer[k]
            gradient[a, b] = (upstream * derivative).sum() / s[0]
    return gradient
