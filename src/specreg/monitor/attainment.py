r"""The paper's theory made visible: how nearly a layer attains its Lipschitz bound, and what the discriminator feels.

A linear map of norm 1 keeps :math:`\|Wx\| = \|x\|` in every direction only if all its singular values are 1.
Spectral normalization fixes the first alone: when the others fall, the bound is attained in ever fewer directions, and
on real activations ever less (Liu et al. 2019, section 3).
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from specreg.layers import CONVOLUTIONS, TRANSPOSED, Layer, Selection, find, shown, unwrap
from specreg.spectra.gram import singular_values
from specreg.spectra.matrices import to_matrix
from specreg.spectra.operator import convolution_norm

logger = logging.getLogger("specreg")

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Attainment:
    r"""How nearly one layer attains its bound on a batch, with the weight that the forward pass uses.

    Attributes:
        attained: :math:`\|Wx\| / (s_1 \|x\|)` in [0, 1], the mean over the batch. Of a convolution, x is all patches
            that it sees and W the weight's matrix.
        largest: :math:`s_1` of the matrix; 1 under spectral normalization.
        operator_attained: :math:`\|Kx\| / (\|K\| \|x\|)`, K the convolution of whole images; None unless asked.
        operator_norm: :math:`\|K\|`, by Fourier transform, with zero padding an upper bound; None unless asked.
    """

    attained: float
    largest: float
    operator_attained: float | None = None
    operator_norm: float | None = None


def attainment(
    module: nn.Module, *inputs: Any, operator: bool = False, only: Selection = None, skip: Selection = None
) -> dict[str, Attainment]:
    r"""Run the module on a batch and measure, layer by layer, how nearly its Lipschitz bound is attained.

    The module runs in eval mode without gradients, and is then as before: no buffer has moved. Under spectral collapse
    the values fall.

    Args:
        module: the discriminator.
        inputs: what it is called with, usually one batch of images (and labels).
        operator: also against the operator norm of convolutions at the size of their inputs; costs seconds for wide
            layers.
        only: take just these layers; see :func:`specreg.spectra`. Default: convolutions and linear layers.
        skip: leave these out; the same forms.

    Returns:
        Layer name -> :class:`Attainment`. Layers that did not run, or whose inputs were zero, are left out, and with a
        warning those whose class has a forward of its own (an equalized learning rate, say), which is another map.

    Raises:
        ValueError: no layer matched.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([1.0, 0.0])))
        >>> attainment(layer, torch.tensor([[3.0, 4.0]]))[""].attained
        0.6

    Reference:
        Liu et al. 2019, section 3; Sedghi et al. 2019 for the operator norm.
    """
    layers = find(module, only=only, skip=skip, title="attainment")
    found: dict[str, list[Attainment]] = {}
    handles = []
    for name, layer in layers.items():
        if not isinstance(layer.module, (nn.Linear, *CONVOLUTIONS)):
            continue
        if any(map(_is_customized, layer.modules)):
            logger.warning("attainment: layer %r has a forward of its own and is left out", shown(name))
            continue

        def measure(
            used: Any, given: tuple[Tensor, ...], named: Any, output: Tensor, name: str = name, layer: Layer = layer
        ) -> None:
            given_input = given[0] if given else named["input"]
            one = _measure(layer, used, given_input.detach(), output.detach(), operator)
            if one is not None:
                found.setdefault(name, []).append(one)

        handles += [used.register_forward_hook(measure, with_kwargs=True) for used in layer.modules]
    try:
        with evaluating(module), torch.no_grad():
            unwrap(module)(*inputs)  # data parallelism's wrapper would talk to the other processes
    finally:
        for handle in handles:
            handle.remove()
    return {name: _mean(found[name]) for name in layers if name in found}


def gradient_norms(
    discriminator: Callable[[Tensor], Any],
    real: Tensor,
    generated: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    r"""Return the mean of :math:`\|\nabla_x D(x)\|_2` on real, generated and interpolated samples.

    Interpolated are :math:`x = t x_r + (1 - t) x_g` with uniform t, as in the gradient penalty. A module is called in
    eval mode; no parameter's gradient is touched.

    Args:
        discriminator: a module, or any function of samples (of a conditional one: a closure over the labels), that
            returns scores or a list of them, which are added up: of one that returns feature maps, too, a function that
            returns its scores alone. A function is called as it is: its networks have to be in eval mode, or
            power iteration under spectral normalization moves.
        real, generated: samples of equal shape (N, \*).
        generator: source of t.

    Returns:
        "real", "generated", "interpolated" -> a number.

    Raises:
        ValueError: the shapes differ.
        TypeError: it returns something else than scores.
    """
    if real.shape != generated.shape:
        raise ValueError(f"real and generated samples differ in shape: {tuple(real.shape)}, {tuple(generated.shape)}")
    t = torch.rand(len(real), *[1] * (real.ndim - 1), generator=generator).to(real)
    samples = {"real": real, "generated": generated, "interpolated": generated + t * (real - generated)}
    context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(discriminator, nn.Module):
        context, discriminator = evaluating(discriminator), unwrap(discriminator)
    norms = {}
    with context, torch.enable_grad():
        for name, x in samples.items():
            leaf = x.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(_total(discriminator(leaf)), leaf)
            norms[name] = gradient.flatten(1).norm(dim=1).mean().item()
    return norms


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode, and each back into its own afterwards."""
    before = {child: child.training for child in module.modules()}
    # Compiled code does not call hooks that were added later; without torch.compile its machinery is not loaded.
    compiling = "torch._dynamo" in sys.modules
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext():
            yield
    finally:
        for child, training in before.items():
            child.training = training


def _measure(layer: Layer, used: Any, given: Tensor, output: Tensor, operator: bool) -> Attainment | None:
    # In eval mode reading the weight moves no power iteration.
    weight = used.weight.detach()
    bias = used.bias
    spatial = 0 if isinstance(used, nn.Linear) else weight.ndim - 2
    linear = output if bias is None else output - bias.reshape(-1, *[1] * spatial)
    s1 = singular_values(to_matrix(weight, output_dim=layer.output_dim, groups=layer.groups))[..., 0]
    samples = 1 if given.ndim == spatial + 1 else len(given)  # without a batch dimension: one sample
    out_energy = _energy(linear).reshape(samples, -1).sum(1)
    in_energy = (_patches(used, given, linear) * _by_group(s1.square(), spatial)).reshape(samples, -1).sum(1)
    alive = in_energy > 0
    if not bool(alive.any()):
        return None
    attained = _root_ratio(out_energy, in_energy, alive)
    if not operator or not spatial:
        return Attainment(attained, s1.max().item())
    norm = convolution_norm(
        weight, _grid(used, given, linear), stride=used.stride, dilation=used.dilation, groups=layer.groups
    ).item()
    whole = _energy(given).reshape(samples, -1).sum(1) * norm**2
    return Attainment(attained, s1.max().item(), _root_ratio(out_energy, whole, alive & (whole > 0)), norm)


def _patches(used: Any, given: Tensor, linear: Tensor) -> Tensor:
    """Return the energy of what every output sees, by group: the layer's own map with kernels of ones."""
    energy = _energy(given)
    if isinstance(used, nn.Linear):
        return energy
    spatial, groups = used.weight.ndim - 2, used.groups
    # (N, channels, *) -> (N, groups, *), with or without N.
    lead, pixels = energy.shape[: -spatial - 1], energy.shape[-spatial:]
    energy = energy.reshape(*lead, groups, -1, *pixels).sum(-spatial - 1)
    ones = energy.new_ones(groups, 1, *used.kernel_size)
    if isinstance(used, TRANSPOSED):
        transposed: Callable[..., Tensor] = _TRANSPOSED[spatial]
        common: dict[str, Any] = {
            "stride": used.stride, "padding": used.padding, "groups": groups, "dilation": used.dilation,
        }  # fmt: skip
        seen = transposed(energy, ones, output_padding=used.output_padding, **common)
        # The caller may have asked for another output size, which torch turns into output padding.
        missing = [wanted - got for wanted, got in zip(linear.shape[-spatial:], seen.shape[-spatial:], strict=True)]
        if any(missing):
            padding = [own + more for own, more in zip(used.output_padding, missing, strict=True)]
            seen = transposed(energy, ones, output_padding=padding, **common)
        return seen
    around: Any = used.padding
    if used.padding_mode != "zeros":
        energy, around = F.pad(energy, used._reversed_padding_repeated_twice, mode=used.padding_mode), 0
    convolve: Callable[..., Tensor] = _CONVOLVE[spatial]
    return convolve(energy, ones, stride=used.stride, padding=around, dilation=used.dilation, groups=groups)


def _grid(used: Any, given: Tensor, linear: Tensor) -> list[int]:
    """Return the periodic grid whose norm bounds the layer's: its larger side and the kernel's reach, by the stride."""
    spatial = used.weight.ndim - 2
    shape = (linear if isinstance(used, TRANSPOSED) else given).shape[-spatial:]
    periodic = used.padding_mode == "circular"
    return [
        -(-(pixels if periodic else pixels + dilation * (size - 1)) // stride) * stride
        for pixels, size, dilation, stride in zip(shape, used.kernel_size, used.dilation, used.stride, strict=True)
    ]


def _energy(values: Tensor) -> Tensor:
    double = values.abs().double() if values.device.type != "mps" else values.abs().float()
    return double.square()


def _by_group(values: Tensor, spatial: int) -> Tensor:
    return values.reshape(-1, *[1] * spatial) if values.ndim else values


def _root_ratio(numerator: Tensor, denominator: Tensor, where: Tensor) -> float:
    # Rounding of the forward pass may lift a ratio above its bound.
    return (numerator[where] / denominator[where]).sqrt().clamp(max=1).mean().item()


def _mean(values: Sequence[Attainment]) -> Attainment:
    """Return the mean over the calls of a layer that ran several times."""
    known = [one for one in values if one.operator_attained is not None and one.operator_norm is not None]
    return Attainment(
        attained=sum(one.attained for one in values) / len(values),
        largest=values[-1].largest,
        operator_attained=sum(one.operator_attained or 0.0 for one in known) / len(known) if known else None,
        operator_norm=max(one.operator_norm or 0.0 for one in known) if known else None,
    )


def _total(scores: Any) -> Tensor:
    several = [scores] if isinstance(scores, Tensor) else scores
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Tensor) for one in several) or not several:
        raise TypeError(
            "the discriminator returns more than scores or a list of them: give a function that returns its scores "
            "alone, as lambda x: discriminator(x)[0]"
        )
    total: Tensor = sum((one.sum() for one in several[1:]), start=several[0].sum())
    return total


def _is_customized(layer: nn.Module) -> bool:
    kind = next(kind for kind in (nn.Linear, *CONVOLUTIONS) if isinstance(layer, kind))
    return type(layer).forward is not kind.forward or "forward" in vars(layer)
