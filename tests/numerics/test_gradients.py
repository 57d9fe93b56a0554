"""The parametrization's value and its two gradients."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import reference
import specreg
from kinds import LAYERS, layout, matrix_with_spectrum, set_spectrum, to_numpy
from specreg.regularizers.regularization import SpectralRegularization
from specreg.spectra.decompositions import svd
from specreg.spectra.matrices import to_matrix
from specreg.spectra.regularization import exact_gradient, paper_gradient, regularized

SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_paper_gradient_equals_the_four_terms(shape, count):
    count = min(count, *shape)
    matrix = torch.randn(shape, dtype=torch.float64)
    upstream = torch.randn(shape, dtype=torch.float64)
    actual = paper_gradient(upstream, matrix, svd(matrix), count)
    expected = reference.paper_gradient(matrix.numpy(), upstream.numpy(), count)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


def test_paper_gradient_through_the_parametrization():
    layer = nn.Conv2d(3, 6, 3, bias=False).double()
    matrix = to_numpy(layer.weight).reshape(6, -1)
    specreg.spectral_regularization(layer, keep=0.5)
    upstream = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    layer.weight.backward(upstream)
    expected = reference.paper_gradient(matrix, upstream.numpy().reshape(6, -1), 3)
    gradient = layer.parametrizations.weight.original.grad.reshape(6, -1)
    torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [1, 2, 0.5, 1.0])
def test_exact_gradient_passes_gradcheck(shape, keep, dtype):
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(SpectralRegularization(keep, "exact"), weight)


@pytest.mark.parametrize(
    ("values", "keep"),
    [
        ([3, 2, 2, 2, 1], 4),  # inside the head
        ([3, 2, 1, 1, 1], 2),  # inside the tail
        ([2, 2, 2, 2, 2], 1.0),  # all of them, the polar factor
        ([3, 3, 2, 1, 1], 2),  # the largest, twice
        ([2, 2, 1, 1, 0.5], 1),  # the largest, twice, under spectral normalization
        ([3, 2, 1, 0, 0], 2),  # a null space
    ],
)
@pytest.mark.parametrize("shape", [(5, 5), (5, 8), (8, 5)])
def test_exact_gradient_passes_gradcheck_where_singular_values_repeat(shape, values, keep):
    weight = matrix_with_spectrum(torch.tensor(values, dtype=torch.float64), *shape).requires_grad_()
    assert torch.autograd.gradcheck(SpectralRegularization(keep, "exact"), weight)


@pytest.mark.parametrize("gradient", [paper_gradient, partial(exact_gradient, eps=2.2e-16)])
@pytest.mark.parametrize("values", [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [2, 1, 1, 0], [1, 1 - 1e-15, 1e-17, 0]])
def test_gradients_are_finite_where_the_map_is_not_smooth(gradient, values):
    matrix = matrix_with_spectrum(torch.tensor(values, dtype=torch.float64), 4, 6)
    for count in (1, 2, 3, 4):
        assert gradient(torch.randn(4, 6, dtype=torch.float64), matrix, svd(matrix), count).isfinite().all()


@pytest.mark.parametrize("kind", LAYERS)
def test_keep_first_equals_torchs_converged_spectral_norm(kind):
    ours, theirs = LAYERS[kind](), LAYERS[kind]()
    theirs.load_state_dict(ours.state_dict())
    specreg.spectral_regularization(ours, keep="first", only="")
    parametrizations.spectral_norm(theirs, n_power_iterations=200)
    if layout(ours)["groups"] > 1:
        # Torch stacks the groups; here each has norm 1 on its own.
        norms = torch.linalg.matrix_norm(to_matrix(ours.weight, **layout(ours)), ord=2)
        torch.testing.assert_close(norms, torch.ones(layout(ours)["groups"]))
        return
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(ours.weight)
    gradients = []
    for layer in (ours, theirs):
        layer.weight.backward(upstream)
        gradients.append(layer.parametrizations.weight.original.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("keep", [0.5, 1.0, 3])
def test_value_equals_the_reference(kind, keep):
    layer = LAYERS[kind]()
    weight = to_numpy(layer.weight)
    matrices = [reference.static(m, keep, unit=True) for m in reference.as_matrices(weight, layer)]
    expected = reference.from_matrices(matrices, weight, layer)
    specreg.spectral_regularization(layer, keep=keep, only="")
    torch.testing.assert_close(layer.weight.detach().double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_regularized_keeps_a_zero_matrix():
    zero = torch.zeros(3, 5, dtype=torch.float64)
    assert torch.equal(regularized(zero, svd(zero), 2), zero)
    upstream = torch.randn(3, 5, dtype=torch.float64)
    for gradient in (paper_gradient, partial(exact_gradient, eps=2.2e-16)):
        assert torch.equal(gradient(upstream, zero, svd(zero), 2), upstream)


def test_hard_spectra_stay_finite_in_float32():
    for values in ([0.0, 0, 0, 0], [1e-30, 0, 0, 0], [1e4, 1, 1e-4, 0]):
        layer = nn.Linear(6, 4, bias=False)
        set_spectrum(layer, lambda r, values=values: torch.tensor(values))
        specreg.spectral_regularization(layer, keep=0.5, gradient="exact")
        layer(torch.randn(2, 6)).sum().backward()
        assert layer.weight.isfinite().all()
        assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_exact_gradient_of_a_rank_deficient_float32_weight_is_of_the_size_of_the_papers():
    product = torch.randn(16, 4) @ torch.randn(4, 16)  # its null singular values are rounding, not zero
    norms = {}
    for gradient in ("paper", "exact"):
        layer = nn.Linear(16, 16, bias=False)
        layer.weight.data.copy_(product)
        specreg.spectral_regularization(layer, keep=0.5, gradient=gradient)
        layer.weight.backward(torch.ones(16, 16))
        norms[gradient] = layer.parametrizations.weight.original.grad.norm()
    assert norms["exact"] < 100 * norms["paper"]


@pytest.mark.parametrize(("rank", "dtype"), [(32, torch.bfloat16), (64, torch.float16), (256, torch.float16)])
def test_exact_gradient_in_half_precision_is_that_of_the_same_weight_in_double(rank, dtype):
    values = torch.linspace(1.0, 0.2, rank, dtype=torch.float64)
    weight = matrix_with_spectrum(values, rank, rank).to(dtype)
    upstream = torch.randn(rank, rank, dtype=torch.float64).to(dtype)
    gradients = []
    for precision in (dtype, torch.float64):
        original = weight.detach().to(precision).requires_grad_()
        SpectralRegularization(0.5, "exact")(original).backward(upstream.to(precision))
        gradients.append(original.grad.double())
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < torch.finfo(dtype).eps
