"""ResNet generator and discriminator of SN-GAN for every resolution, without regularization.

Structure, initialization and channel counts for 32x32 and 128x128 images follow Miyato et al. 2018 (appendix B) and the
authors' code of Liu et al. 2019, for 64x64 Miyato's code and Mimicry (Lee and Town 2020). For 8x8 and 16x16 the 32x32
generator is shortened; for 48x48 it begins with 6x6, where SN-GAN's own networks halve and double their widths.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.models.normalization import BatchNorm
from specreg.models.sides import of_side


@dataclass(frozen=True)
class Stages:
    """The blocks of a resolution's networks."""

    bottom: int  # side of the generator's first feature map; each of its blocks doubles it
    generator: tuple[int, ...]  # channel multiplier at the start and after each block
    discriminator: tuple[tuple[int, bool], ...]  # channel multiplier and "halves the side" of each block


_PLAIN = ((1, True), (1, True), (1, False), (1, False))
STAGES = {
    8: Stages(4, (1, 1), _PLAIN),
    16: Stages(4, (1, 1, 1), _PLAIN),
    32: Stages(4, (1, 1, 1, 1), _PLAIN),
    48: Stages(6, (1, 1, 1, 1), _PLAIN),
    64: Stages(4, (16, 8, 4, 2, 1), ((1, True), (2, True), (4, True), (8, True), (16, True))),
    128: Stages(4, (16, 16, 8, 4, 2, 1), ((1, True), (2, True), (4, True), (8, True), (16, True), (16, False))),
}


class Generator(nn.Module):
    """Map latent vectors to images in [-1, 1].

    Args:
        resolution: a key of ``STAGES``.
        channels: multiplied by the stage's multiplier (256 for 32x32 in the paper).
        num_classes: 0, or the number of classes for class-conditional batch normalization.
    """

    def __init__(
        self, resolution: int, channels: int, *, latent: int = 128, image_channels: int = 3, num_classes: int = 0
    ) -> None:
        super().__init__()
        stages = of_side(STAGES, resolution, network="network")
        widths = [channels * multiplier for multiplier in stages.generator]
        self.latent = latent
        self.num_classes = num_classes
        self.start = nn.Linear(latent, widths[0] * stages.bottom**2)
        self.bottom = stages.bottom
        self.blocks = nn.ModuleList(
            _GeneratorBlock(inputs, outputs, num_classes) for inputs, outputs in itertools.pairwise(widths)
        )
        self.norm = BatchNorm(widths[-1])
        self.to_image = nn.Conv2d(widths[-1], image_channels, 3, padding=1)
        _glorot(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images (N, image_channels, side, side) for z (N, latent) and, if conditional, labels (N,)."""
        hidden = self.start(z).unflatten(1, (-1, self.bottom, self.bottom))
        for block in self.blocks:
            hidden = block(hidden, labels)
        return torch.tanh(self.to_image(F.relu(self.norm(hidden))))


class Discriminator(nn.Module):
    """Map images to one real number each; class-conditional by projection (Miyato and Koyama 2018).

    Args:
        resolution: a key of ``STAGES``.
        channels: the "ch" of the paper's settings (128 for 32x32 in SN-GAN).
        num_classes: 0, or the number of classes.
    """

    def __init__(self, resolution: int, channels: int, *, image_channels: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        blocks: list[_DiscriminatorBlock] = []
        inputs = image_channels
        for multiplier, halves in of_side(STAGES, resolution, network="network").discriminator:
            outputs = channels * multiplier
            blocks.append(_DiscriminatorBlock(inputs, outputs, halves=halves, first=not blocks))
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.score = nn.Linear(inputs, 1, bias=False)
        self.embedding = nn.Embedding(num_classes, inputs) if num_classes else None
        _glorot(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return scores (N,) for images (N, image_channels, side, side) and, if conditional, labels (N,)."""
        hidden = images
        for block in self.blocks:
            hidden = block(hidden)
        features = F.relu(hidden).sum((2, 3))
        score: Tensor = self.score(features)[:, 0]
        if self.embedding is not None:
            score = score + (self.embedding(labels) * features).sum(1)
        return score


class _GeneratorBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, num_classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor, labels: Tensor | None) -> Tensor:
        residual = _double(F.relu(self.norm1(hidden, labels)))
        residual = self.conv2(F.relu(self.norm2(self.conv1(residual), labels)))
        # A 1x1 convolution and nearest-neighbour doubling commute: on the small side it costs a quarter.
        return residual + _double(self.shortcut(hidden))


class _DiscriminatorBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, halves: bool, first: bool) -> None:
        super().__init__()
        middle = outputs if first else inputs
        self.conv1 = nn.Conv2d(inputs, middle, 3, padding=1)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if first or halves or inputs != outputs else None
        self.halves = halves
        self.first = first

    def forward(self, hidden: Tensor) -> Tensor:
        # The first block sees pixels: an activation there would throw away half of them.
        residual = self.conv1(hidden if self.first else F.relu(hidden))
        residual = self.conv2(F.relu(residual))
        # A 1x1 convolution and average pooling commute, so both are pooled before the shortcut's product.
        if self.halves:
            residual, hidden = F.avg_pool2d(residual, 2), F.avg_pool2d(hidden, 2)
        return residual + (hidden if self.shortcut is None else self.shortcut(hidden))


class _ClassBatchNorm(nn.Module):
    """Batch normalization with one gain and bias for each class (de Vries et al. 2017)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, affine=False)
        self.gain = nn.Parameter(torch.ones(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        gain, bias = F.embedding(labels, self.gain), F.embedding(labels, self.bias)
        return torch.addcmul(bias[:, :, None, None], self.norm(hidden), gain[:, :, None, None])


def _norm(channels: int, num_classes: int) -> nn.Module:
    return _ClassBatchNorm(channels, num_classes) if num_classes else BatchNorm(channels)


def _double(hidden: Tensor) -> Tensor:
    return F.interpolate(hidden, scale_factor=2.0, mode="nearest")


def _glorot(network: nn.Module) -> None:
    """Glorot-uniform weights, gain sqrt(2) in the residual 3x3 convolutions, 1 elsewhere; biases zero."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if name.endswith(("conv1", "conv2")) else 1.0)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
