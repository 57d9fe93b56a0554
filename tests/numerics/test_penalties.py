"""The penalties equal sums over numpy's singular values of the weight that the network uses, and move nothing else."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import reference
import specreg
from kinds import LAYERS, set_spectrum, to_numpy
from specreg.regularizers.penalties import EPS

PENALTIES = {"orthogonality": specreg.orthogonality_penalty, "d-optimal": specreg.d_optimal_penalty}


class Penalized(nn.Module):
    """A layer whose output is its spectral penalty."""

    def __init__(self, layer: nn.Module, exponent: int) -> None:
        super().__init__()
        self.layer, self.exponent = layer, exponent

    def forward(self) -> torch.Tensor:
        return specreg.spectral_penalty(self.layer, exponent=self.exponent)


def expected(name: str, matrices: list[np.ndarray]) -> float:
    s = np.concatenate([np.linalg.svd(matrix, compute_uv=False) for matrix in matrices])
    return float(((s**2 - 1) ** 2).sum() if name == "orthogonality" else -np.log(s).sum())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_equal_sums_over_singular_values(name, kind):
    layer = LAYERS[kind]().double()
    set_spectrum(layer, lambda r: torch.linspace(1.7, 0.3, r, dtype=torch.float64))
    value = PENALTIES[name](layer, only="").item()
    matrices = reference.as_matrices(to_numpy(layer.weight), layer)
    # 1e-5: EPS in the D-optimal penalty adds (EPS/s)²/2 to a logarithm.
    assert value == pytest.approx(expected(name, matrices), rel=1e-10 if name == "orthogonality" else 1e-5, abs=1e-4)


@pytest.mark.parametrize("exponent", [1, 2, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_spectral_penalty_is_of_the_largest_singular_value_and_the_bias(kind, exponent):
    layer = LAYERS[kind]().double()
    set_spectrum(layer, lambda r: torch.linspace(1.7, 0.3, r, dtype=torch.float64))
    value = specreg.spectral_penalty(layer, exponent=exponent, only="").item()
    matrices = reference.as_matrices(to_numpy(layer.weight), layer)
    largest = np.array([np.linalg.norm(matrix, 2) for matrix in matrices])
    bias = 0 if getattr(layer, "bias", None) is None else np.linalg.norm(to_numpy(layer.bias)) ** (2 * exponent)
    assert value == pytest.approx(((largest**exponent - 1) ** 2).sum() + bias, rel=1e-10)


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_the_spectral_penaltys_gradient_is_that_of_s1_alone(exponent):
    layer = nn.Linear(7, 4).double()
    specreg.spectral_penalty(layer, exponent=exponent).backward()
    u, s, vh = np.linalg.svd(to_numpy(layer.weight))
    slope = 2 * (s[0] ** exponent - 1) * exponent * s[0] ** (exponent - 1)
    np.testing.assert_allclose(layer.weight.grad.numpy(), slope * np.outer(u[:, 0], vh[0]), rtol=1e-8, atol=1e-12)
    bias = to_numpy(layer.bias)
    outward = 2 * exponent * np.linalg.norm(bias) ** (2 * exponent - 2) * bias
    np.testing.assert_allclose(layer.bias.grad.numpy(), outward, rtol=1e-8, atol=1e-12)

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(Penalized(layer, exponent), {"layer.weight": weight}, ())

    assert torch.autograd.gradcheck(penalty, layer.weight.detach().clone().requires_grad_())


@pytest.mark.parametrize("exponent", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-12])
def test_the_spectral_penalty_pulls_tiny_weights_as_its_formula_says(scale, exponent):
    layer = nn.Linear(7, 4, bias=False).double()
    layer.weight.data.mul_(scale / torch.linalg.matrix_norm(layer.weight.data, 2))
    specreg.spectral_penalty(layer, exponent=exponent).backward()
    slope = 2 * (scale**exponent - 1) * exponent * scale ** (exponent - 1)
    assert torch.linalg.matrix_norm(layer.weight.grad).item() == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("exponent", [1, 2])
def test_the_spectral_penalty_is_finite_where_s1_is_zero_or_repeated(exponent, dtype):
    layer = nn.Linear(6, 6).to(dtype)
    for weight, value in ((torch.zeros(6, 6), 1.0), (2 * torch.eye(6), (2**exponent - 1) ** 2)):
        layer.weight.data.copy_(weight)
        layer.bias.data.zero_()
        layer.zero_grad()
        penalty = specreg.spectral_penalty(layer, exponent=exponent)
        penalty.backward()
        assert penalty.item() == pytest.approx(value, rel=3e-3)
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_penalties_of_weights_that_are_not_finite_are_real_and_not_finite(value, dtype):
    layer = nn.Linear(3, 2).to(dtype)
    layer.weight.data[0, 0] = value
    for penalty in (specreg.spectral_penalty, specreg.orthogonality_penalty, specreg.d_optimal_penalty):
        assert not math.isfinite(penalty(layer).item())


def test_the_spectral_penalty_of_biases_in_half_precision_does_not_overflow():
    layer = nn.Linear(4, 512).half()
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    assert specreg.spectral_penalty(layer).item() == 1 + 512**2


def test_under_descent_the_spectral_penalty_brings_s1_to_one_and_biases_to_nothing():
    layer = nn.Conv2d(3, 8, 3).double()
    layer.weight.data.mul_(3)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    for _ in range(400):
        optimizer.zero_grad()
        specreg.spectral_penalty(layer).backward()
        optimizer.step()
    assert specreg.spectra(layer)[""][0].item() == pytest.approx(1, abs=1e-3)
    assert layer.bias.norm() < 0.1


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 6)])
def test_gradients_have_their_closed_forms(shape):
    layer = nn.Linear(*shape[::-1], bias=False).double()
    W = to_numpy(layer.weight)
    specreg.orthogonality_penalty(layer).backward()
    gram = 4 * (W @ W.T @ W - W)
    np.testing.assert_allclose(layer.weight.grad.numpy(), gram, rtol=1e-9, atol=1e-12)
    layer.weight.grad = None
    specreg.d_optimal_penalty(layer).backward()
    u, s, vh = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose(layer.weight.grad.numpy(), (u * (-s / (s**2 + EPS**2))) @ vh, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_rank_deficient_weights_have_a_finite_penalty_and_gradient(dtype):
    layer = nn.Linear(8, 6, bias=False).to(dtype)
    for values in ([2.0, 1.0, 0.5, 0.0, 0.0, 0.0], [0.0] * 6):
        with torch.no_grad():
            layer.weight.copy_(torch.cat([torch.diag(torch.tensor(values)), torch.zeros(6, 2)], 1))
        layer.weight.grad = None
        value = specreg.d_optimal_penalty(layer)
        value.backward()
        assert value.item() == pytest.approx(-0.5 * np.log(np.square(values) + EPS**2).sum(), rel=1e-4)
        slopes = torch.linalg.svdvals(layer.weight.grad.to(torch.complex128))
        assert slopes.isfinite().all()
        assert slopes[0] <= 1 / (2 * EPS)


@pytest.mark.parametrize(
    "wrap",
    [
        specreg.spectral_norm,
        specreg.spectral_regularization,
        specreg.orthogonalize,
        parametrizations.weight_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
    ],
    ids=["sn", "sr", "oni", "weight_norm", "legacy weight_norm", "legacy sn"],
)
@pytest.mark.parametrize("name", PENALTIES)
def test_they_read_the_weight_that_the_network_uses_and_move_no_buffer(name, wrap):
    layer = nn.Conv2d(3, 8, 3)
    wrap(layer)
    for _ in range(60):  # power iteration has converged
        layer(torch.randn(2, 3, 5, 5))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    value = PENALTIES[name](layer)
    value.backward()
    assert layer.training
    assert all(child.training for child in layer.modules())
    assert all(torch.equal(before[key], now) for key, now in layer.state_dict().items())
    layer.eval()
    layer(torch.randn(2, 3, 5, 5))
    used = [to_numpy(layer.weight).reshape(8, -1)]
    assert value.item() == pytest.approx(expected(name, used), rel=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in layer.named_parameters() if n != "bias")


@pytest.mark.parametrize("name", PENALTIES)
def test_under_spectral_normalization_they_act_on_ratios_and_not_on_the_scale(name):
    layer = nn.Linear(12, 8, bias=False).double()
    set_spectrum(layer, lambda r: torch.tensor([2.0, *torch.linspace(1.0, 0.5, r - 1)], dtype=torch.float64))
    specreg.spectral_norm(layer)
    stored = layer.parametrizations.weight.original
    for _ in range(40):
        layer(torch.randn(1, 12, dtype=torch.float64))
    PENALTIES[name](layer).backward()
    cosine = torch.nn.functional.cosine_similarity(stored.grad.flatten(), stored.detach().flatten(), dim=0)
    assert abs(cosine.item()) < 1e-8
    optimizer = torch.optim.SGD([stored], 0.005)
    for _ in range(100):
        optimizer.zero_grad()
        layer(torch.randn(1, 12, dtype=torch.float64))
        PENALTIES[name](layer).backward()
        optimizer.step()
    assert specreg.spectra(layer, normalized=True)[""][-1] > 0.4  # 0.25 before


def test_a_shared_weight_counts_once_and_layers_can_be_chosen():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Conv1d(2, 3, 3)})
    module["b"].weight = module["a"].weight
    for penalty in PENALTIES.values():
        parts = [penalty(module[name]).item() for name in ("a", "c")]
        assert penalty(module).item() == pytest.approx(sum(parts), rel=1e-6)
        assert penalty(module, skip="c").item() == pytest.approx(parts[0], rel=1e-6)
        assert penalty(module, only=nn.Conv1d).item() == pytest.approx(parts[1], rel=1e-6)
        with pytest.raises(ValueError, match="no layer matched"):
            penalty(nn.ReLU())


def test_a_bias_that_two_modules_share_counts_once():
    module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    module["b"].weight, module["b"].bias = module["a"].weight, module["a"].bias
    assert specreg.spectral_penalty(module).item() == specreg.spectral_penalty(module["a"]).item()


@pytest.mark.parametrize("normalize", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_a_penalty_between_two_forward_passes_has_its_gradient(normalize):
    module = nn.Sequential(normalize(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 1))
    x = torch.randn(4, 6)
    first = module(x).sum()
    penalty = specreg.orthogonality_penalty(module)
    (first + penalty + module(x).sum()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())
