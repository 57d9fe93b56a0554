r"""Adversarial losses: what the discriminator and the generator minimize, given the scores D(x).

Each loss is a pair of functions of score tensors (N,), averaged over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class Loss:
    """A pair of objectives.

    Attributes:
        discriminator: ``(real_scores, fake_scores) -> loss``.
        generator: ``(fake_scores) -> loss``.
        gradient_penalty: weight of :func:`gradient_penalty` in the discriminator's loss.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    gradient_penalty: float = 0.0


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


def gradient_penalty(
    discriminator: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the mean of :math:`(\|\nabla D(\hat x)\| - 1)^2`, :math:`\hat x` uniform between real and fake pairs.

    Args:
        discriminator: images and labels in, scores (N,) out.
        real, fake: images (N, C, H, W).
        labels: classes (N,) of both, if conditional.
        generator: source of the interpolation weights.

    Reference:
        Gulrajani et al. 2017, equation 3.
    """
    weights = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
    between = torch.lerp(real, fake.detach(), weights).requires_grad_()
    scores = discriminator(between, labels) if labels is not None else discriminator(between)
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


LOSSES = {
    "hinge": Loss(hinge_discriminator, raise_scores),
    "non-saturating": Loss(non_saturating_discriminator, non_saturating_generator),
    "wasserstein-gp": Loss(wasserstein_discriminator, raise_scores, gradient_penalty=10.0),
}
