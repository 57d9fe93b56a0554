"""How nearly layers attain their Lipschitz bound, and the discriminator's gradient norms."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

import specreg
from kinds import layout
from specreg.monitor.signal import signal
from specreg.spectra.matrices import from_matrix, to_matrix

# Wide enough outputs for a matrix whose columns are orthonormal: such a layer attains its bound on every input.
ISOMETRIES = {
    "linear": (lambda: nn.Linear(5, 9), (4, 5)),
    "linear, several positions": (lambda: nn.Linear(5, 9), (4, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 12, 5, stride=2, padding=3), (4, 2, 17)),
    "conv2d": (lambda: nn.Conv2d(2, 20, 3, padding=1, bias=False), (4, 2, 7, 6)),
    "conv2d, dilated": (lambda: nn.Conv2d(2, 20, 3, padding="same", dilation=2), (4, 2, 7, 6)),
    "conv2d, reflected": (lambda: nn.Conv2d(2, 20, 3, padding=1, padding_mode="reflect"), (4, 2, 7, 6)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 40, 3, stride=2, groups=2), (4, 4, 7, 6)),
    "conv2d, without a batch": (lambda: nn.Conv2d(2, 20, 3), (2, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 9, 2), (4, 1, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 20, 3, stride=2, padding=1, output_padding=1), (4, 2, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(4, 24, 4, stride=2, groups=2), (4, 4, 5)),
}


def test_a_weight_with_nan_is_named():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer '1': the weight holds NaN or inf"):
        specreg.attainment(network, torch.ones(3, 2))


def isometric(layer):
    shape = to_matrix(layer.weight, **layout(layer)).shape
    q, _ = torch.linalg.qr(torch.randn(*shape))
    layer.weight.data.copy_(from_matrix(3 * q, layer.weight.shape, **layout(layer)))
    return layer


@pytest.mark.parametrize("name", ISOMETRIES)
def test_an_isometry_attains_its_bound(name):
    make, shape = ISOMETRIES[name]
    found = specreg.attainment(isometric(make()), torch.randn(shape))[""]
    assert found.attained == pytest.approx(1, abs=1e-5)
    assert found.largest == pytest.approx(3, rel=1e-5)


def test_rounding_lifts_nothing_above_its_bound():
    layer = nn.Linear(1, 1, bias=False)
    assert max(specreg.attainment(layer, torch.randn(1, 1))[""].attained for _ in range(20)) == 1


def test_a_transposed_convolution_asked_for_another_size():
    layer = isometric(nn.ConvTranspose2d(2, 20, 3, stride=2))

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, output_size=(12, 11))

    assert specreg.attainment(Asking(), torch.randn(3, 2, 5, 5))["layer"].attained == pytest.approx(1, abs=1e-5)


def test_a_convolution_against_its_patches():
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(5, 3, 8, 8)
    patches = nn.functional.unfold(x, 3, stride=2, padding=1)
    matrix = layer.weight.detach().flatten(1)
    by_image = (matrix @ patches).flatten(1).norm(dim=1) / patches.flatten(1).norm(dim=1)
    expected = by_image.mean() / torch.linalg.svdvals(matrix)[0]
    assert specreg.attainment(layer, x)[""].attained == pytest.approx(expected.item(), rel=1e-5)


def test_the_operator_norm_stands_beside_the_matrix_norm():
    x = torch.randn(4, 3, 8, 8)
    found = specreg.attainment(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)), x, operator=True)
    assert found["0"].operator_norm > 1.05 * found["0"].largest  # overlapping patches
    assert 0 < found["0"].operator_attained < 1
    assert found["1"].operator_norm == pytest.approx(found["1"].largest, rel=1e-5)
    assert found["1"].operator_attained == pytest.approx(found["1"].attained, rel=1e-5)
    assert specreg.attainment(nn.Linear(3, 3), torch.randn(2, 3), operator=True)[""].operator_norm is None
    strided = specreg.attainment(nn.Conv2d(3, 6, 4, stride=2, padding=1), torch.randn(4, 3, 9, 9), operator=True)[""]
    assert 0 < strided.operator_attained <= 1
    circular = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    circular.weight.data.copy_(torch.tensor([1.0, 0, -1]))  # |2 sin w|: 1 of the 4 frequencies is at its maximum
    assert specreg.attainment(circular, torch.randn(2, 1, 4), operator=True)[""].operator_norm == pytest.approx(2)


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv1d(1, 1, 3, stride=2, padding=1, padding_mode="circular", bias=False), 5),
        (nn.Conv1d(1, 1, 1, padding=1, padding_mode="circular", bias=False), 4),
        (nn.Conv1d(1, 1, 1, padding=1, padding_mode="replicate", bias=False), 1),
    ],
    ids=["a stride that does not divide the image", "outputs that repeat", "an edge that repeats"],
)
def test_padding_that_repeats_pixels_has_no_norm_by_fourier_transform(layer, side):
    measured = specreg.attainment(layer, torch.ones(1, 1, side), operator=True)[""]
    assert (measured.operator_norm, measured.operator_attained) == (None, None)
    assert 0 < measured.attained <= 1


def test_the_norm_under_circular_padding_with_a_stride_is_that_of_the_dense_map():
    layer = nn.Conv1d(1, 1, 4, stride=2, padding=1, padding_mode="circular", bias=False)
    true = torch.linalg.matrix_norm(layer(torch.eye(8)[:, None])[:, 0].detach(), 2).item()
    measured = specreg.attainment(layer, torch.ones(1, 1, 8), operator=True)[""]
    assert measured.operator_norm == pytest.approx(true, rel=1e-5)


def test_gradient_norms_of_samples_that_are_numbers():
    norms = specreg.gradient_norms(lambda x: 3 * x, torch.zeros(5), torch.ones(5))
    assert norms == {"real": 3.0, "generated": 3.0, "interpolated": 3.0}


def test_a_layer_with_a_forward_of_its_own_is_left_out(caplog):
    class Equalized(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight / 8, self.bias)

    module = nn.Sequential(Equalized(8, 8), nn.Linear(8, 2))
    assert list(specreg.attainment(module, torch.randn(4, 8))) == ["1"]
    assert "not measured: 0 (has a forward of its own)" in caplog.text
    specreg.spectral_norm(module[1])  # a parametrization is none
    assert list(specreg.attainment(module, torch.randn(4, 8))) == ["1"]


@pytest.mark.parametrize(
    "given", [{"score": torch.ones(1)}, [(torch.ones(1), torch.ones(1))], (torch.ones(1), None), []]
)
def test_gradient_norms_are_of_scores_alone(given):
    with pytest.raises(TypeError, match="give a function that returns its scores alone"):
        specreg.gradient_norms(lambda x: given, torch.randn(4, 2), torch.randn(4, 2))


def test_the_norm_of_a_complex_convolution_is_its_own():
    layer = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.complex64)
    layer.weight.data.fill_(3j)
    found = specreg.attainment(nn.Sequential(layer), torch.randn(4, 1, 8, dtype=torch.complex64), operator=True)["0"]
    assert found.operator_norm == pytest.approx(3)
    assert found.operator_attained == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("normalize", [specreg.spectral_norm, lambda m: nn.utils.spectral_norm(m[0])])
def test_modes_hooks_and_gradients_are_as_before(normalize):
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 6, 1))
    normalize(module)
    module[3].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert list(specreg.attainment(module, torch.randn(4, 3, 6, 6))) == ["0", "3"]
    assert [child.training for child in module] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(not child._forward_hooks for child in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_largest_value_is_that_of_the_weight_in_use():
    module = nn.Sequential(nn.Conv2d(3, 6, 3))
    module[0].weight.data.mul_(9)
    specreg.spectral_norm(module)
    assert specreg.attainment(module, torch.randn(4, 3, 6, 6))["0"].largest == pytest.approx(1, abs=0.3)


class Restless(nn.Module):
    """Moves what a reading must leave alone, in any mode: random numbers, buffers in place or by another tensor, and
    a vector among its parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("newest", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(0))
        self.vector = nn.Parameter(torch.ones(1, 3), requires_grad=False)

    def forward(self, x):
        self.calls += 1
        self.vector.data = self.vector.data / 2
        self.newest = x.detach().mean(0)
        self.seen.resize_(x.shape).copy_(x.detach())
        return self.layer(x + torch.randn_like(x) + random.random() + np.random.rand()).sum(1)


@pytest.mark.parametrize(
    "read",
    [
        specreg.attainment,
        lambda module, x: signal(module, x, x.flip(0)),
        lambda module, x: specreg.gradient_norms(module, x, x.flip(0)),
        lambda module, x: specreg.gradient_norms(lambda y: module.layer(y + torch.rand(1)), x, x.flip(0)),
        lambda module, x: specreg.gradient_norms(module, x, x.flip(0), generator=torch.Generator().manual_seed(5)),
    ],
)
def test_a_reading_moves_nothing_whatever_the_module_does(read):
    module, x = Restless(), torch.randn(4, 3)
    module.register_buffer("graph", torch.eye(3).to_sparse())  # cannot be compared
    module.register_buffer("nowhere", torch.ones(3, device="meta"), persistent=False)
    before, newest = copy.deepcopy(module.state_dict()), module.newest
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    read(module, x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]
    kept = {name: tensor for name, tensor in module.state_dict().items() if name != "graph"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    assert module.newest is newest
    assert module.layer.weight.grad is None
    assert module.training


def test_gradient_norms_are_the_same_in_inference_mode():
    module, x = nn.Linear(3, 1), torch.randn(4, 3)
    specreg.spectral_norm(module)
    expected = specreg.gradient_norms(module, x, x.flip(0))
    with torch.inference_mode():
        assert specreg.gradient_norms(module, x, x.flip(0)) == expected


def test_gradient_norms_of_a_scripted_module_are_those_of_the_module():
    module, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), torch.randn(4, 3)
    expected = specreg.gradient_norms(module, x, x.flip(0))
    assert specreg.gradient_norms(torch.jit.script(module), x, x.flip(0)) == pytest.approx(expected)


class Merging(nn.Linear):
    """Adds another weight to its own in eval mode, as an adapter of low rank does."""

    def __init__(self):
        super().__init__(3, 1)
        self.more = nn.Parameter(torch.ones(1, 3))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.more.data if mode else self.more.data
            self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight if self.merged else self.weight + self.more, self.bias)


def test_a_module_that_changes_its_weights_in_eval_mode_keeps_them():
    module, x = nn.Sequential(nn.Linear(3, 3), Merging()), torch.randn(128, 3)
    before = copy.deepcopy(module.state_dict())
    specreg.gradient_norms(module, x, x)
    specreg.static_compensation(module)
    specreg.Monitor(module, samples=lambda: (x, x)).step(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    module(x).sum().backward()
    assert module[1].more.grad is not None


def test_what_is_cached_for_a_training_has_its_gradients():
    module, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.randn(4, 3)
    specreg.spectral_norm(module)
    with parametrize.cached():
        weight = module[0].weight
        specreg.attainment(module, x)
        assert module[0].weight is weight
        module(x).sum().backward()
    assert module[0].parametrizations.weight.original.grad is not None


class Late(nn.Module):
    """Makes its buffer at the first forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.ready = nn.Linear(3, 1), False
        self.register_buffer("first", None)

    def forward(self, x):
        if self.first is None:
            self.first = x.detach()
        if not self.ready:
            self.register_buffer("scale", torch.ones(1))
            self.ready = True
        return self.layer(x) * self.scale


class Failing(nn.Linear):
    """Cannot be in eval mode."""

    def __setattr__(self, name, value):
        if name == "training" and not value:
            raise RuntimeError("no eval mode")
        super().__setattr__(name, value)


def test_what_a_reading_makes_or_breaks_off_leaves_a_module_that_trains():
    x = torch.randn(4, 3)
    module = Late()
    specreg.gradient_norms(module, x, x)
    assert module.first is None  # it is the training's to make
    module(x).sum().backward()
    module = nn.Sequential(nn.Linear(3, 3), Failing(3, 1))
    with pytest.raises(RuntimeError, match="no eval mode"):
        specreg.gradient_norms(module, x, x)
    assert all(child.training for child in module.modules())


def test_the_samples_of_a_discriminator_that_begins_in_place_are_as_before():
    module, x = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Linear(3, 1)), torch.randn(4, 3)
    before = x.clone()
    specreg.attainment(module, x)
    assert specreg.gradient_norms(module, x, x)["real"] > 0
    assert signal(module, x, x).gradient > 0
    assert torch.equal(x, before)


def test_what_has_no_gradient_or_no_score_for_each_sample_is_refused():
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="whole numbers have no gradient"):
        specreg.gradient_norms(nn.Linear(3, 1), x.to(torch.uint8), x.to(torch.uint8))
    with pytest.raises(TypeError, match="one number for all samples"):
        specreg.gradient_norms(lambda y: y.mean(), x, x)


def test_a_reading_leaves_a_pending_backward_pass_alone():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    specreg.spectral_norm(module)
    x = torch.randn(4, 3)
    scores = module(x).sum()
    specreg.attainment(module, x)
    specreg.gradient_norms(module, x, x)
    scores.backward()  # it would refuse buffers that were written to


class PowerIterated(nn.Module):
    """Normalizes its weight by a power iteration whose vector is a parameter, as SAGAN's code and torchgan do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.u = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x):
        v = F.normalize(self.weight.detach().T @ self.u, dim=0)
        self.u.data = F.normalize(self.weight.detach() @ v, dim=0)
        return x @ (self.weight / self.u.dot(self.weight @ v)).T


def test_a_power_iteration_among_the_parameters_stands_still_with_its_gradient():
    module, x = nn.Sequential(PowerIterated(), nn.ReLU(), nn.Linear(4, 1)), torch.randn(128, 3)
    alone = copy.deepcopy(module)
    monitor = specreg.Monitor(module, samples=lambda: (x, x))
    scores, expected = module(x).sum(), alone(x).sum()
    monitor.step(1)
    assert torch.equal(module[0].u, alone[0].u)
    scores.backward()
    expected.backward()
    assert torch.equal(module[0].weight.grad, alone[0].weight.grad)


def test_interpolated_samples_are_the_same_at_each_call_unless_a_generator_draws_others():
    real, generated = torch.randn(5, 6), torch.randn(5, 6)

    def norms(**options):
        return specreg.gradient_norms(lambda x: x.square().sum(1), real, generated, **options)["interpolated"]

    assert norms() == norms()
    source = torch.Generator().manual_seed(1)
    assert norms(generator=source) != norms(generator=source)


def test_an_input_that_is_given_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(input=x)

    module, x = Named(), torch.randn(4, 3)
    assert specreg.attainment(module, x)["layer"] == specreg.attainment(module.layer, x)[""]


class Conditional(nn.Module):
    """A projection discriminator, which begins in place."""

    def __init__(self):
        super().__init__()
        self.features, self.score, self.embed = nn.Linear(5, 9), nn.Linear(9, 1), nn.Embedding(3, 9)

    def forward(self, x, labels):
        features = F.relu_(self.features(x.mul_(2)))
        return self.score(features) + (self.embed(labels) * features).sum(1, keepdim=True)


def test_a_discriminator_takes_labels_beside_its_samples():
    module, x, labels = Conditional(), torch.randn(4, 5), torch.tensor([0, 2, 1, 2])
    before = x.clone(), labels.clone()
    found = specreg.attainment(module, x, labels)
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])
    assert list(found) == ["features", "score"]
    inputs = {"features": 2 * x, "score": F.relu(module.features(2 * x))}
    for name, value in found.items():
        weight = module.get_submodule(name).weight.detach()
        largest = torch.linalg.matrix_norm(weight, 2)
        attained = (inputs[name] @ weight.T).norm(dim=1) / (largest * inputs[name].norm(dim=1))
        assert value.attained == pytest.approx(attained.mean().item(), rel=1e-5)
        assert value.largest == pytest.approx(largest.item(), rel=1e-5)


def test_layers_that_did_not_run_are_left_out_and_shared_ones_are_averaged(caplog):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.embedding = nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(4, 3)

        def forward(self, x):
            return self.used(self.used(x))

    module, x = Twice(), torch.randn(4, 3)
    found = specreg.attainment(module, x)
    assert list(found) == ["used"]
    assert "not measured: idle (did not run by itself)" in caplog.text
    once = specreg.attainment(module.used, x)[""].attained
    again = specreg.attainment(module.used, module.used(x))[""].attained
    assert found["used"].attained == pytest.approx((once + again) / 2, rel=1e-5)


def test_gradient_norms_of_a_linear_function():
    module = nn.Linear(6, 1)
    real, generated = torch.randn(5, 6), torch.randn(5, 6)
    norms = specreg.gradient_norms(module, real, generated)
    assert norms == pytest.approx(dict.fromkeys(("real", "generated", "interpolated"), module.weight.norm().item()))
    several = specreg.gradient_norms(lambda x: [module(x), 2 * module(x)], real, generated)
    assert several["real"] == pytest.approx(3 * norms["real"])
    squared = specreg.gradient_norms(lambda x: 0.5 * x.square().sum(1), real, generated)
    assert squared["real"] == pytest.approx(real.norm(dim=1).mean().item())
    assert squared["generated"] == pytest.approx(generated.norm(dim=1).mean().item())
    with pytest.raises(ValueError, match="differ in shape"):
        specreg.gradient_norms(module, real, generated[:3])


def test_layers_whose_inputs_are_nan_are_there():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = specreg.attainment(module, torch.full((3, 2), math.nan))
    assert [math.isnan(one.attained) for one in found.values()] == [True, True]


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + 0.01 * torch.randn_like(weight)


def test_random_numbers_of_a_parametrization_are_put_back():
    module = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(module[0], "weight", Noisy())
    state = torch.get_rng_state()
    specreg.attainment(module, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), state)
