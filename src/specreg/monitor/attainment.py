r"""Measure how nearly a layer attains its Lipschitz bound, and the discriminator's gradient norms.

A linear map of norm 1 keeps :math:`\|Wx\| = \|x\|` in every direction only if all its singular values are 1.
Spectral normalization fixes the first alone: when the others fall, the bound is attained in ever fewer directions, and
on real activations ever less (Liu et al. 2019, section 3).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.layers.evaluation import evaluating, frozen_random_numbers
from specreg.layers.find import Layer, find
from specreg.layers.forwards import is_customized
from specreg.layers.kinds import CONVOLUTIONS, TRANSPOSED
from specreg.layers.requirements import require_finite
from specreg.layers.selection import Selection
from specreg.names import check_type, shown
from specreg.spectra.decompositions import singular_values
from specreg.spectra.operator import convolution_norm

logger = logging.getLogger("specreg")


@dataclass(frozen=True)
class Attainment:
    r"""How nearly one layer attains its bound on a batch, with the weight that the forward pass uses.

    Attributes:
        attained: :math:`\|Wx\| / (s_1 \|x\|)` in [0, 1], the mean over the batch. Of a convolution, x is all patches
            of the input and W the weight's matrix.
        largest: :math:`s_1` of the matrix; 1 under spectral normalization.
        operator_attained: :math:`\|Kx\| / (\|K\| \|x\|)`, K the convolution of whole images; None without
            ``operator``.
        operator_norm: :math:`\|K\|`, by Fourier transform, with zero padding an upper bound; None likewise, and under
            padding by pixels, unless it is circular, the stride divides the image and no output repeats.
    """

    attained: float
    largest: float
    operator_attained: float | None = None
    operator_norm: float | None = None


@frozen_random_numbers()  # a parametrization that specreg does not know may draw some
def attainment(
    module: nn.Module, *inputs: Any, operator: bool = False, only: Selection = None, skip: Selection = None
) -> dict[str, Attainment]:
    r"""Run the module on a batch and measure how nearly each layer attains its Lipschitz bound.

    The module runs in eval mode without gradients, and no buffer moves. Under spectral collapse the values fall.

    Args:
        module: the discriminator.
        inputs: its arguments, usually one batch of images (and labels).
        operator: also measure against the operator norm of convolutions at the size of their inputs: seconds for 128
            channels at 32x32. Memory grows with pixels times channels squared (512 at 64x64: 46 GB): ``skip`` such.
        only, skip: the layers to take, see :mod:`specreg.layers.find`; all kinds but embeddings by default.

    Returns:
        Layer name -> :class:`Attainment`. Layers that had zero inputs are left out; so are, named in a warning, those
        that are no convolution or linear layer (attention, recurrent), those whose module did not run (its weight is
        used elsewhere, as by ``F.conv2d``) and those with a forward of their own (an equalized learning rate, say),
        which is another map.

    Raises:
        ValueError: no layer matched, or a weight holds NaN or inf; names the layer.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([1.0, 0.0])))
        >>> attainment(layer, torch.tensor([[3.0, 4.0]]))[""].attained
        0.6

    Reference:
        Liu et al. 2019, section 3; Sedghi et al. 2019 for the operator norm.
    """
    layers = find(module, only=only, skip=skip, title="attainment")
    require_finite(layers)
    calls: dict[str, list[Attainment]] = {}
    # Layers whose module does not run as torch's: another map, or one whose weight is taken from it and used elsewhere.
    unseen = dict.fromkeys(layers, "did not run by itself")
    handles = []

    def measure(name: str, layer: Layer, child: Any, args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> None:
        unseen.pop(name, None)
        x = args[0] if args else kwargs["input"]
        if (measured := _measure(layer, child, x.detach(), output.detach(), operator)) is not None:
            calls.setdefault(name, []).append(measured)

    for name, layer in layers.items():
        modules = [use.module for use in layer.uses]
        if not all(isinstance(child, (nn.Linear, *CONVOLUTIONS)) for child in modules):
            unseen[name] = "no convolution or linear layer"
            continue
        if any(map(is_customized, modules)):
            unseen[name] = "has a forward of its own"
            continue
        hook = partial(measure, name, layer)
        handles += [child.register_forward_hook(hook, with_kwargs=True) for child in modules]
    try:
        with evaluating(module) as network, torch.no_grad():
            network(*(value.clone() if isinstance(value, Tensor) else value for value in inputs))
    finally:
        for handle in handles:
            handle.remove()
    if unseen:
        reasons = ", ".join(f"{shown(name)} ({reason})" for name, reason in unseen.items())
        logger.warning("attainment: not measured: %s", reasons)
    return {name: _mean(calls[name]) for name in layers if name in calls}


def gradient_norms(
    discriminator: Callable[[Tensor], Any],
    real: Tensor,
    generated: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    r"""Return the mean of :math:`\|\nabla_x D(x)\|_2` on real, generated and interpolated samples.

    Interpolated samples are :math:`x = t x_r + (1 - t) x_g` with uniform t, as in the gradient penalty. No parameter's
    gradient, no buffer of a module and no random number of the training is changed.

    Args:
        discriminator: a module, which is called in eval mode, or a function of samples (a closure over the labels if
            conditional), whose networks have to be in eval mode, or else power iteration under spectral normalization
            moves. It returns scores, or a list of scores to be added up, and no feature maps.
        real, generated: samples of equal shape (N, \*).
        generator: source of t; by default the same t at each call.

    Returns:
        "real", "generated", "interpolated" -> the mean norm.

    Raises:
        ValueError: the shapes differ.
        TypeError: samples are whole numbers, or the discriminator returns something else than scores.

    Example:
        >>> discriminator = lambda x: 3 * x[:, 0] + 4 * x[:, 1]
        >>> gradient_norms(discriminator, torch.zeros(5, 2), torch.ones(5, 2))
        {'real': 5.0, 'generated': 5.0, 'interpolated': 5.0}

    Reference:
        Gulrajani et al. 2017, *Improved Training of Wasserstein GANs*, section 4, for the interpolated samples.
    """
    check_pair(real, generated)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    t = torch.rand(len(real), *[1] * (real.ndim - 1), generator=source, device=source.device).to(real)
    samples = {"real": real, "generated": generated, "interpolated": generated + t * (real - generated)}
    with evaluating(discriminator) as network:
        return {name: norms_of_gradients(network, x).mean().item() for name, x in samples.items()}


def check_pair(real: Tensor, generated: Tensor) -> None:
    """Raise ValueError unless samples have one shape, and TypeError unless they are tensors that have gradients."""
    for name, samples in (("real", real), ("generated", generated)):
        check_type(f"{name} samples", samples, Tensor)
    if real.shape != generated.shape:
        raise ValueError(f"real and generated samples differ in shape: {tuple(real.shape)}, {tuple(generated.shape)}")
    if not all(samples.is_floating_point() or samples.is_complex() for samples in (real, generated)):
        raise TypeError("whole numbers have no gradient: give samples as the discriminator takes them")


def norms_of_gradients(network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the norm of the gradient of the scores at each sample, (N,)."""
    # Nothing has a gradient in inference mode; outside of it a copy of what was made there has.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        # A copy goes in: the first operation may be in place, which a leaf refuses.
        (gradient,) = torch.autograd.grad(_total(network(leaf.clone()), len(x)), leaf)
    return gradient[:, None].flatten(1).norm(dim=1)


def _measure(layer: Layer, child: Any, x: Tensor, output: Tensor, operator: bool) -> Attainment | None:
    # In eval mode reading the weight moves no power iteration.
    weight = child.weight.detach()
    spatial = 0 if isinstance(child, nn.Linear) else weight.ndim - 2
    linear = output if child.bias is None else output - child.bias.reshape(-1, *[1] * spatial)
    s1 = singular_values(layer.weight.to_matrix(weight))[..., 0]
    by_group = s1.square().reshape(-1, *[1] * spatial)
    samples = 1 if x.ndim == spatial + 1 else len(x)  # without a batch dimension: one sample
    out_energy = _energy(linear).reshape(samples, -1).sum(1)
    in_energy = (_patches(child, x, linear) * by_group).reshape(samples, -1).sum(1)
    alive = in_energy != 0  # true for NaN, which is to be seen
    if not bool(alive.any()):
        return None
    attained = _root_ratio(out_energy, in_energy, alive)
    grid = _grid(child, x, linear) if operator and spatial else None
    if grid is None:
        return Attainment(attained, s1.max().item())
    norm = convolution_norm(weight, grid, stride=child.stride, dilation=child.dilation, groups=layer.groups).item()
    whole = _energy(x).reshape(samples, -1).sum(1) * norm**2
    return Attainment(attained, s1.max().item(), _root_ratio(out_energy, whole, alive), norm)


def _patches(child: Any, x: Tensor, linear: Tensor) -> Tensor:
    """Return the energy of each output's patch, by group: the layer's own map with kernels of ones."""
    energy = _energy(x)
    if isinstance(child, nn.Linear):
        return energy
    spatial = child.weight.ndim - 2
    # (N, channels, *) -> (N, groups, *), with or without N.
    lead, pixels = energy.shape[: -spatial - 1], energy.shape[-spatial:]
    energy = energy.reshape(*lead, child.groups, -1, *pixels).sum(-spatial - 1)
    ones = energy.new_ones(child.groups, 1, *child.kernel_size)
    if not isinstance(child, TRANSPOSED):
        return child._conv_forward(energy, ones, None)  # with the layer's own padding
    sizes: Any = zip(pixels, child.kernel_size, child.stride, child.padding, child.dilation, strict=True)
    least = [(n - 1) * stride - 2 * pad + dilation * (k - 1) + 1 for n, k, stride, pad, dilation in sizes]
    # The rest is output padding: the layer's own, or that of the output size which its caller gave.
    rest = [size - smallest for size, smallest in zip(linear.shape[-spatial:], least, strict=True)]
    convolve: Callable[..., Tensor] = getattr(F, f"conv_transpose{spatial}d")
    return convolve(energy, ones, None, child.stride, child.padding, rest, child.groups, child.dilation)


def _grid(child: Any, x: Tensor, linear: Tensor) -> list[int] | None:
    """Return the periodic grid whose norm bounds the layer's; None where padding repeats pixels, so that none does.

    It is the larger side and the kernel's reach, by the stride; of circular padding the image, if the stride divides it
    and no output repeats.
    """
    spatial = child.weight.ndim - 2
    shape = (linear if isinstance(child, TRANSPOSED) else x).shape[-spatial:]
    if child.padding_mode == "zeros" or not any(child._reversed_padding_repeated_twice):
        sizes = zip(shape, child.kernel_size, child.dilation, child.stride, strict=True)
        return [-(-(n + dilation * (size - 1)) // stride) * stride for n, size, dilation, stride in sizes]
    outputs = zip(shape, linear.shape[-spatial:], child.stride, strict=True)
    is_periodic = child.padding_mode == "circular" and all(n % step == 0 and m * step <= n for n, m, step in outputs)
    return list(shape) if is_periodic else None


def _energy(values: Tensor) -> Tensor:
    return values.abs().to(torch.float32 if values.device.type == "mps" else torch.float64).square()


def _root_ratio(numerator: Tensor, denominator: Tensor, where: Tensor) -> float:
    # Rounding of the forward pass may lift a ratio above its bound.
    return (numerator[where] / denominator[where]).sqrt().clamp(max=1).mean().item()


def _mean(calls: Sequence[Attainment]) -> Attainment:
    """Return the mean over the calls of a layer that ran several times."""
    operator = [call.operator_attained for call in calls if call.operator_attained is not None]
    return Attainment(
        attained=sum(call.attained for call in calls) / len(calls),
        largest=calls[-1].largest,
        operator_attained=sum(operator) / len(operator) if operator else None,
        operator_norm=max((call.operator_norm for call in calls if call.operator_norm is not None), default=None),
    )


def _total(scores: Any, num_samples: int) -> Tensor:
    outputs = [scores] if isinstance(scores, Tensor) else scores
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(out, Tensor) for out in outputs) or not outputs:
        raise TypeError(
            "the discriminator returns more than scores or a list of them: give a function that returns its scores "
            "alone, as lambda x: discriminator(x)[0]"
        )
    if num_samples > 1 and not all(out.ndim for out in outputs):
        raise TypeError(
            "the discriminator returns one number for all samples: return the scores, not their mean or sum"
        )
    channels = {out.shape[1] for out in outputs if out.ndim > 2}
    if 1 in channels and len(channels) > 1:
        raise TypeError(
            f"the discriminator returns maps of 1 and of {max(channels)} channels, features beside scores: give a "
            f"function that returns its scores alone, as lambda x: discriminator(x)[-1]"
        )
    return sum((output.sum() for output in outputs[1:]), start=outputs[0].sum())
