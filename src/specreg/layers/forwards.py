"""How a class with a forward of its own uses its weight: as it is, scaled, or as something else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from specreg.layers.evaluation import evaluating
from specreg.layers.kinds import CONVOLUTIONS
from specreg.layers.weights import Weight

_PLAIN = (nn.Linear, *CONVOLUTIONS)
_MAPS = {torch.nn.functional.linear} | {
    getattr(torch, f"conv{transposed}{dimensions}d") for transposed in ("", "_transpose") for dimensions in (1, 2, 3)
}


def is_customized(module: nn.Module) -> bool:
    """Tell whether a convolution, linear layer or embedding has another forward than torch's."""
    kind = next((kind for kind in (*_PLAIN, nn.Embedding) if isinstance(module, kind)), None)
    return kind is not None and any(
        getattr(type(module), name, None) is not getattr(kind, name, None) or name in vars(module)
        for name in ("forward", "_conv_forward")  # the second is what a convolution's forward calls
    )


def difference(weight: Weight) -> str | None:
    """Say in what the weight that a module's own forward uses differs from the one that specreg reads; None if not.

    The forward is run once, without hooks, in eval mode and on ones; what it leaves in buffers is taken back.
    """
    module, kind = weight.module, weight.kind
    if kind.owner not in _PLAIN or not is_customized(module):
        return None  # a class that was registered for itself is taken at its word
    name = type(module).__name__
    with torch.no_grad():
        expected = weight.used()
        for candidate in _used_by_forward(weight, expected):
            if candidate.shape != expected.shape:
                continue
            if torch.allclose(candidate, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max())):
                return None
            factor = float(candidate.norm() / expected.norm())
            if torch.allclose(candidate, factor * expected, rtol=1e-3, atol=1e-6 * float(candidate.abs().max())):
                return f"{name} uses its weight times {factor:.3g}; specreg.register(gain=) can tell"
    return (
        f"{name} uses another weight than the one that it stores, or none that could be seen; if it is no multiple of "
        "that, leave it out with skip="
    )


class _Recorder(TorchFunctionMode):
    """Keeps the weights that convolutions and linear maps are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in _MAPS:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def _used_by_forward(weight: Weight, value: Tensor) -> list[Tensor]:
    module: Any = weight.module
    # A legacy hook is not called here, and what it left is of the last pass, perhaps of another device.
    is_left = weight.legacy_hook is not None and weight.attribute in vars(module)
    left = {weight.attribute: vars(module)[weight.attribute]} if is_left else {}
    try:
        vars(module).update(dict.fromkeys(left, value))
        if isinstance(module, nn.Linear):
            shape = [2, module.in_features]
        else:
            sizes = zip(module.dilation, module.kernel_size, strict=True)
            shape = [2, module.in_channels, *(2 + dilation * (size - 1) for dilation, size in sizes)]
        with evaluating(module), _Recorder() as recorder:
            module.forward(value.new_ones(shape))
    except Exception:  # it may want more than one input, or refuse ones
        return []
    finally:
        vars(module).update(left)
    return list(recorder.weights)
