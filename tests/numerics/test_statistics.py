"""Statistics of spectra and the operator norm of convolutions against closed forms and dense references."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from specreg.names import bulk_range
from specreg.spectra.operator import convolution_norm
from specreg.spectra.statistics import bulk, effective_rank, random_bulk, stable_rank, statistics


def test_statistics_of_a_spectrum_worked_out_by_hand():
    s = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    found = statistics(s)
    assert found.largest == 4
    assert found.bulk == pytest.approx(0.75)  # k = 2 of ceil(4/2)
    assert found.mean == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert found.median == pytest.approx(0.5)
    assert found.area == pytest.approx((0.5 + 0.75 + 0.5 + 0.125) / 3)
    assert found.stable_rank == pytest.approx((16 + 9 + 4 + 1) / 16)
    p = np.array([0.4, 0.3, 0.2, 0.1])
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert found.tail == pytest.approx(0.25)


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 9, 64])
def test_a_flat_spectrum_and_one_direction(rank):
    flat = statistics(torch.full((2, rank), 3.0, dtype=torch.float64))
    for value in (flat.bulk, flat.mean, flat.median, flat.area, flat.tail):
        assert torch.allclose(value, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(flat.effective_rank, torch.full((2,), float(rank), dtype=torch.float64))
    assert torch.allclose(flat.stable_rank, torch.full((2,), float(rank), dtype=torch.float64))
    one = torch.zeros(rank, dtype=torch.float64)
    one[0] = 2
    assert effective_rank(one) == pytest.approx(1)
    assert stable_rank(one) == pytest.approx(1)


def test_a_zero_matrix_has_zero_everywhere():
    found = statistics(torch.zeros(5))
    for value in vars(found).values():
        assert value == 0


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, (0, 1)), (2, (1, 2)), (3, (1, 2)), (4, (1, 2)), (5, (1, 3)), (64, (1, 32))]
)
def test_the_bulk_is_the_upper_half_without_the_first(rank, expected):
    assert bulk_range(rank) == expected


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (128, 128), (32, 27), (128, 1152), (16, 144), (1, 64)])
def test_the_random_bulk_is_that_of_random_matrices(shape):
    found = bulk(torch.linalg.svdvals(torch.randn(40, *shape, dtype=torch.float64))).mean().item()
    assert random_bulk(*shape) == pytest.approx(found, abs=0.05)


CONVOLUTIONS = [
    (nn.Conv1d, {}),
    (nn.Conv1d, {"stride": 2, "groups": 3}),
    (nn.Conv1d, {"dilation": 4}),  # around the whole grid
    (nn.Conv2d, {}),
    (nn.Conv2d, {"stride": 2}),
    (nn.Conv2d, {"stride": (1, 2), "dilation": (2, 1)}),
    (nn.Conv2d, {"groups": 3}),
    (nn.Conv3d, {}),
]


@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_the_operator_norm_is_that_of_the_dense_periodic_map(kind, options):
    layer = kind(3, 6, 3, bias=False, **options).double()
    dims = layer.weight.ndim - 2
    side = 4 if dims == 3 else 8
    images = torch.eye(3 * side**dims, dtype=torch.float64).reshape(-1, 3, *[side] * dims)
    around = [amount for dilation in reversed(layer.dilation) for amount in (0, 2 * dilation)]
    dense = layer(F.pad(images, around, mode="circular")).flatten(1)
    found = convolution_norm(
        layer.weight, [side] * dims, stride=layer.stride, dilation=layer.dilation, groups=layer.groups
    )
    assert found.item() == pytest.approx(torch.linalg.matrix_norm(dense.detach(), 2).item(), rel=1e-10)


def test_the_operator_norm_bounds_the_zero_padded_map():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    images = torch.eye(3 * 10 * 10, dtype=torch.float64).reshape(-1, 3, 10, 10)
    true = torch.linalg.matrix_norm(layer(images).flatten(1).detach(), 2).item()
    assert true <= convolution_norm(layer.weight, [12, 12]).item() <= 1.1 * true
