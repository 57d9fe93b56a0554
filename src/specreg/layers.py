"""The bridge between modules and matrices: find layers, read their stored weight, write it back.

The *stored* weight is the tensor whose singular values are controlled. For a plain layer it is the
parameter; under spectral normalization (torch's parametrization, torch's legacy hook, or specreg's own
parametrization) the weight before its division by s1; under torch's weight normalization (new and
legacy) and specreg's orthogonalization the weight that the network uses. Reading never evaluates a
parametrization in training mode, for that would move spectral normalization's power iteration.
"""

import copy
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.spectra.gram import svd
from specreg.spectra.matrices import from_matrix, to_matrix

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
DEFAULT_KINDS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)
ALL_KINDS: tuple[type[nn.Module], ...] = (*DEFAULT_KINDS, nn.Embedding)

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Selection = Selector | Iterable[Selector] | None


@dataclass(frozen=True)
class Layer:
    """One weight matrix of a model and the module (or modules, where it is shared) that use it.

    Attributes:
        name: the module's qualified name, "" for the root itself.
        modules: the modules that share the weight, the named one first.
        shared_with: the names of the others.
    """

    name: str
    modules: tuple[nn.Module, ...] = field(repr=False)
    shared_with: tuple[str, ...] = ()

    @property
    def module(self) -> nn.Module:
        return self.modules[0]

    @property
    def kind(self) -> str:
        """The layer's class, without the prefix that torch's parametrization gives it."""
        return next(kind.__name__ for kind in type(self.module).__mro__ if kind in ALL_KINDS)

    @property
    def output_dim(self) -> int:
        return 1 if isinstance(self.module, TRANSPOSED) else 0

    @property
    def groups(self) -> int:
        return int(getattr(self.module, "groups", 1))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·kernel) of one group's matrix."""
        rows, columns = to_matrix(self._tensor(), output_dim=self.output_dim, groups=self.groups).shape[-2:]
        return rows, columns

    @property
    def rank(self) -> int:
        """r, the number of singular values of one group's matrix."""
        return min(self.matrix_shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._tensor().dtype

    def matrix(self) -> Tensor:
        """Read the stored weight as a matrix, detached, shape (out, in·kernel), one leading dimension if grouped."""
        return to_matrix(stored_weight(self.module), output_dim=self.output_dim, groups=self.groups)

    @property
    def is_normalized(self) -> bool:
        """Whether s1 is divided out wherever the weight is used, so that the network does not see its scale.

        Not of a grouped convolution under torch's normalization, which divides all groups by one common norm.
        """
        return all(
            (normalizers(module) and self.groups == 1)
            or any(isinstance(part, SpectrumPreserving) for part in _parametrizations(module))
            for module in self.modules
        )

    def write(self, matrix: Tensor, u1: Tensor | None = None, v1: Tensor | None = None) -> None:
        """Store a matrix in place and refresh what was derived from the old one.

        Args:
            matrix: shape as :meth:`matrix` returns it, any dtype.
            u1, v1: its first singular vectors, (out,) and (in·kernel,), given to spectral normalization's
                power iteration; computed anew where they do not fit.
        """
        storage = _storage(self.module)
        weight = from_matrix(matrix, storage[-1].shape, output_dim=self.output_dim, groups=self.groups)
        first = None if u1 is None or v1 is None or self.groups > 1 else (u1, v1)
        with torch.no_grad():
            _store(self.module, storage, weight)
            for module in self.modules:
                _refresh(module, weight, first, self.output_dim)

    def _tensor(self) -> Tensor:
        return _storage(self.module)[-1]


class Layers(Mapping[str, Layer]):
    """The layers that a verb touched: a mapping from name to :class:`Layer` that prints as a table.

    Attributes:
        not_covered: weight matrices of layer kinds that specreg does not take (attention's input projection, a
            recurrent layer), by qualified name.
    """

    def __init__(self, layers: Iterable[Layer], title: str = "layers", not_covered: Iterable[str] = ()) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._title = title
        self.not_covered = tuple(not_covered)

    def __getitem__(self, name: str) -> Layer:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"<{self._title}: {', '.join(map(shown, self)) or 'none'}>"

    def __str__(self) -> str:
        rows = [(shown(name), layer.kind, *_describe(layer)) for name, layer in self.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.not_covered:
            lines.append(f"not covered: {', '.join(self.not_covered)}")
        return "\n".join([f"{self._title}: {len(self)} layer{'s' if len(self) != 1 else ''}", *lines])


def shown(name: str) -> str:
    """Return a layer's name as messages show it."""
    return name or "(the module itself)"


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name or glob, as ``only`` and ``skip`` take them, stands for the layer of this name."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's and data parallelism's wrappers, so that names do not change."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def find(
    module: nn.Module,
    *,
    kinds: tuple[type[nn.Module], ...] = DEFAULT_KINDS,
    only: Selection = None,
    skip: Selection = None,
    title: str = "layers",
) -> Layers:
    """Find the layers to work on; a weight shared by several modules is one layer.

    Args:
        module: searched with all its children.
        kinds: layer classes taken when ``only`` is not given.
        only: take just these, of every kind in ``ALL_KINDS``: a name, a glob on names, a class, a predicate
            ``(name, module) -> bool``, or several of them. A name stands for everything below it too.
        skip: leave these out; the same forms.
        title: heads the printed report.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: nothing matched, or a name in ``only`` or ``skip`` matches no layer.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    module = unwrap(module)
    candidates = [(name, child) for name, child in plainly_named_modules(module) if _has_weight(child)]
    chosen = _selectors("only", only, candidates) if only is not None else [kinds]
    skipped = _selectors("skip", skip, candidates)
    matched = [
        (name, child)
        for name, child in candidates
        if any(_selects(selector, name, child) for selector in chosen)
        and not any(_selects(selector, name, child) for selector in skipped)
    ]
    if not matched:
        raise ValueError(f"no layer matched{_filters(only, skip)}: {_inventory(module, candidates)}")
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, child in matched:
        stored = _storage(child)[-1]
        if isinstance(stored, nn.UninitializedParameter):
            raise ValueError(f"layer {shown(name)!r} has no weight yet (lazy module): run one forward pass first")
        if stored.is_meta:
            raise ValueError(f"layer {shown(name)!r} is on the meta device: give it memory and values first (to_empty)")
        if hasattr(stored, "device_mesh"):
            raise ValueError(f"layer {shown(name)!r} is sharded between processes, which specreg cannot read")
        if stored.numel() == 0:
            size = " x ".join(map(str, stored.shape))
            raise ValueError(f"layer {shown(name)!r} has an empty weight, {size}: leave it out with skip={name!r}")
        # A foreign parametrization makes a new tensor at each reading: it stands for itself.
        users.setdefault(id(_foreign(child) or stored), []).append((name, child))
    return Layers(
        (
            Layer(shared[0][0], tuple(child for _, child in shared), tuple(name for name, _ in shared[1:]))
            for shared in users.values()
        ),
        title,
        _not_covered(module),
    )


def stored_weight(module: nn.Module) -> Tensor:
    """Return the stored weight (see the module's docstring), detached; nothing is changed."""
    with torch.no_grad():
        if (foreign := _foreign(module)) is not None:
            # An unknown parametrization: evaluate a copy, in eval mode, so that no state of the original moves.
            evaluated: Tensor = copy.deepcopy(foreign).eval()().detach()
            return evaluated
        storage = _storage(module)
        weight = storage[0].detach()
        if len(storage) == 2:
            weight = torch._weight_norm(storage[1], storage[0], _weight_norm_dim(module))
        for changing in _spectrum_changing(module):
            weight = changing(weight)
        return weight


def effective_weight(module: nn.Module) -> Tensor:
    """Return the weight that the network uses, differentiable; nothing is changed.

    Spectral normalization's s1 is the one of its present vectors, without a step of power iteration.
    """
    owner: Any = module
    if hooks := _legacy_hooks(module):
        # The attribute that a legacy hook leaves is of the last forward pass, whose graph may be gone.
        return _computed(hooks[0], module)
    training = [part for outer in _parametrizations(module) for part in outer.modules() if part.training]
    try:
        for part in training:
            part.training = False
        weight: Tensor = owner.weight
    finally:
        for part in training:
            part.training = True
    return weight


def require_writable(layers: Layers) -> None:
    """Raise ValueError for the first layer whose weight is computed from others in a way that specreg does not know."""
    for name, layer in layers.items():
        for module in layer.modules:
            if (foreign := _foreign(module)) is not None:
                cause = ", ".join(type(p).__name__ for p in foreign)
            elif changing := _spectrum_changing(module):
                cause = ", ".join(type(p).__name__ for p in changing)
            elif not isinstance(_storage(module)[-1], nn.Parameter):
                cause = "a hook that derives its weight (pruning, say)"
            else:
                continue
            raise ValueError(
                f"layer {shown(name)!r} is under {cause}, which specreg cannot write through: "
                f"leave it out with skip={name!r}"
            )


def require_parametrizable(module: nn.Module, layers: Layers) -> None:
    """Raise ValueError for what a new parametrization would break.

    That is a layer under the legacy weight_norm, whose hook overwrites the weight, and data parallelism, which has
    hooked the parameters that there were when it wrapped the module, and would not average the new ones' gradients.
    """
    if any(isinstance(child, nn.parallel.DistributedDataParallel) for child in module.modules()):
        raise ValueError(
            "the module is wrapped in DistributedDataParallel, which would not average the gradients of parametrized "
            "weights: wrap it afterwards"
        )
    for name, layer in layers.items():
        if any(isinstance(hook, LegacyWeightNorm) for child in layer.modules for hook in _legacy_hooks(child)):
            raise ValueError(
                f"layer {shown(name)!r} is under the legacy weight_norm, whose hook would undo a parametrization: "
                f"call torch.nn.utils.remove_weight_norm on it, or use "
                f"torch.nn.utils.parametrizations.weight_norm instead"
            )


def memory_format(weight: Tensor) -> torch.memory_format:
    """Return the memory format of a weight: channels_last where it is one."""
    for dimensions, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if weight.ndim == dimensions and weight.is_contiguous(memory_format=form) and not weight.is_contiguous():
            return form
    return torch.contiguous_format


def require_finite(layers: Layers) -> None:
    """Raise ValueError naming the first layer whose stored weight holds NaN or inf."""
    # NaN and inf survive a sum, which costs a twentieth of looking at every entry; finite entries may overflow it.
    sums = [stored_weight(layer.module).sum() for layer in layers.values()]
    if not sums or bool(torch.isfinite(torch.stack([total.to(sums[0].device) for total in sums])).all()):
        return
    for name, layer in layers.items():
        if not bool(torch.isfinite(stored_weight(layer.module)).all()):
            raise ValueError(f"layer {shown(name)!r}: the weight holds NaN or inf; stop and go back to a checkpoint")


def normalizers(module: nn.Module) -> list[_SpectralNorm | LegacySpectralNorm]:
    """Return torch's spectral normalizations of the module's weight, parametrizations and legacy hooks."""
    owners = [*_parametrizations(module), *_legacy_hooks(module)]
    return [owner for owner in owners if isinstance(owner, (_SpectralNorm, LegacySpectralNorm))]


class SpectrumPreserving(nn.Module):
    """Base of parametrizations whose matrix keeps the singular vectors, so that the original may be edited."""


class SpectrumChanging(nn.Module):
    """Base of parametrizations without state that give the matrix a spectrum of their own: read through, not written.

    They stand before spectral normalization, if there is any.
    """


def _spectrum_changing(module: nn.Module) -> list[nn.Module]:
    return [part for part in _parametrizations(module) if isinstance(part, SpectrumChanging)]


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    parametrizations = _parametrization_list(module)
    return [] if parametrizations is None else list(parametrizations._modules.values())


def _parametrization_list(module: nn.Module) -> Any:
    lists = module._modules.get("parametrizations")
    return lists._modules.get("weight") if isinstance(lists, nn.ModuleDict) else None


def _legacy_hooks(module: nn.Module) -> list[LegacySpectralNorm | LegacyWeightNorm]:
    if not module._forward_pre_hooks:
        return []
    return [
        hook
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, (LegacySpectralNorm, LegacyWeightNorm)) and hook.name == "weight"
    ]


def _storage(module: nn.Module) -> tuple[Tensor, ...]:
    """Return the tensors behind the weight: (weight,), or (g, v) under weight normalization."""
    owner: Any = module
    if hooks := _legacy_hooks(module):
        return (owner.weight_g, owner.weight_v) if isinstance(hooks[0], LegacyWeightNorm) else (owner.weight_orig,)
    if (parametrizations := _parametrization_list(module)) is None:
        return (owner.weight,)
    if _foreign(module) is not None:
        return (stored_weight(module),)
    if parametrizations.is_tensor:
        return (parametrizations.original,)
    return parametrizations.original0, parametrizations.original1


def _weight_norm_dim(module: nn.Module) -> int:
    candidates: list[Any] = [*_legacy_hooks(module), *_parametrizations(module)]
    dim = next(owner.dim for owner in candidates if isinstance(owner, (LegacyWeightNorm, _WeightNorm)))
    return -1 if dim is None else int(dim)


def _foreign(module: nn.Module) -> ParametrizationList | None:
    """Return the weight's parametrizations where one of them is unknown to specreg."""
    if (parametrizations := _parametrization_list(module)) is None:
        return None
    inner = list(parametrizations._modules.values())
    if inner and isinstance(inner[0], _WeightNorm):
        inner = inner[1:]
    if all(isinstance(part, (_SpectralNorm, SpectrumPreserving, SpectrumChanging)) for part in inner):
        return None
    foreign: ParametrizationList = parametrizations
    return foreign


def _store(module: nn.Module, storage: tuple[Tensor, ...], weight: Tensor) -> None:
    """Overwrite the stored weight in place, its dtype and memory format kept; g and v under weight normalization."""
    if len(storage) == 1:
        storage[0].copy_(weight)
        return
    g, v = storage
    norms = torch.norm_except_dim(weight.to(v.dtype), 2, _weight_norm_dim(module))
    # A row of norm 0 keeps its direction in v: g alone makes it zero, and 0/0 would make it NaN.
    v.copy_(torch.where(norms > 0, weight.to(v.dtype), v))
    g.copy_(norms)


def _refresh(module: nn.Module, weight: Tensor, first: tuple[Tensor, Tensor] | None, output_dim: int) -> None:
    """Point spectral normalization's vectors at the new weight, and the legacy hooks' `weight` at the new value.

    Power iteration that starts from vectors of another matrix under-estimates s1, and the network would
    use a weight of norm above 1 for some steps.
    """
    for normalizer in normalizers(module):
        u, v = _vectors(module, normalizer)
        # The normalizer reads the weight as a matrix of its own: groups stacked, perhaps another dimension first.
        dim = normalizer.dim % weight.ndim
        if first is None or dim != output_dim:
            factors = svd(weight.movedim(dim, 0).flatten(1))
            u.copy_(factors.U[:, 0])
            v.copy_(factors.Vh[0].conj())
        else:
            u.copy_(first[0])
            v.copy_(first[1])
    owner: Any = module
    for hook in _legacy_hooks(module):
        owner.weight = _computed(hook, module)


def _computed(hook: LegacySpectralNorm | LegacyWeightNorm, module: nn.Module) -> Tensor:
    """Return the weight that a legacy hook makes, without a step of power iteration."""
    options = {} if isinstance(hook, LegacyWeightNorm) else {"do_power_iteration": False}
    weight: Tensor = hook.compute_weight(module, **options)
    return weight


def _vectors(module: nn.Module, normalizer: _SpectralNorm | LegacySpectralNorm) -> tuple[Tensor, Tensor]:
    """Return u and v of one of the module's normalizers."""
    owner: Any = module
    if isinstance(normalizer, LegacySpectralNorm):
        return owner.weight_u, owner.weight_v
    return normalizer._u, normalizer._v


def plainly_named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules, named without the wrappers of torch.compile and data parallelism: wrapping renames nothing."""
    wrappers = set()
    for name, child in module.named_modules():
        if isinstance(child, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            wrappers.add(name)
        parts = name.split(".")
        kept = [
            part
            for index, part in enumerate(parts)
            if part != "_orig_mod" and not (part == "module" and ".".join(parts[:index]) in wrappers)
        ]
        yield ".".join(kept), child


def _not_covered(module: nn.Module) -> list[str]:
    return [
        f"{name}.{parameter}" if name else parameter
        for name, child in plainly_named_modules(module)
        if not _has_weight(child) and not isinstance(child, ParametrizationList)
        for parameter, value in child.named_parameters(recurse=False)
        if not isinstance(value, nn.UninitializedParameter) and sum(side > 1 for side in value.shape) > 1
    ]


def _has_weight(module: nn.Module) -> bool:
    if not isinstance(module, ALL_KINDS):
        return False
    return (
        module._parameters.get("weight") is not None or bool(_parametrizations(module)) or bool(_legacy_hooks(module))
    )


def reusable(selection: Selection) -> Selection:
    """Return a selection that may be gone through more than once, as a generator may not."""
    return selection if selection is None or _is_single(selection) else tuple(selection)  # type: ignore[arg-type]


def _is_single(selection: Selection) -> bool:
    return isinstance(selection, (str, type)) or not isinstance(selection, Iterable)


def _selectors(
    option: str, selection: Selection, candidates: list[tuple[str, nn.Module]]
) -> list[Selector | tuple[type, ...]]:
    if selection is None:
        return []
    selectors: list[Any] = [selection] if _is_single(selection) else list(selection)  # type: ignore[arg-type]
    for selector in selectors:
        if not isinstance(selector, (str, type)) and not callable(selector):
            raise TypeError(f"{option}: expected a name, a glob, a layer class or a predicate, got {selector!r}")
        if isinstance(selector, str) and not any(_selects(selector, name, child) for name, child in candidates):
            names = ", ".join(shown(name) for name, _ in candidates) or "none"
            raise ValueError(f"{option}={selector!r} names no layer; the layers are: {names}")
    return selectors


def _selects(selector: Selector | tuple[type, ...], name: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return matches(selector, name)
    if isinstance(selector, (type, tuple)):
        return isinstance(module, selector)
    return bool(selector(name, module))


def _filters(only: Selection, skip: Selection) -> str:
    given = [f"{option}={value!r}" for option, value in (("only", only), ("skip", skip)) if value is not None]
    return f" ({', '.join(given)})" if given else ""


def _inventory(module: nn.Module, candidates: list[tuple[str, nn.Module]]) -> str:
    if candidates:
        return "the layers are " + ", ".join(f"{shown(name)} ({type(child).__name__})" for name, child in candidates)
    # A layer of these kinds would have been found, had it a weight of its own.
    leaves = Counter(
        f"{type(child).__name__} whose weight a hook derives (pruning, say)"
        if isinstance(child, ALL_KINDS)
        else type(child).__name__
        for child in module.modules()
        if not list(child.children())
    )
    inventory = ", ".join(f"{count} x {kind}" for kind, count in sorted(leaves.items()))
    return f"the module holds {inventory or 'nothing'}, specreg takes {', '.join(kind.__name__ for kind in ALL_KINDS)}"


def _describe(layer: Layer) -> tuple[str, str]:
    rows, columns = layer.matrix_shape
    size = f"{rows} x {columns}" if layer.groups == 1 else f"{layer.groups} groups of {rows} x {columns}"
    return size, f"shared with {', '.join(layer.shared_with)}" if layer.shared_with else ""
