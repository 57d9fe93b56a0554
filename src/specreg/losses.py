r"""Adversarial losses: pairs of objectives of discriminator and generator.

They are functions of score tensors D(x), (N,), averaged over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.names import LossName


@dataclass(frozen=True)
class Loss:
    """A pair of objectives.

    Attributes:
        discriminator: ``(real_scores, fake_scores) -> loss``.
        generator: ``(fake_scores) -> loss``; of a relativistic loss ``(real_scores, fake_scores) -> loss``.
        gradient_penalty: weight of :func:`gradient_penalty` in the discriminator's loss.
        relativistic: the generator's loss needs as many real images as generated ones.
        r1, r2: the discriminator's loss has the mean of :func:`squared_slopes` of real, and of generated images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[..., Tensor]
    gradient_penalty: float = 0.0
    relativistic: bool = False
    r1: bool = False
    r2: bool = False

    @property
    def differentiates_twice(self) -> bool:
        """Whether the discriminator's loss has a gradient penalty."""
        return bool(self.gradient_penalty or self.r1 or self.r2)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))) (Lim and Ye 2017; Miyato et al. 2018, equation 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean softplus(-D(x)) + mean softplus(D(G(z))) (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """Return mean softplus(-D(G(z))) (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean D(G(z)) - mean D(x) (Arjovsky et al. 2017, equation 2)."""
    return fake.mean() - real.mean()


def raise_scores(fake: Tensor) -> Tensor:
    """Return -mean D(G(z)), the generator's loss for hinge and Wasserstein."""
    return -fake.mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Return mean softplus(-(D(x) - D(G(z)))) over pairs of a real and a generated image.

    Pairs are formed in the order of the batch.

    Reference:
        Jolicoeur-Martineau 2019 (RGAN, called RpGAN since), with :math:`f(t) = -\operatorname{softplus}(-t)` as Huang
        et al. 2024 (R3GAN), equation 2.
    """
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean softplus(-(D(G(z)) - D(x))), the roles of :func:`relativistic_discriminator` exchanged."""
    return F.softplus(real - fake).mean()


def squared_slopes(scores: Tensor, images: Tensor) -> Tensor:
    r"""Return :math:`\|\nabla_x D(x)\|^2` of each image, (N,), to be differentiated further.

    :math:`\gamma / 2` times its mean over real images is the penalty R1, over generated images R2.

    Args:
        scores: D(x), (N,), each computed from its own image alone (without batch normalization).
        images: x, (N, C, H, W), requiring gradients.

    Reference:
        Mescheder et al. 2018, equations 9 (R1) and 10 (R2).
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def call(network: Callable[..., Tensor], inputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return what a network makes of inputs, and of their classes if it is conditional."""
    return network(inputs) if labels is None else network(inputs, labels)


def gradient_penalty(
    discriminator: Callable[..., Tensor], real: Tensor, fake: Tensor, labels: Tensor | None = None, *, weights: Tensor
) -> Tensor:
    r"""Return the mean of :math:`(\|\nabla D(\hat x)\| - 1)^2`, :math:`\hat x` uniform between real and fake pairs.

    Args:
        discriminator: images and labels in, scores (N,) out.
        real, fake: images (N, C, H, W) or points (N, d).
        labels: classes (N,) of the real ones, if conditional; the mixed images are judged as these, too.
        weights: positions between the pairs, (N, 1, ...), uniform in [0, 1].

    Reference:
        Gulrajani et al. 2017, equation 3.
    """
    between = torch.lerp(real, fake.detach(), weights.to(real)).requires_grad_()
    (gradient,) = torch.autograd.grad(call(discriminator, between, labels).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


LOSSES: dict[LossName, Loss] = {
    "hinge": Loss(hinge_discriminator, raise_scores),
    "non-saturating": Loss(non_saturating_discriminator, non_saturating_generator),
    "wasserstein-gp": Loss(wasserstein_discriminator, raise_scores, gradient_penalty=10.0),
    "non-saturating-r1": Loss(non_saturating_discriminator, non_saturating_generator, r1=True),
    "relativistic-r1r2": Loss(relativistic_discriminator, relativistic_generator, relativistic=True, r1=True, r2=True),
}
