"""The layers of a module: find them, name them, read and write their matrices."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from specreg.layers.forwards import is_customized
from specreg.layers.kinds import Kind, is_known, tensor_names, weights_of
from specreg.layers.selection import Selection, plainly_named_modules, predicates, unwrap
from specreg.layers.weights import Weight
from specreg.names import listed, shown

_SHARDED = (
    "the module's weights are sharded between processes, which specreg cannot read: a part of it that is whole, a head "
    "beside sharded features, can be given by itself"
)
# What a class that normalizes its weight itself keeps beside it: power iteration's vectors and its singular values.
_OWN_VECTORS = re.compile(r"(\w*_)?(u|v|sv|sigma)\d*")


@dataclass(frozen=True)
class Layer:
    """One weight of a model and the module (or modules, where it is shared) that use it.

    Attributes:
        name: the module's qualified name, "" for the root itself; followed by the tensor's, if that is not "weight".
        uses: the weight as each module uses it, the named one first.
        shared_with: the names of the others.
        others: as modules use it that were not chosen, in this or in another way, such as an embedding beside a tied
            linear layer.
    """

    name: str
    uses: tuple[Weight, ...] = field(repr=False)
    shared_with: tuple[str, ...] = ()
    others: tuple[Weight, ...] = field(default=(), repr=False)

    @property
    def weight(self) -> Weight:
        """The weight as the first module uses it."""
        return self.uses[0]

    @property
    def tensor(self) -> Tensor:
        """The parameter that is written, under weight normalization the one that has the shape of the weight."""
        return self.weight.storage[-1]

    @property
    def groups(self) -> int:
        return self.weight.groups

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·kernel) of one group's matrix."""
        shape = self.tensor.shape
        rows = shape[1] if self.weight.kind.output_dim == 1 else shape[0] // self.groups
        return rows, shape.numel() // (self.groups * rows)

    @property
    def spectrum_shape(self) -> tuple[int, ...]:
        """The shape of its singular values: (r,), or (groups, r)."""
        return (self.rank,) if self.groups == 1 else (self.groups, self.rank)

    @property
    def rank(self) -> int:
        """r, the number of singular values of one group's matrix."""
        return min(self.matrix_shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def matrix(self) -> Tensor:
        """Read the stored weight as a matrix, detached, shape (out, in·kernel), one leading dimension if grouped."""
        return self.weight.to_matrix(self.weight.stored())

    def used_matrix(self) -> Tensor:
        """Return the matrix of the weight that the network uses, differentiable, of the same shape."""
        return self.weight.to_matrix(self.weight.used())

    @property
    def is_normalized(self) -> bool:
        """Whether all that use the weight divide s1 out, so that the network does not see its scale."""
        return all(weight.is_normalized for weight in (*self.uses, *self.others))

    def write(self, matrix: Tensor, u1: Tensor, v1: Tensor) -> None:
        """Store a matrix in place and refresh what was derived from the old one.

        Args:
            matrix: shape as :meth:`matrix` returns it, any dtype.
            u1, v1: its first singular vectors, (out,) and (in·kernel,), given to spectral normalization's
                power iteration; computed anew where they do not fit.
        """
        weight = self.weight.from_matrix(matrix, self.tensor.shape)
        with torch.no_grad():
            for use in self.uses:
                use.write(weight, u1, v1)
            for use in self.others:
                use.refresh(weight, u1, v1, self.weight.kind.output_dim)


@dataclass(frozen=True)
class LeftOut:
    """What a search passed over, by name."""

    not_covered: tuple[str, ...] = ()  # weight matrices of modules that no class says anything of (specreg.register)
    frozen: tuple[str, ...] = ()  # layers without gradients beside others that have them: a pretrained feature network
    normalizing: tuple[str, ...] = ()  # layers whose class normalizes the weight itself

    def lines(self) -> list[str]:
        titles = ("of no known layer (specreg.register takes its class)", "frozen", "normalized by their class")
        groups = zip(titles, (self.not_covered, self.frozen, self.normalizing), strict=True)
        return [f"left out, {title}: {listed(names)}" for title, names in groups if names]


class Layers(dict[str, Layer]):
    """The layers that a verb touched: a mapping from name to :class:`Layer` that prints as a table.

    Attributes:
        left_out: what was not taken though nobody asked for that.
        are_named: whether ``only`` asked for them.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        title: str = "layers",
        left_out: LeftOut = LeftOut(),
        *,
        are_named: bool = False,
    ) -> None:
        super().__init__({layer.name: layer for layer in layers})
        self._title = title
        self.left_out = left_out
        self.are_named = are_named

    def __repr__(self) -> str:
        return f"<{self._title}: {', '.join(map(shown, self)) or 'none'}>"

    def __str__(self) -> str:
        together = [name for name, layer in self.items() if layer.groups > 1 and layer.weight.normalizers]
        normalized = {name for name, layer in self.items() if all(use.is_normalized for use in layer.uses)}
        weight_normed = [name for name, layer in self.items() if len(layer.weight.storage) == 2]
        bare = [name for name in self if name not in {*normalized, *together, *weight_normed}]
        mixed = len(bare) > 0 and len(normalized) + len(together) > 0
        notes = dict.fromkeys(bare if mixed else (), "not normalized")
        notes |= dict.fromkeys(weight_normed if normalized else (), "weight normalization")
        notes |= dict.fromkeys(together, "normalized, all groups by one norm")
        rows = [(shown(name), *_describe(layer), notes.get(name, "")) for name, layer in self.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += self.left_out.lines()
        if mixed:
            lines.append(
                "not normalized: the network feels the scale of these layers; if they are bare on purpose, leave them "
                "out with skip="
            )
        return "\n".join([f"{self._title}: {len(self)} layer{'s' if len(self) != 1 else ''}", *lines])


def find(
    module: nn.Module,
    *,
    embeddings: bool = False,
    normalizing: bool = True,
    only: Selection = None,
    skip: Selection = None,
    title: str = "layers",
) -> Layers:
    """Find the layers to work on; a weight shared by several modules is one layer, if all use it in one way.

    Layers whose weights need no gradient are left out where others do, unless ``only`` names them: a pretrained feature
    network inside a discriminator. Where none needs a gradient (some trainings switch it for the whole discriminator)
    all are taken.

    Args:
        module: searched with all its children, for weights of torch's layers and of registered classes (see
            :func:`specreg.register`).
        embeddings: whether embeddings are taken when ``only`` is not given.
        normalizing: whether layers are taken whose class normalizes the weight itself.
        only: take just these: a name, a glob on names, a class, a predicate ``(name, module) -> bool``, or several of
            them. A name stands for everything below it too. Of a module that has several places in ``module`` each is
            a name; its layers are called by the first that is taken.
        skip: leave these out; the same forms.
        title: heads the printed report.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: nothing matched, a name in ``only`` or ``skip`` matches no layer, or a layer's weight is no matrix
            of numbers (named, with the reason).
    """
    require_whole(module)
    module = unwrap(module)
    weights: dict[tuple[int, str], Weight] = {}
    candidates = [
        (
            name if attribute == "weight" else f"{name}.{attribute}".lstrip("."),
            weights.setdefault((id(child), attribute), Weight(child, attribute, kind)),
        )
        for name, child in plainly_named_modules(module, repeated=True)
        for attribute, kind in weights_of(child)
    ]
    named = [(name, use.module) for name, use in candidates]
    skipped = predicates("skip", skip, named)
    if only is None:
        chosen = [(name, use) for name, use in candidates if embeddings or not isinstance(use.module, nn.Embedding)]
    else:
        selectors = predicates("only", only, named)
        chosen = [(name, use) for name, use in candidates if any(selects(name, use.module) for selects in selectors)]
    matched = _first_places(
        (name, use) for name, use in chosen if not any(skips(name, use.module) for skips in skipped)
    )
    frozen, own = [], []
    has_trained = only is None and any(_is_trained(use) for _, use in candidates)
    if has_trained:
        frozen = [name for name, use in matched if not _is_trained(use)]
    if not normalizing:
        own = [name for name, use in matched if _normalizes_itself(use)]
    matched = [(name, use) for name, use in matched if name not in frozen and name not in own]
    # Some processes see a part of a weight, in one dimension, some nothing: all say the same.
    is_sharded = any(
        hasattr(child, "_fsdp_wrapped_module") or "_flat_param" in child._parameters for child in module.modules()
    ) or any(hasattr(tensor, "_fsdp_flattened") for _, use in matched for tensor in use.sources)
    if is_sharded and (not matched or any(use.storage[-1].ndim < 2 for _, use in matched)):
        raise ValueError(_SHARDED)
    if not matched:
        raise ValueError(f"no layer matched{_filters(only, skip)}: {_inventory(module, candidates, frozen, own)}")
    users: dict[tuple[Any, ...], list[tuple[str, Weight]]] = {}
    for name, use in matched:
        _check_stored(name, use)
        way = use.kind.output_dim, use.groups, use.gain
        users.setdefault((_stored_id(use), *way), []).append((name, use))
    taken = {id(use) for _, use in matched}
    others: dict[int, list[Weight]] = {}
    for _, use in _first_places(candidates):
        if id(use) not in taken:
            others.setdefault(_stored_id(use), []).append(use)
    layers = []
    for (stored_id, *_), shared in users.items():
        names, uses = zip(*shared, strict=True)
        layers.append(Layer(names[0], uses, names[1:], tuple(others.get(stored_id, ()))))
    left_out = LeftOut(tuple(_not_covered(module, only_trained=has_trained)), tuple(frozen), tuple(own))
    return Layers(layers, title, left_out, are_named=only is not None)


def _first_places(named: Iterable[tuple[str, Weight]]) -> list[tuple[str, Weight]]:
    """Return each weight once, by the first of its names."""
    first: dict[int, tuple[str, Weight]] = {}
    for name, use in named:
        first.setdefault(id(use), (name, use))
    return list(first.values())


def require_whole(module: nn.Module) -> None:
    """Raise TypeError if it is no module, ValueError if ``fully_shard`` has taken it: what is written gets lost."""
    if not isinstance(module, nn.Module):
        several = ": put them into a torch.nn.ModuleDict" if isinstance(module, (list, tuple, Mapping)) else ""
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}{several}")
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # which has been imported then
    if fsdp is not None and any(isinstance(child, fsdp.FSDPModule) for child in module.modules()):
        raise ValueError(_SHARDED)


def _stored_id(use: Weight) -> int:
    # A foreign parametrization makes a new tensor at each reading: it stands for itself.
    return id(use.foreign or use.storage[-1])


def _check_stored(name: str, use: Weight) -> None:
    """Raise ValueError, which says why, if there is no matrix in the tensor behind a weight."""
    stored, advice = use.storage[-1], f"leave it out with skip={name!r}"
    if isinstance(stored, nn.UninitializedParameter):
        raise ValueError(f"layer {shown(name)!r} has no weight yet (lazy module): run one forward pass first")
    if stored.is_meta:
        raise ValueError(f"layer {shown(name)!r} is on the meta device: give it memory and values first (to_empty)")
    if hasattr(stored, "device_mesh"):
        raise ValueError(f"layer {shown(name)!r} is sharded between processes, which specreg cannot read")
    size = " x ".join(map(str, stored.shape))
    if stored.ndim < 2:
        raise ValueError(f"layer {shown(name)!r} has a weight of the shape ({size}), no matrix: {advice}")
    if stored.numel() == 0:
        raise ValueError(f"layer {shown(name)!r} has an empty weight, {size}: {advice}")
    if stored.shape[0] % use.groups:
        raise ValueError(f"layer {shown(name)!r} has a weight of {size}, which is no {use.groups} groups: {advice}")
    if not (stored.is_floating_point() or stored.is_complex()) or stored.itemsize < 2:
        raise ValueError(
            f"layer {shown(name)!r} has a weight of {str(stored.dtype).removeprefix('torch.')}, in which specreg "
            f"cannot compute: work on the weights in 16 bits or more that it was made from, or {advice}"
        )


def _not_covered(module: nn.Module, *, only_trained: bool = False) -> Iterator[str]:
    for name, child in plainly_named_modules(module):
        if isinstance(child, (ParametrizationList, nn.LayerNorm, nn.RMSNorm)):  # the latter scale entry by entry
            continue
        covered = {attribute for attribute, _ in weights_of(child)}
        for attribute in tensor_names(child):
            if attribute in covered or attribute in child._buffers:
                continue
            tensors = Weight(child, attribute, Kind(type(child))).sources
            if only_trained and not any(tensor.requires_grad for tensor in tensors):
                continue
            made = [tensor for tensor in tensors if not isinstance(tensor, nn.UninitializedParameter)]
            if any(sum(side > 1 for side in tensor.shape) > 1 for tensor in made):
                yield f"{name}.{attribute}".lstrip(".")


def _is_trained(use: Weight) -> bool:
    return any(tensor.requires_grad for tensor in use.sources)


def _normalizes_itself(use: Weight) -> bool:
    module = use.module
    return (
        is_customized(module)
        and use.legacy_hook is None
        and any(_OWN_VECTORS.fullmatch(name) is not None for name in module._buffers)
    )


def _filters(only: Selection, skip: Selection) -> str:
    given = [f"{option}={value!r}" for option, value in (("only", only), ("skip", skip)) if value is not None]
    return f" ({', '.join(given)})" if given else ""


def _inventory(module: nn.Module, candidates: list[tuple[str, Weight]], frozen: list[str], own: list[str]) -> str:
    if own:
        return f"{', '.join(map(shown, own))} are normalized by their own class already"
    if frozen:
        return f"{', '.join(map(shown, frozen))} need no gradient, where others do: name them with only to take them"
    if candidates:
        return "the layers are " + ", ".join(f"{shown(name)} ({type(use.module).__name__})" for name, use in candidates)
    # A layer of a class that is known would have been found, had it a weight of its own.
    leaves = Counter(
        f"{type(child).__name__} whose weight a hook derives (pruning, say) or a module around it"
        if is_known(child)
        else _class_name(child)
        for child in module.modules()
        if not list(child.children())
    )
    inventory = ", ".join(f"{count} x {kind}" for kind, count in sorted(leaves.items()))
    # What is pruned is no class to register; a wrapper that keeps the weight of what it wraps is (SAGAN's, torchgan's).
    owners = dict(plainly_named_modules(module))
    unknown = LeftOut(tuple(name for name in _not_covered(module) if not is_known(owners[name.rpartition(".")[0]])))
    text = (
        f"the module holds {inventory or 'nothing'}, specreg takes convolutions, linear layers, embeddings, weights of "
        f"attention and recurrent layers, and what specreg.register was told of"
    )
    return "; ".join([text, *unknown.lines()])


def _class_name(module: nn.Module) -> str:
    """Return a class's name, with its module where torch has another class of that name."""
    kind = type(module)
    has_namesake = getattr(nn, kind.__name__, kind) is not kind
    return f"{kind.__module__}.{kind.__name__}" if has_namesake else kind.__name__


def _describe(layer: Layer) -> tuple[str, str, str]:
    rows, columns = layer.matrix_shape
    size = f"{rows} x {columns}" if layer.groups == 1 else f"{layer.groups} groups of {rows} x {columns}"
    return layer.weight.kind.name, size, f"shared with {', '.join(layer.shared_with)}" if layer.shared_with else ""
