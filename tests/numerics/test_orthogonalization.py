"""Newton's iteration acts on each singular value by itself; everything reads the weight that it makes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import reference
import specreg
from kinds import LAYERS, to_numpy
from specreg.regularizers.orthogonalization import Orthogonalization


def stretched(s: np.ndarray, iterations: int) -> np.ndarray:
    """The scalar iteration, from the bounded singular values."""
    s = s / (s**4).sum() ** 0.25
    for _ in range(iterations):
        s = 1.5 * s - 0.5 * s**3
    return s


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("kind", LAYERS)
def test_singular_values_follow_the_scalar_iteration_and_vectors_stay(kind, iterations):
    layer = LAYERS[kind]().double()
    before = reference.as_matrices(to_numpy(layer.weight), layer)
    specreg.orthogonalize(layer, iterations=iterations, only="")
    after = reference.as_matrices(to_numpy(layer.weight), layer)
    for one, other in zip(before, after, strict=True):
        u, s, vh = np.linalg.svd(one, full_matrices=False)
        np.testing.assert_allclose(other, (u * stretched(s, iterations)) @ vh, rtol=1e-9, atol=1e-12)


def test_many_iterations_make_the_polar_factor_and_none_exceeds_one():
    layer = nn.Linear(9, 6, bias=False).double()
    u, _, vh = np.linalg.svd(to_numpy(layer.weight), full_matrices=False)
    values = []
    for iterations in range(25):
        made = copy.deepcopy(layer)
        specreg.orthogonalize(made, iterations=iterations)
        values.append(specreg.spectra(made)[""])
    assert torch.stack(values).diff(dim=0).min() > -1e-12  # each one only rises
    assert values[-1].max() <= 1 + 1e-12
    np.testing.assert_allclose(to_numpy(made.weight), u @ vh, atol=1e-9)


def test_errors_of_the_weights_own_iteration_do_not_grow_as_those_of_the_papers_factor():
    generator = torch.Generator().manual_seed(0)
    of_factor, of_weight = [], []
    for _ in range(20):
        weight = torch.randn(6, 9, dtype=torch.float64, generator=generator)
        u, s, vh = np.linalg.svd(to_numpy(weight), full_matrices=False)
        exact = (u * stretched(s, 12)) @ vh
        bounded = weight / torch.linalg.matrix_norm(weight @ weight.T).sqrt()
        gram, factor = bounded @ bounded.T, torch.eye(6, dtype=torch.float64)
        for _ in range(12):
            factor = 1.5 * factor - 0.5 * factor @ factor @ factor @ gram
        of_factor.append(np.abs(to_numpy(factor @ bounded) - exact).max())
        of_weight.append(np.abs(to_numpy(Orthogonalization(12)(weight)) - exact).max())
    assert max(of_factor) > 1e-4
    assert max(of_weight) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 6)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_the_gradient_passes_gradcheck(shape, iterations, dtype):
    weight = torch.randn(shape, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(Orthogonalization(iterations), weight)


def test_grouped_and_transposed_gradients_pass_gradcheck():
    weight = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    parametrization = Orthogonalization(2)
    parametrization.output_dim, parametrization.groups = 1, 2
    assert torch.autograd.gradcheck(parametrization, weight)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e15, 1e30])
def test_the_scale_of_the_stored_weight_does_not_matter(scale):
    layer = nn.Conv2d(3, 8, 3)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.mul_(scale)
    for each in (layer, other):
        specreg.orthogonalize(each)
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-4, atol=1e-6)
    other.weight.square().sum().backward()
    assert other.parametrizations.weight.original.grad.isfinite().all()


def test_spectra_and_monitor_read_the_weight_that_the_network_uses():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.Flatten(), nn.Linear(8, 4))
    stored = specreg.spectra(module)
    report = specreg.orthogonalize(module, iterations=2)
    assert [layer.matrix_shape for layer in report.values()] == [(8, 27), (4, 8)]
    monitor = specreg.Monitor(module, every=1)
    monitor.step(1)
    for name in ("0", "2"):
        used = torch.linalg.svdvals(module.get_submodule(name).weight.detach().flatten(1).double())
        torch.testing.assert_close(monitor.latest[name], used, rtol=1e-5, atol=1e-6)
        assert (used - stored[name]).abs().max() > 0.01
    attained = specreg.attainment(module, torch.randn(5, 3, 3, 3))
    assert attained["0"].largest == pytest.approx(monitor.latest["0"][0].item(), rel=1e-5)


def test_a_shared_weight_is_one_layer():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    module["b"].weight = module["a"].weight
    assert list(specreg.orthogonalize(module)) == ["a"]
    assert list(specreg.spectra(module)) == ["a"]
    assert torch.equal(module["a"].weight, module["b"].weight)


def test_a_copy_has_weights_of_its_own_and_an_assigned_weight_is_the_stored_one():
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    specreg.orthogonalize(module)
    assert set(module.state_dict()) == {
        f"{name}.{key}" for name in "02" for key in ("bias", "parametrizations.weight.original")
    }
    x = torch.randn(3, 6)
    copied, before = copy.deepcopy(module), module(x)
    copied(x).sum().backward()
    torch.optim.SGD(copied.parameters(), 1.0).step()
    assert torch.equal(module(x), before)
    assert not torch.equal(module(x), copied(x))
    weight = torch.randn(5, 6)
    module[0].weight = weight
    assert torch.equal(module[0].parametrizations.weight.original, weight)


def test_spectral_normalization_may_follow_it():
    layer = nn.Linear(6, 4).double()
    specreg.orthogonalize(layer, iterations=1)
    before = specreg.spectra(layer)[""]
    specreg.spectral_norm(layer)
    layer.eval()
    torch.testing.assert_close(specreg.spectra(layer)[""], before)
    assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, rel=1e-3)


def test_gradient_penalties_on_the_inputs_reach_the_stored_weight():
    layer = nn.Linear(6, 1, bias=False).double()
    specreg.orthogonalize(layer)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert gradient.abs().max() > 1e-6
    assert gradient.isfinite().all()


def test_layers_under_it_are_refused_by_what_writes_weights():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    specreg.orthogonalize(module, only="0")
    for verb in (specreg.static_compensation, specreg.orthogonalize, specreg.spectral_regularization):
        with pytest.raises(
            ValueError, match="layer '0' is under Orthogonalization, which specreg cannot write through"
        ):
            verb(module)
    assert specreg.static_compensation(module, skip="0").step()
