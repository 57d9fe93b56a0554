"""The two steps of adversarial training: the scientific core of the lab, to be read beside the paper.

Both take what they need as arguments, update one network and return its loss. With several processes each has its
share of every micro-batch, and the gradients are averaged in one message before the update. (Not by torch's
DistributedDataParallel: its hooks know neither the second derivatives of gradient penalties nor two networks in turns.)
"""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specreg.losses import Loss, call, gradient_penalty, squared_slopes
from specreg.processes import ALONE, Processes

# A micro-batch: images or latent vectors, and labels if conditional.
Batch = tuple[Tensor, Tensor | None]
# The mean loss, and what passed through the networks, by name; the gradients are in the parameters.
Losses = tuple[Tensor, list[tuple[str, Tensor]]]
Gradients = Callable[[Sequence[Batch], Sequence[Batch]], Losses]
Run = Callable[[Gradients, Sequence[Batch], Sequence[Batch]], Losses]

_NOT_MADE = "the update was not made"


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite, and the update was not made; or a weight is, after it."""


@contextlib.contextmanager
def diverging(where: str = "") -> Iterator[None]:
    """Say of NaN, inf or a failed decomposition that the training diverged: it is no bad input."""
    try:
        yield
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise NonFiniteError(f"{where}{error}") from error


def draw_latent(generator: Any, size: int, random: torch.Generator, processes: Processes = ALONE) -> Batch:
    """Draw z ~ N(0, I), (size, latent), and labels if the generator is conditional; of that, this process's share."""
    device = next(generator.parameters()).device
    z = processes.share(torch.randn(size, generator.latent, generator=random).to(device))
    if not generator.num_classes:
        return z, None
    return z, processes.share(torch.randint(generator.num_classes, (size,), generator=random).to(device))


def discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    real: Sequence[Batch],
    latent: Sequence[Batch],
    *,
    random: torch.Generator,
    gamma: float = 1.0,
    penalty: Callable[[], Tensor] | None = None,
    processes: Processes = ALONE,
    run: Run = operator.call,
) -> Tensor:
    """Update the discriminator once.

    Args:
        real: micro-batches of images (N, C, H, W) and labels; their gradients are averaged.
        latent: as many micro-batches of z (N, latent) and labels.
        random: source of the gradient penalty's interpolation.
        gamma: R1 and R2, where the loss has them, are weighted by gamma / 2.
        penalty: of the discriminator's weights, added to its loss.
        run: calls what computes the gradients, see :class:`specreg.training.replay.Replay`.
    """

    def gradients(real: Sequence[Batch], latent: Sequence[Batch]) -> Losses:
        total = torch.zeros((), device=real[0][0].device)
        passed: list[tuple[str, Tensor]] = []  # through the networks, in their order
        for (images, labels), (z, fake_labels) in zip(real, latent, strict=True):
            with torch.no_grad():
                fake = call(generator, z, fake_labels)
            inputs, classes = _together((images, labels), (fake, fake_labels))
            inputs.requires_grad_(loss.r1 or loss.r2)
            scores = call(discriminator, inputs, classes)
            sizes = [len(images), len(fake)]
            objective = loss.discriminator(*torch.split(scores, sizes))
            if loss.gradient_penalty:
                mixing = torch.rand(len(images) * processes.count, *[1] * (images.ndim - 1), generator=random)
                slope = gradient_penalty(discriminator, images, fake, labels, weights=processes.share(mixing))
                objective = objective + loss.gradient_penalty * slope
            if loss.r1 or loss.r2:
                of_real, of_fake = torch.split(squared_slopes(scores, inputs), sizes)
                objective = objective + gamma / 2 * (loss.r1 * of_real.mean() + loss.r2 * of_fake.mean())
            if penalty is not None:  # after the scores: power iteration has seen this step's weights
                objective = objective + penalty()
            torch.autograd.backward(objective / len(real))
            total += objective.detach() / len(real)
            passed += [("the real images", images), ("the generated images", fake), ("the scores", scores.detach())]
        return total, passed

    total, passed = run(gradients, real, latent)
    return _update(optimizer, discriminator, total, "discriminator", _flow(generator, discriminator, passed), processes)


def generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    latent: Sequence[Batch],
    *,
    real: Sequence[Batch] = (),
    processes: Processes = ALONE,
    run: Run = operator.call,
) -> Tensor:
    """Update the generator once, see :func:`discriminator_step`.

    If the loss is relativistic ``real`` are as many micro-batches of real images as of z, and as large; else none.
    """

    def gradients(real: Sequence[Batch], latent: Sequence[Batch]) -> Losses:
        total = torch.zeros((), device=latent[0][0].device)
        passed: list[tuple[str, Tensor]] = []
        for index, (z, labels) in enumerate(latent):
            fake = call(generator, z, labels)
            if loss.relativistic:
                scores = call(discriminator, *_together(real[index], (fake, labels)))
                objective = loss.generator(*torch.split(scores, [len(scores) - len(fake), len(fake)]))
                passed.append(("the real images", real[index][0]))
            else:
                scores = call(discriminator, fake, labels)
                objective = loss.generator(scores)
            torch.autograd.backward(objective / len(latent))
            total += objective.detach() / len(latent)
            passed += [("the generated images", fake.detach()), ("the scores", scores.detach())]
        return total, passed

    discriminator.requires_grad_(False)
    try:
        total, passed = run(gradients, real, latent)
    finally:
        discriminator.requires_grad_(True)
    return _update(optimizer, generator, total, "generator", _flow(generator, discriminator, passed), processes)


def first_bad(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or inf, or None."""
    return next((name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())), None)


def named_tensors(network: nn.Module, which: str) -> Iterator[tuple[str, Tensor]]:
    """Yield a network's floating-point parameters and buffers, as a message names them."""
    for kind, tensors in (("parameter", network.named_parameters()), ("buffer", network.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point():
                yield f"the {which}'s {kind} {name}", tensor


def _together(real: Batch, fake: Batch) -> Batch:
    """Return real and generated images as one batch: one power iteration, and both see the same weights."""
    (images, labels), (generated, fake_labels) = real, fake
    classes = None if labels is None or fake_labels is None else torch.cat([labels, fake_labels])
    return torch.cat([images, generated]), classes


def _flow(
    generator: nn.Module, discriminator: nn.Module, passed: Sequence[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield what a loss is made of, each after what it is made of itself: the first bad one is the cause."""
    for kind, network in (
        ("the real images", named_tensors(generator, "generator")),
        ("the generated images", named_tensors(discriminator, "discriminator")),
        ("the scores", ()),
    ):
        yield from (tensor for tensor in passed if tensor[0] == kind)
        yield from network


def _update(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    loss: Tensor,
    which: str,
    flow: Iterable[tuple[str, Tensor]],
    processes: Processes,
) -> Tensor:
    """Apply the gradients' mean over the processes, if it and that of the loss are finite; clear them, return the loss.

    What is looked at is the same in every process, and so is what follows; ``flow`` only if the loss is not finite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    loss = processes.mean(loss, gradients)
    norms = torch._foreach_norm(gradients)
    if not bool(torch.isfinite(torch.stack([*norms, loss])).all()):
        if not bool(torch.isfinite(loss)):
            place = " in this process" if processes.count > 1 else ""
            cause = (
                f"NaN or inf first in {name}" if (name := first_bad(flow)) else f"everything before it is finite{place}"
            )
            raise NonFiniteError(f"the {which}'s loss is {loss.item()} ({cause}); {_NOT_MADE}")
        named = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
        # Squares of finite entries may overflow, and Adam makes squares.
        name = first_bad(named) or first_bad((name, gradient.norm()) for name, gradient in named)
        raise NonFiniteError(f"the {which}'s gradient of {name} holds NaN, inf or too large values; {_NOT_MADE}")
    optimizer.step()
    optimizer.zero_grad()
    return loss
