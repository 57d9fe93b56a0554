"""DCGAN's generator and discriminator for 28x28 and 32x32 images, as the Stacked MNIST benchmarks use them.

"D = 1/4 G" of the benchmarks (Metz et al. 2017; Lin et al. 2018) is a discriminator with a quarter of the generator's
channels.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.models.normalization import BatchNorm
from specreg.models.sides import of_side

# Sides of the feature maps, from the generator's first to the image; the discriminator's are the reverse.
SIDES = {28: (2, 4, 7, 14, 28), 32: (2, 4, 8, 16, 32)}
_MULTIPLIERS = (8, 4, 2, 1)
_KERNEL = 5


class Generator(nn.Module):
    """Map latent vectors to images in [-1, 1] by transposed convolutions of stride 2 with batch normalization.

    Args:
        channels: multiplied by 8, 4, 2 and 1 from the first feature map on (64 in the papers).

    Reference:
        Radford, Metz and Chintala 2016, section 3 and figure 1.
    """

    num_classes = 0

    def __init__(self, resolution: int, channels: int, *, latent: int = 100, image_channels: int = 3) -> None:
        super().__init__()
        self.latent = latent
        self.sides = of_side(SIDES, resolution, network="DCGAN")
        widths = [channels * multiplier for multiplier in _MULTIPLIERS]
        # A bias before batch normalization would be subtracted again.
        self.start = nn.Linear(latent, widths[0] * self.sides[0] ** 2, bias=False)
        # Without its padding of the output, 2n - 1 from n; with it 2n.
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(
                inputs, outputs, _KERNEL, stride=2, padding=2, output_padding=large - 2 * small + 1,
                bias=large == resolution,
            )
            for (inputs, outputs), (small, large) in zip(
                itertools.pairwise([*widths, image_channels]), itertools.pairwise(self.sides), strict=True
            )
        )  # fmt: skip
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        _initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (N, image_channels, side, side) for z (N, latent)."""
        hidden = self.start(z).unflatten(1, (-1, self.sides[0], self.sides[0]))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(F.relu(norm(hidden)))
        return torch.tanh(hidden)


class Discriminator(nn.Module):
    """Map images to one real number each by convolutions of stride 2 with LeakyReLU, slope 0.2.

    There is no batch normalization: it would undo the Lipschitz bound of spectral normalization.

    Args:
        channels: multiplied by 1, 2, 4 and 8 (64 in the papers).
    """

    def __init__(self, resolution: int, channels: int, *, image_channels: int = 3) -> None:
        super().__init__()
        side = of_side(SIDES, resolution, network="DCGAN")[0]
        widths = [image_channels, *(channels * multiplier for multiplier in reversed(_MULTIPLIERS))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, _KERNEL, stride=2, padding=2) for inputs, outputs in itertools.pairwise(widths)
        )
        self.score = nn.Linear(widths[-1] * side**2, 1)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N,) for images (N, image_channels, side, side)."""
        hidden = images
        for convolution in self.convolutions:
            hidden = F.leaky_relu(convolution(hidden), 0.2)
        return self.score(hidden.flatten(1))[:, 0]


def _initialize(network: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), the gains of batch normalization from N(1, 0.02²); biases zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
