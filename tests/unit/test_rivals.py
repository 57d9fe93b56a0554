"""Relativistic losses, R1 and R2 in the two steps, and the methods of the lab beside spectral regularization."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import specreg
from specreg.cli import _warn_of_idle
from specreg.data.digits import StackedDigits
from specreg.experiments.config import DataConfig, RunConfig, Settings
from specreg.experiments.methods import DynamicOptions, MethodOptions, PenaltyOptions
from specreg.experiments.run import build_state, warn_about
from specreg.experiments.sources.images import Images
from specreg.losses import LOSSES, squared_slopes
from specreg.training.loop import TrainingConfig, train
from specreg.training.steps import discriminator_step, generator_step
from trainings import SMALL


class Quadratic(nn.Module):
    """D(x) = a·|x|²/2 + b·x, whose slope is a·x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(12, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        return self.a / 2 * x.square().sum(1) + x @ self.b


class Shift(nn.Module):
    """G(z) = z + c."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.randn(3, 2, 2, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, 3, 2, 2) + self.c


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_relativistic_losses_have_their_closed_forms():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    loss = LOSSES["relativistic-r1r2"]
    assert loss.discriminator(real, fake).item() == pytest.approx((softplus(-5) + softplus(1)) / 2)
    assert loss.generator(real, fake).item() == pytest.approx((softplus(5) + softplus(-1)) / 2)
    shifted = loss.discriminator(real + 7, fake + 7)
    assert shifted.item() == pytest.approx(loss.discriminator(real, fake).item())  # only differences count


def test_squared_slopes_are_those_of_each_image():
    network, images = Quadratic(), torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = (network.a * images.flatten(1) + network.b).square().sum(1)
    torch.testing.assert_close(squared_slopes(network(images), images), expected)


@pytest.mark.parametrize("name", ["relativistic-r1r2", "non-saturating-r1"])
def test_the_discriminators_step_is_the_gradient_of_the_written_loss(name):
    network, generator, gamma, weight = Quadratic(), Shift(), 0.3, 0.1
    before = {key: p.detach().clone().requires_grad_() for key, p in network.named_parameters()}
    real, z = (torch.randn(4, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    returned = discriminator_step(
        generator, network, torch.optim.SGD(network.parameters(), 1.0), LOSSES[name], [(real, None)], [(z, None)],
        random=torch.Generator(), gamma=gamma, penalty=lambda: weight * network.a**2,
    )  # fmt: skip
    a, b = before["a"], before["b"]
    x, y = real.flatten(1), generator(z).detach().flatten(1)
    on_real, on_fake = ((a / 2 * each.square().sum(1) + each @ b) for each in (x, y))
    r1, r2 = (((a * each + b).square().sum(1)).mean() for each in (x, y))
    if name == "relativistic-r1r2":
        loss = torch.log1p(torch.exp(on_fake - on_real)).mean() + gamma / 2 * (r1 + r2)
    else:
        loss = (torch.log1p(torch.exp(-on_real)) + torch.log1p(torch.exp(on_fake))).mean() + gamma / 2 * r1
    loss = loss + weight * a**2
    assert returned.item() == pytest.approx(loss.item(), rel=1e-6)
    gradients = torch.autograd.grad(loss, [a, b])
    for key, gradient in zip(("a", "b"), gradients, strict=True):
        torch.testing.assert_close(before[key].detach() - getattr(network, key).detach(), gradient)
    assert generator.c.grad is None


def test_the_generators_step_is_judged_beside_real_images():
    network, generator = Quadratic(), Shift()
    real, z = (torch.randn(4, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    c = generator.c.detach().clone().requires_grad_()
    fake = network((z + c).reshape(4, 3, 2, 2))
    (gradient,) = torch.autograd.grad(torch.log1p(torch.exp(network(real) - fake)).mean(), c)
    generator_step(
        generator, network, torch.optim.SGD(generator.parameters(), 1.0), LOSSES["relativistic-r1r2"], [(z, None)],
        real=[(real, None)],
    )  # fmt: skip
    torch.testing.assert_close(c.detach() - generator.c.detach(), gradient)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("loss", "per_step"), [("non-saturating-r1", 2 * 3), ("relativistic-r1r2", 2 * 3 + 2 * 2)])
def test_real_images_are_drawn_for_the_generator_only_where_it_needs_them(loss, per_step, conditional):
    training = TrainingConfig(steps=2, batch_size=4, d_steps=3, accumulate=2, generator_batch=2, loss=loss)
    settings = replace(SMALL, training=training, data=DataConfig(conditional=conditional))
    source = Images(StackedDigits())
    state = build_state(RunConfig("none", 0, settings), source)
    drawn = []
    state.dataset = SimpleNamespace(draw=lambda size, random: drawn.append(size) or source.dataset.draw(size, random))
    train(state, training)
    assert state.step == training.steps
    assert sum(drawn) == 2 * per_step * training.batch_size


def test_methods_attach_what_they_say():
    source = Images(StackedDigits())
    networks = {}
    for method in ("sn", "orthogonal", "d-optimal", "oni", "none", "spectral-penalty"):
        settings = replace(SMALL, data=DataConfig(conditional=method == "oni"))
        state = build_state(RunConfig(method, 0, settings), source)
        assert state.compensator is None
        networks[method] = state
    kinds = {
        name: type(child.parametrizations.weight[0]).__name__
        for name, child in networks["oni"].discriminator.named_modules()
        if nn.utils.parametrize.is_parametrized(child, "weight")
    }
    assert kinds.pop("embedding") == "_SpectralNormOfAnyWeight"
    assert len(kinds) == 11
    assert set(kinds.values()) == {"Orthogonalization"}
    for method in ("none", "spectral-penalty"):
        assert not any(map(nn.utils.parametrize.is_parametrized, networks[method].discriminator.modules()))
    plain = networks["spectral-penalty"]
    assert plain.penalty().item() == pytest.approx(1e-4 * specreg.spectral_penalty(plain.discriminator).item())
    for method, weight, penalty in (
        ("orthogonal", 1e-4, specreg.orthogonality_penalty), ("d-optimal", 1e-4, specreg.d_optimal_penalty),
    ):  # fmt: skip
        discriminator = networks[method].discriminator
        assert specreg.spectra(discriminator)["score"].equal(specreg.spectra(networks["sn"].discriminator)["score"])
        expected = weight * penalty(discriminator).item()
        assert networks[method].penalty().item() == pytest.approx(expected)
    assert networks["sn"].penalty is None


def test_the_penaltys_weight_can_be_chosen():
    settings = replace(SMALL, methods=MethodOptions(orthogonal=PenaltyOptions(weight=3.0)))
    state = build_state(RunConfig("orthogonal", 0, settings), Images(StackedDigits()))
    expected = 3 * specreg.orthogonality_penalty(state.discriminator).item()
    assert state.penalty().item() == pytest.approx(expected)


def test_a_record_that_comes_too_late_is_warned_about(caplog):
    options = MethodOptions(dynamic=DynamicOptions(start=2000))
    warn_about(RunConfig("dynamic", 0, Settings(methods=options, training=TrainingConfig(steps=669))))
    assert caplog.text == ""
    warn_about(RunConfig("dynamic", 0, Settings(methods=options, training=TrainingConfig(steps=668))))
    assert "it equals sn; lower --dynamic.start" in caplog.text


def test_plain_weights_with_a_loss_that_bounds_nothing_are_warned_about(caplog):
    warn_about(RunConfig("none"))
    assert "nothing bounds the discriminator's slope with --loss hinge" in caplog.text
    caplog.clear()
    warn_about(RunConfig("none", 0, Settings(training=TrainingConfig(loss="relativistic-r1r2", gamma=10))))
    assert caplog.text == ""
    warn_about(RunConfig("sn", 0, Settings(training=TrainingConfig(gamma=10))))
    assert "gamma changes nothing here: the loss hinge has neither R1 nor R2" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "methods", "idle"),
    [
        (["--static.keep", "0.3", "--steps", "5"], ["sn"], "--static.keep changes nothing here"),
        (["--d-optimal.weight=1"], ["static", "dynamic"], "d-optimal, and trained is static, dynamic"),
        (["--guard.keep=0.3", "--detector.far", "0.4", "--method", "guard"], ["guard"], ""),
        (["--static.every", "3"], ["guard"], "--static.every changes nothing here"),
        (["--static.every", "3", "--guard.every=3"], ["guard", "static"], ""),
        (["--d_optimal.weight", "1"], ["sn"], "--d_optimal.weight changes nothing here"),
    ],
)
def test_an_option_of_a_method_that_is_not_trained_is_warned_about(arguments, methods, idle, caplog):
    _warn_of_idle(arguments, methods)
    assert len(caplog.records) == bool(idle)
    assert idle in caplog.text
