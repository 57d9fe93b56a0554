"""The two steps of adversarial training: the scientific core of the lab, to be read beside the paper.

Both take what they need as arguments, update one network and return its loss.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from specreg.losses import Loss, gradient_penalty, squared_slopes

# A micro-batch: images or latent vectors, and labels if conditional.
Batch = tuple[Tensor, Tensor | None]


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; the update was not made."""


def discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    real: Sequence[Batch],
    latent: Sequence[Batch],
    *,
    accelerator: Accelerator,
    random: torch.Generator,
    gamma: float = 1.0,
    penalty: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Update the discriminator once.

    Args:
        real: micro-batches of images (N, C, H, W) and labels; their gradients are averaged.
        latent: as many micro-batches of z (N, latent) and labels.
        random: source of the gradient penalty's interpolation.
        gamma: R1 and R2, where the loss has them, are weighted by gamma / 2.
        penalty: of the discriminator's weights, added to its loss.

    Returns:
        The mean loss, a scalar.

    Raises:
        NonFiniteError: before the update.
    """
    total = torch.zeros((), device=real[0][0].device)
    for (images, labels), (z, fake_labels) in zip(real, latent, strict=True):
        with torch.no_grad():
            fake = _call(generator, z, fake_labels)
        inputs, both = _together((images, labels), (fake, fake_labels))
        inputs.requires_grad_(loss.r1 or loss.r2)
        scores = _call(discriminator, inputs, both)
        sizes = [len(images), len(fake)]
        objective = loss.discriminator(*torch.split(scores, sizes))
        if loss.gradient_penalty:
            slope = gradient_penalty(discriminator, images, fake, labels, generator=random)
            objective = objective + loss.gradient_penalty * slope
        if loss.r1 or loss.r2:
            of_real, of_fake = torch.split(squared_slopes(scores, inputs), sizes)
            objective = objective + gamma / 2 * (loss.r1 * of_real.mean() + loss.r2 * of_fake.mean())
        if penalty is not None:  # after the scores: power iteration has seen this step's weights
            objective = objective + penalty()
        accelerator.backward(objective / len(real))
        total += objective.detach() / len(real)
    _update(optimizer, discriminator, total, "discriminator")
    return total


def generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    latent: Sequence[Batch],
    *,
    accelerator: Accelerator,
    real: Sequence[Batch] = (),
) -> Tensor:
    """Update the generator once; arguments, return and errors as :func:`discriminator_step`.

    Args:
        real: as many micro-batches of real images as of z, and as large, if the loss is relativistic; else none.
    """
    total = torch.zeros((), device=latent[0][0].device)
    frozen = list(discriminator.parameters())
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for index, (z, labels) in enumerate(latent):
            fake = _call(generator, z, labels)
            if loss.relativistic:
                scores = _call(discriminator, *_together(real[index], (fake, labels)))
                objective = loss.generator(*torch.split(scores, [len(scores) - len(fake), len(fake)]))
            else:
                objective = loss.generator(_call(discriminator, fake, labels))
            accelerator.backward(objective / len(latent))
            total += objective.detach() / len(latent)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    _update(optimizer, generator, total, "generator")
    return total


def _together(real: Batch, fake: Batch) -> Batch:
    """Return real and generated images as one batch: one power iteration, and both see the same weights."""
    (images, labels), (generated, fake_labels) = real, fake
    both = None if labels is None or fake_labels is None else torch.cat([labels, fake_labels])
    return torch.cat([images, generated]), both


def _call(network: Callable[..., Tensor], inputs: Tensor, labels: Tensor | None) -> Tensor:
    return network(inputs) if labels is None else network(inputs, labels)


def _update(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor, which: str) -> None:
    """Apply the gradients, if they and the loss are finite, and clear them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norms = torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not bool(torch.isfinite(torch.stack([*norms, loss])).all()):
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"the {which}'s loss is {loss.item()}; the update was not made")
        name = next(n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
        raise NonFiniteError(f"the {which}'s gradient of {name} holds NaN or inf; the update was not made")
    optimizer.step()
    optimizer.zero_grad()
