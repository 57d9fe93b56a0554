"""How the discriminator scores training, held-out and generated images."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from specreg.data.arrays import ImageArrays
from specreg.experiments.config import Settings
from specreg.experiments.outputs import OutputProbe


class Brightness(nn.Module):
    """A discriminator whose score is the mean pixel."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        assert not self.training
        return images.mean((1, 2, 3))


class Uniform(nn.Module):
    """A generator of images of one brightness each, uniform in [-1, -0.5]."""

    latent, num_classes = 1, 0

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z):
        level = torch.special.ndtr(z) / 2 - 1
        return level[:, :, None, None].expand(-1, 3, 8, 8)


def images(low, high):
    levels = torch.arange(low, high, dtype=torch.uint8)
    return ImageArrays("levels", levels[:, None, None, None].repeat(1, 3, 8, 8), torch.zeros(len(levels)).long(), ("",))


def measure(training, held_out):
    state = SimpleNamespace(discriminator=Brightness().train(), sampler=Uniform().train())
    return OutputProbe(training, held_out, Settings()).measure(state), state


def test_distributions_of_a_known_discriminator():
    measured, state = measure(images(128, 256), images(64, 192))
    quantiles = torch.linspace(0, 1, 33)
    assert measured["training"] == pytest.approx((0.0 + quantiles).tolist(), abs=0.03)
    assert measured["held_out"] == pytest.approx((-0.5 + quantiles).tolist(), abs=0.03)
    assert measured["generated"] == pytest.approx((-1 + quantiles / 2).tolist(), abs=0.03)
    # X uniform in [0, 1], Y in [-0.5, 0.5]: P(X > Y) = 1 - (1/2)^2 / 2.
    assert measured["overfitting"] == pytest.approx(0.875, abs=0.015)
    assert measured["separation"] == 1
    assert state.discriminator.training
    assert state.sampler.training


def test_alike_images_are_scored_alike_and_ties_count_half():
    measured, _ = measure(images(0, 256), images(0, 256))
    assert measured["overfitting"] == pytest.approx(0.5, abs=0.02)
    state = SimpleNamespace(discriminator=Brightness(), sampler=Uniform())
    with torch.no_grad():
        state.discriminator.forward = lambda images: torch.zeros(len(images))
    assert OutputProbe(images(0, 9), images(9, 20), Settings()).measure(state)["overfitting"] == 0.5
