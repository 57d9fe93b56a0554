"""DCGAN's generator and discriminator for 28x28 and 32x32 images, in the two sizes of the Stacked MNIST benchmarks.

"D = 1/4 G" of the benchmarks (Metz et al. 2017; Lin et al. 2018) is the small one, with a quarter of the generator's
channels in the discriminator.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.models.normalization import BatchNorm
from specreg.models.sides import of_side

_MULTIPLIERS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Size:
    """What the two sizes of the networks differ in, but for their channels."""

    name: str
    sides: Mapping[int, tuple[int, ...]]  # of feature maps, from the generator's first to the image; D's in reverse
    kernel: int
    slope: float  # of the discriminator's LeakyReLU


DCGAN = Size("DCGAN", {28: (2, 4, 7, 14, 28), 32: (2, 4, 8, 16, 32)}, kernel=5, slope=0.2)
# Widths 64, 32, 16 and 8 in the papers' generators, 4, 8, 16 and 2, 4, 8 in discriminators of a half and a quarter.
UNROLLED = Size("unrolled DCGAN", {28: (4, 7, 14, 28)}, kernel=3, slope=0.3)


class Generator(nn.Module):
    """Map latent vectors to images in [-1, 1] by transposed convolutions of stride 2 with batch normalization.

    Args:
        channels: multiplied by 8, 4, 2 and 1 from the first feature map on (64 in the papers, 8 in the small size).
        size: ``UNROLLED`` ends in a convolution of stride 1.

    Reference:
        Radford, Metz and Chintala 2016, section 3 and figure 1; Lin et al. 2018 for the small size, by their code.
    """

    num_classes = 0

    def __init__(
        self, resolution: int, channels: int, *, latent: int = 100, image_channels: int = 3, size: Size = DCGAN
    ) -> None:
        super().__init__()
        self.latent = latent
        self.sides = of_side(size.sides, resolution, network=size.name)
        widths = [channels * multiplier for multiplier in _MULTIPLIERS]
        pairs = list(itertools.pairwise([*widths, image_channels]))
        kernel, padding = size.kernel, size.kernel // 2
        # A bias before batch normalization would be subtracted again.
        self.start = nn.Linear(latent, widths[0] * self.sides[0] ** 2, bias=False)
        # Without its padding of the output, 2n - 1 from n; with it 2n.
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(
                *pair, kernel, stride=2, padding=padding, output_padding=large - 2 * small + 1, bias=pair == pairs[-1]
            )
            for pair, (small, large) in zip(pairs, itertools.pairwise(self.sides), strict=False)
        )
        if len(self.convolutions) < len(pairs):
            self.convolutions.append(nn.Conv2d(*pairs[-1], kernel, padding=padding))
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        _initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (N, image_channels, side, side) for z (N, latent)."""
        hidden = self.start(z).unflatten(1, (-1, self.sides[0], self.sides[0]))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(F.relu(norm(hidden)))
        return torch.tanh(hidden)


class Discriminator(nn.Module):
    """Map images to one real number each by convolutions of stride 2 with LeakyReLU.

    There is no batch normalization: it would undo the Lipschitz bound of spectral normalization.

    Args:
        channels: multiplied by 1, 2, 4 and 8 (64 in the papers).
        size: ``UNROLLED`` has a slope of 0.3 and no fourth convolution.
    """

    def __init__(self, resolution: int, channels: int, *, image_channels: int = 3, size: Size = DCGAN) -> None:
        super().__init__()
        sides = of_side(size.sides, resolution, network=size.name)
        multipliers = itertools.islice(reversed(_MULTIPLIERS), len(sides) - 1)
        widths = [image_channels, *(channels * multiplier for multiplier in multipliers)]
        self.slope = size.slope
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, size.kernel, stride=2, padding=size.kernel // 2)
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.score = nn.Linear(widths[-1] * sides[0] ** 2, 1)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N,) for images (N, image_channels, side, side)."""
        hidden = images
        for convolution in self.convolutions:
            hidden = F.leaky_relu(convolution(hidden), self.slope)
        return self.score(hidden.flatten(1))[:, 0]


def _initialize(network: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), the gains of batch normalization from N(1, 0.02²); biases zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
