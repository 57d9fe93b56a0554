"""Which weight matrices the modules of a class have: torch's layers, common projects' own, and a user's.

A class is registered itself, or by its name where its project cannot be imported; a subclass has the weights of its
nearest registered class.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.names import check_type, integer

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

# A number, or a function of the module that returns it.
Number = float | Callable[[Any], float]


@dataclass(frozen=True)
class Kind:
    """A weight that the modules of a class have; :func:`register` describes the attributes."""

    owner: type[nn.Module] | str
    weight: str = "weight"
    output_dim: int = 0
    groups: Number = 1
    gain: Number = 1.0

    @property
    def name(self) -> str:
        return self.owner if isinstance(self.owner, str) else self.owner.__name__

    def groups_of(self, module: nn.Module) -> int:
        """Return how many matrices the module's weight holds."""
        groups = self.groups(module) if callable(self.groups) else self.groups
        return integer(f"groups of a {self.name}", groups, at_least=1)

    def gain_of(self, module: nn.Module) -> float:
        """Return the factor between the module's parameter and the weight that it uses, without its sign."""
        gain = self.gain(module) if callable(self.gain) else self.gain
        try:
            factor = abs(float(gain))
        except (TypeError, ValueError, OverflowError, RuntimeError):
            factor = math.nan
        if not 0 < factor < math.inf:
            raise ValueError(f"the gain of a {self.name} must be a finite number other than 0, got {gain!r:.60}")
        return factor


_KINDS: dict[type[nn.Module] | str, dict[str, Kind]] = {}


def register(
    module: type[nn.Module] | str,
    weight: str = "weight",
    *,
    output_dim: int = 0,
    groups: Number = 1,
    gain: Number = 1.0,
) -> None:
    r"""Tell specreg about a class's weight, so that every verb, the monitor and the readings take it as any layer's.

    The weight that the network uses is ``gain`` times the module's tensor. Dimension ``output_dim`` becomes the rows of
    its matrix, everything else the columns; what goes beyond the gain (a modulation by styles, say) is not seen.

    Args:
        module: the class, or its name where it is not to be imported: then modules that lack the weight, or what
            ``groups`` or ``gain`` ask for, are no layers.
        weight: the tensor's name, or a glob for several (``"weight_ih_l*"``). A layer is named like its module, with
            the tensor's name behind it if that is not "weight". A class may be registered for several.
        output_dim: the dimension that counts outputs, 0 or 1; 1 for a transposed or a modulated convolution,
            (in, out, \*kernel) and (1, out, in, \*kernel).
        groups: the number of matrices that are stacked along dimension 0 (gates of a recurrent layer; a bank of
            kernels, with ``output_dim=1``), or a function of the module that returns it.
        gain: the factor, or a function of the module that returns it; read anew each time, but for spectral
            normalization, regularization and orthogonalization, which take what it is when they are put on.

    Raises:
        TypeError: ``module`` is neither a module class nor a name, or ``weight`` no text.
        ValueError: ``output_dim`` is neither 0 nor 1.

    Example:
        >>> import specreg, torch
        >>> class EqualLinear(nn.Module):
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(outputs, inputs))
        ...         self.scale = inputs**-0.5
        >>> specreg.register(EqualLinear, gain=lambda layer: layer.scale)
        >>> print(specreg.spectral_norm(EqualLinear(16, 8)))
        spectral_norm: 1 layer
        (the module itself)  EqualLinear  8 x 16
    """
    if not isinstance(module, str) and not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise TypeError(f"expected a class of modules or the name of such a class, got {module!r}")
    check_type("weight", weight, str, "the attribute's name, or a glob")
    if output_dim not in (0, 1):
        raise ValueError(f"output_dim must be 0 or 1, got {output_dim!r}")
    _KINDS.setdefault(module, {})[weight] = Kind(module, weight, output_dim, groups, gain)


def weights_of(module: nn.Module) -> Iterator[tuple[str, Kind]]:
    """Yield the names of the module's weights, each with its kind."""
    for ancestor in type(module).__mro__:
        kinds = _KINDS.get(ancestor) or _KINDS.get(ancestor.__name__, {})
        weights = [
            (name, kind)
            for kind in kinds.values()
            for name in tensor_names(module)
            if fnmatch.fnmatchcase(name, kind.weight)
            and (kind.owner is ancestor or _fits(kind, module, name))
            and not _is_of_pruning(module, name)
        ]
        if weights:
            yield from weights
            return


def is_known(module: nn.Module) -> bool:
    """Tell whether a class of the module's is registered, whether or not the module has its weight."""
    return any(ancestor in _KINDS or ancestor.__name__ in _KINDS for ancestor in type(module).__mro__)


def parametrizations_of(module: nn.Module) -> Mapping[str, Any]:
    """Return a module's own parametrizations by tensor; as attributes, wrappers pass on those of what is in them."""
    children = module._modules
    lists = children["parametrizations"] if "parametrizations" in children else None  # noqa: SIM401  # scripted: no get
    return lists._modules if isinstance(lists, nn.ModuleDict) else {}


def legacy_hooks_of(module: nn.Module) -> dict[int, LegacySpectralNorm | LegacyWeightNorm]:
    """Return torch's legacy hooks that compute weights of a module before each forward pass, by their keys there."""
    hooks = module._forward_pre_hooks.items()
    return {key: hook for key, hook in hooks if isinstance(hook, (LegacySpectralNorm, LegacyWeightNorm))}


def tensor_names(module: nn.Module) -> list[str]:
    """Return the names of a module's own tensors, parametrized and hooked ones under the name that the module uses."""
    names = [name for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None]
    names += parametrizations_of(module)
    hooked = [hook.name for hook in legacy_hooks_of(module).values()]
    derived = {f"{name}{ending}" for name in hooked for ending in ("_orig", "_g", "_v", "_u")}
    return [name for name in dict.fromkeys(names + hooked) if name not in derived]


def _is_of_pruning(module: nn.Module, name: str) -> bool:
    """Tell whether a tensor is what pruning keeps of a weight: stored whole, and masked where it is used."""
    stem = name.removesuffix("_orig").removesuffix("_mask")
    return stem != name and f"{stem}_mask" in module._buffers and f"{stem}_orig" in module._parameters


def _fits(kind: Kind, module: nn.Module, name: str) -> bool:
    """Tell whether a module of a class known by name alone is what the name stands for."""
    try:
        kind.groups_of(module), kind.gain_of(module)
    except Exception:  # another class of this name: whatever it lacks
        return False
    tensor = module._parameters.get(name, module._buffers.get(name))
    return not isinstance(tensor, Tensor) or tensor.ndim > 1


def _register_known() -> None:
    for convolution in CONVOLUTIONS:
        register(convolution, output_dim=int(convolution in TRANSPOSED), groups=attrgetter("groups"))
    for plain in (nn.Linear, nn.Bilinear, nn.Embedding):
        register(plain)
    # Queries, keys and values are three maps, and so is each gate of a recurrent layer.
    register(nn.MultiheadAttention, "in_proj_weight", groups=3)
    register(nn.MultiheadAttention, "[qkv]_proj_weight")
    for recurrent, cell, gates in ((nn.LSTM, nn.LSTMCell, 4), (nn.GRU, nn.GRUCell, 3), (nn.RNN, nn.RNNCell, 1)):
        for weight in ("weight_ih", "weight_hh"):
            register(recurrent, f"{weight}_l*", groups=gates)
            register(cell, weight, groups=gates)
    register(nn.LSTM, "weight_hr_l*")
    # Karras et al. 2020 and 2021, the authors' PyTorch code.
    for name in ("FullyConnectedLayer", "Conv2dLayer"):
        register(name, gain=attrgetter("weight_gain"))
    register("SynthesisLayer")
    register("ToRGBLayer", gain=attrgetter("weight_gain"))
    # The same networks in another widespread code and what descends from it.
    for name in ("EqualLinear", "EqualConv2d"):
        register(name, gain=attrgetter("scale"))
    register("ModulatedConv2d", output_dim=1, gain=attrgetter("scale"))


_register_known()
