"""Fully connected generator and discriminator for points in the plane."""

import itertools

from torch import Tensor, nn

WIDTH = 16  # a hidden layer's width for each channel: the defaults of the lab then are 512 and 128 wide
_HIDDEN_GENERATOR, _HIDDEN_DISCRIMINATOR = 2, 3


class Generator(nn.Module):
    """Map latent vectors to points: two hidden layers with ReLU, a linear output.

    PacGAN's for mixtures (Lin et al. 2018) has four of 400 with batch normalization.
    """

    num_classes = 0

    def __init__(self, channels: int, *, latent: int = 2) -> None:
        super().__init__()
        self.latent = latent
        self.layers = _layers([latent, *[WIDTH * channels] * _HIDDEN_GENERATOR, 2], nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:
        """Return points (N, 2) for z (N, latent)."""
        return self.layers(z)


class Discriminator(nn.Module):
    """Map points to one real number each: three hidden layers with LeakyReLU, slope 0.2.

    PacGAN's has maxout layers, the maximum over several weight matrices; spectral normalization is of one matrix.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = _layers([2, *[WIDTH * channels] * _HIDDEN_DISCRIMINATOR, 1], nn.LeakyReLU(0.2))

    def forward(self, points: Tensor) -> Tensor:
        """Return scores (N,) for points (N, 2)."""
        return self.layers(points)[:, 0]


def _layers(widths: list[int], activation: nn.Module) -> nn.Sequential:
    """Return linear layers with activations between; Glorot-uniform weights, biases zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation]
    return nn.Sequential(*layers[:-1])
