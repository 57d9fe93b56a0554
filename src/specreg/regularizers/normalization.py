"""Spectral normalization through torch's own parametrization, and the removal of any parametrization."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.layers.find import Layers, find, require_whole
from specreg.layers.kinds import Kind, legacy_hooks_of, parametrizations_of
from specreg.layers.requirements import require_finite, require_parametrizable, warn_of_doubts
from specreg.layers.selection import Selection, plainly_named_modules, unwrap
from specreg.layers.weights import Weight
from specreg.spectra.autocast import full_precision


def spectral_norm(module: nn.Module, *, only: Selection = None, skip: Selection = None) -> Layers:
    r"""Normalize the largest singular value of every matching layer: :math:`W_{SN} = W / s_1`.

    Through torch's own parametrization, ``torch.nn.utils.parametrizations.spectral_norm``: one step of power
    iteration in training mode whenever the weight is read, which is once a forward pass, but two to four times in
    recurrent layers and attention; singular vectors held constant in the gradient. The matrix is the weight with its
    output dimension as rows; torch stacks the groups of a grouped convolution into one matrix, and so does this verb
    (the compensators treat each group on its own). A layer already under spectral normalization, new or legacy, stays
    as it is; a layer whose class normalizes its weight itself is left out, and the report says so. Of a layer with a
    gain (an equalized learning rate, see :func:`specreg.register`) the weight that the network uses is normalized. The
    parameters stay the same objects, but weights come behind biases: make the optimizer afterwards, as a saved state of
    it goes by their order.

    Args:
        module: the discriminator, or any module. Changed in place.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default also embeddings.

    Returns:
        The layers under spectral normalization: a mapping from name to layer that prints as a table.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: no layer matched, a name matches nothing, a weight holds NaN or inf or cannot be written, a layer is
            under the legacy ``weight_norm``, or the module is wrapped in DistributedDataParallel.

    Example:
        >>> import specreg
        >>> discriminator = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(96, 1))
        >>> print(specreg.spectral_norm(discriminator))
        spectral_norm: 2 layers
        0  Conv1d  8 x 5
        3  Linear  1 x 96

    Reference:
        Miyato et al. 2018, *Spectral Normalization for Generative Adversarial Networks*, equations 8 and 9.
    """
    layers = find(module, embeddings=True, normalizing=False, only=only, skip=skip, title="spectral_norm")
    plain = [use for layer in layers.values() for use in layer.uses if not use.normalizers]
    if plain:
        require_parametrizable(module, layers)
    require_finite(layers)
    warn_of_doubts(layers)
    for use in plain:
        normalizer = _SpectralNormOfAnyWeight(use.stored(), dim=use.kind.output_dim, gain=use.gain)
        parametrize.register_parametrization(use.module, use.attribute, normalizer)
    return layers


def remove(module: nn.Module) -> list[str]:
    """Undo every parametrization: plain weights again, equal to those that the network used in eval mode.

    Takes off spectral normalization and regularization, torch's weight normalization and any other
    parametrization of a submodule's tensor, and torch's legacy ``spectral_norm`` and ``weight_norm`` hooks. A weight
    that several modules share stays shared and becomes the one that the first normalized of them used. Under weight
    normalization the plain weights are new parameters: an optimizer has to be made anew to go on training them.

    Args:
        module: changed in place; without parametrizations it stays as it is.

    Returns:
        The qualified names of the tensors that are plain again.

    Raises:
        ValueError: the weights are sharded by ``fully_shard``, or a parametrization or legacy weight normalization is
            inside DistributedDataParallel; nothing is changed.

    Example:
        >>> import specreg
        >>> discriminator = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> _ = specreg.spectral_norm(discriminator, only="0")
        >>> specreg.remove(discriminator)
        ['0.weight']
    """
    require_whole(module)
    values: dict[int, Tensor] = {}  # of shared originals: removing the first one's parametrization changes them
    hooked: dict[tuple[Tensor, ...], Any] = {}  # what hooks kept -> the plain weight
    undone = []
    wrappers = [child for child in module.modules() if isinstance(child, nn.parallel.DistributedDataParallel)]
    inside = [child for wrapper in wrappers for child in wrapper.modules()]
    hooks = [hook for child in inside for hook in legacy_hooks_of(child).values()]
    if any(map(parametrize.is_parametrized, inside)) or any(isinstance(hook, LegacyWeightNorm) for hook in hooks):
        # Of weight normalization's weights it knows nothing, the others lose the hooks that it has put on them.
        raise ValueError(
            "the module is wrapped in DistributedDataParallel, which would not average the gradients of the plain "
            "weights: wrap it afterwards"
        )
    for name, child in list(plainly_named_modules(unwrap(module))):
        lists = parametrizations_of(child)
        if lists:
            _own_class(child)
        for tensor in list(lists):
            # Reading a weight under spectral normalization in training mode would move its power iteration.
            lists[tensor].eval()
            key = id(getattr(lists[tensor], "original", lists[tensor]))
            value = values.setdefault(key, getattr(child, tensor).detach().clone())
            originals = list(lists[tensor].parameters(recurse=False))
            parametrize.remove_parametrizations(child, tensor, leave_parametrized=True)
            if originals and not isinstance(getattr(child, tensor), nn.Parameter):
                # Torch leaves a buffer where what it computed needed no gradient: frozen, or without gradients now.
                delattr(child, tensor)
                trained = any(original.requires_grad for original in originals)
                child.register_parameter(tensor, nn.Parameter(value.clone(), requires_grad=trained))
            with torch.no_grad():
                getattr(child, tensor).copy_(value)
            getattr(child, tensor).grad = None  # it was a gradient of another function
            _forget_state_dict_hooks(child)
            undone.append(f"{name}.{tensor}" if name else tensor)
        for key, hook in legacy_hooks_of(child).items():
            storage = Weight(child, hook.name, Kind(type(child))).storage
            frozen = not any(tensor.requires_grad for tensor in storage)
            hook.remove(child)
            if storage not in hooked:
                hooked[storage] = getattr(child, hook.name)
                if len(storage) == 1:  # the parameter goes on, for its optimizer and whoever else uses it
                    hooked[storage] = storage[0]
                    with torch.no_grad():
                        storage[0].copy_(getattr(child, hook.name))
                    storage[0].grad = None  # it was a gradient of another function
            child.register_parameter(hook.name, hooked[storage].requires_grad_(not frozen))
            del child._forward_pre_hooks[key]
            _forget_state_dict_hooks(child, hook)
            undone.append(f"{name}.{hook.name}" if name else hook.name)
    return undone


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: torch takes the property off one that deep copies share."""
    shared = type(module)
    members = {name: member for name, member in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, members)


def _forget_state_dict_hooks(module: nn.Module, hook: LegacySpectralNorm | LegacyWeightNorm | None = None) -> None:
    """Take off what a legacy hook has put beside itself, or what torch's weight_norm leaves: no pickle takes that."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, registered in list(hooks.items()):  # torch's wrapper of a hook has what the hook has
            is_legacys = hook is not None and getattr(registered, "fn", None) is hook
            if is_legacys or getattr(registered, "__name__", "") == "_weight_norm_compat_hook":
                del hooks[key]


class _SpectralNormOfAnyWeight(_SpectralNorm):
    """Torch's spectral normalization, for a weight with a gain, that is zero at some time, and in mixed precision too.

    Torch divides by s1 = 0 for a zero weight, and its vectors, once zero, stay zero for ever. Here a weight that maps v
    to zero, as a zero one does, maps to itself and leaves the vectors as they were; without branches, so that compiled
    graphs stay whole. Under autocast on a GPU torch estimates s1 by products in half precision; here they are made in
    the weight's own.
    """

    def __init__(self, weight: Tensor, *, dim: int, gain: float) -> None:
        super().__init__(weight, dim=dim)
        self.gain = gain  # what the module multiplies the result by

    @torch.no_grad()
    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        for _ in range(n_power_iterations):
            self._iterate(weight_mat)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Make one step of power iteration; return its vectors, which no later step changes."""
        u = torch.mv(matrix, self._v)
        norm = torch.linalg.vector_norm(u)
        u = u / (norm + (norm == 0))  # no 0/0, and no floor, below which vectors would not be of length 1
        v = torch.mv(matrix.H, u)
        norm = torch.linalg.vector_norm(v)
        v = v / (norm + (norm == 0))
        moved = norm > 0  # false for NaN too
        # Written by out=, as torch does, which transforms (torch.func.grad, vmap) let pass where they refuse copy_. And
        # assigned: so torch.compile sees that this must not be recomputed in a graph, and checkpoints a layer outside.
        self._u = torch.where(moved, u, self._u, out=self._u)
        self._v = torch.where(moved, v, self._v, out=self._v)
        return u, v

    def forward(self, weight: Tensor) -> Tensor:
        with full_precision(weight):
            matrix = self._reshape_weight_to_matrix(weight)
            # A second forward pass moves the vectors that the first one's backward pass needs.
            u, v = self._iterate(matrix) if self.training else (self._u.clone(), self._v.clone())
            s1 = torch.vdot(u, torch.mv(matrix, v))
            s1 = s1 + (s1 == 0)  # unlike where() it costs nothing backwards
            return weight / (s1 if self.gain == 1 else self.gain * s1)
