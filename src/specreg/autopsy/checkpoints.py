"""Find the weight matrices in a checkpoint file: names, shapes, and how to read each alone.

A checkpoint is a foreign file: nothing in it is executed, and its names are made printable before they are shown. Which
tensors make a layer's *stored* weight follows the rules of ``specreg.layers``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from specreg.autopsy.formats import find_file, read_tensors
from specreg.autopsy.kinds import is_fixed_filter, is_judged, is_modulated, modulated_layers, num_kernels
from specreg.autopsy.scales import scale_of, scaled
from specreg.autopsy.tensors import OBSTACLES, Stored
from specreg.layers.selection import named
from specreg.names import listed, suggestion

_MOST_KERNELS = 64  # of a bank that are shown
# What else than a network tensors are of, by their names; the last are past spectra and older copies.
_FOREIGN = {
    "of an optimizer": re.compile(r"(?i)optim(?!al|um|us)|exp_avg|momentum_buffer|square_avg"),
    "of a monitor's, a compensator's or a pin's state": re.compile(
        r"(?:^|\.)(?:history\.layers|compensator\.record|kept\.\d+)\."
    ),
}
_WEIGHT = re.compile(r"(\w*_)?(weight|kernel)s?\d*(_(ih|hh|hr)_l\d+(_reverse)?)?")
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.original(1?)", re.DOTALL)
_UNNAMED, _UNSCALED = "not named like a weight", "of eight bits with scales of an unknown kind"
_REMEDIES = OBSTACLES | {_UNSCALED: "save the weights themselves, of 16 bits"}
_UNFIT = "of parts that do not fit each other"
_INTEGER_MASK = ("mask", "of integers")
# Wrappers of torch.compile, FSDP, Fabric and activation checkpointing, and of data parallelism.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_forward_module|_checkpoint_wrapped_module|module)\.")


@dataclass(frozen=True)
class Weight:
    """One layer's stored weight in a checkpoint."""

    name: str  # of the module, or of the parameter if that is not called weight; of a bank's kernels with a number
    shape: tuple[int, ...]  # as it is read, without a leading 1 of modulated convolutions
    output_dim: int  # the dimension of the outputs, 0 or 1
    read: Callable[[], Tensor] = field(repr=False)  # reads it from the file, in single or double precision
    judged: bool = True  # whether a collapse would show in its spectrum: see autopsy.kinds.is_judged


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a checkpoint.

    Attributes:
        path: as it was given.
        weights: in the file's order; by name in a safetensors file, which has no order.
        left_out: reason -> number of tensors of two dimensions and more that were left out.
    """

    path: Path
    weights: tuple[Weight, ...]
    left_out: Mapping[str, int]


def open_checkpoint(
    path: Path, *, only: Sequence[str] = (), skip: Sequence[str] = (), transposed: Sequence[str] = ()
) -> Checkpoint:
    """Find the weight matrices in a checkpoint: safetensors, files of ``torch.save``, indices of several, and others.

    Args:
        path: the file, or a folder that holds one checkpoint.
        only: the layers to take, names or globs; a name stands for everything below it. A tensor that is not named
            like a weight is taken if it is named in full.
        skip: the layers to leave out.
        transposed: the transposed convolutions, whose outputs are dimension 1. A checkpoint shows them only by
            spectral normalization's vectors.

    Raises:
        ValueError: there is no such file, it is damaged or of a format that is not read, it holds no weight matrix, or
            a name matches no layer.
    """
    tensors, others = read_tensors(find_file(path))
    tensors = _unwrapped(tensors)
    layers, left_out, takeable = _layers(tensors, only)
    if not layers:
        raise ValueError(f"{path} holds no weight matrix, but {_rest(list(tensors), left_out + others, takeable)}")
    taken: dict[str, set[str]] = {}
    for option, patterns in (("--only", only), ("--skip", skip), ("--transposed", transposed)):
        taken[option] = {name for pattern in patterns for name in named(pattern, layers)}
        for pattern in patterns:
            if not named(pattern, layers):
                raise ValueError(
                    f"{option} {pattern!r} names no layer of {path}{suggestion(pattern, layers)}; the layers are: "
                    f"{listed(list(layers))}"
                )
    weights = tuple(
        replace(weight, output_dim=1) if name in taken["--transposed"] else weight
        for name, weight in layers.items()
        if (not only or name in taken["--only"]) and name not in taken["--skip"]
    )
    if not weights:
        raise ValueError(f"--skip leaves no layer of {path}")
    return Checkpoint(path, weights, left_out + others)


def _unwrapped(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return tensors by their names without those of wrappers, but where two tensors would have the same."""
    plain = {name: _WRAPPERS.sub("", name) for name in tensors}
    counts = Counter(plain.values())
    return {name if counts[plain[name]] > 1 else plain[name]: tensor for name, tensor in tensors.items()}


def _rest(names: list[str], left_out: Counter[str], takeable: list[str]) -> str:
    """Say what a file without weights holds, and what can be done about it."""
    if takeable:
        return f"{len(takeable)} other matrices ({listed(takeable)}): name those to take with --only"
    if left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        remedies = "; ".join(f"{reason}: {_REMEDIES[reason]}" for reason in left_out if _REMEDIES.get(reason))
        return f"tensors that are left out, {counts}: {remedies or 'name another file'}"
    return f"{len(names)} tensors of one dimension{f' ({listed(names)})' if names else ''}: name another file"


@dataclass(frozen=True)
class _Parts:
    """A tensor's layer and parameter, and the companions that make the weight with it, by role (g, u, mask)."""

    layer: str
    parameter: str
    companions: Mapping[str, str] = field(default_factory=dict)
    composed: bool = True


def _layers(tensors: Mapping[str, Stored], only: Sequence[str]) -> tuple[dict[str, Weight], Counter[str], list[str]]:
    """Put the tensors together to layers, in the tensors' order.

    Returns:
        The layers' weights by name; how many tensors are left out, by reason; and which of those ``only`` would take.
    """
    many = [name for name, tensor in tensors.items() if len(tensor.shape) > 1 and 0 not in tensor.shape]
    reasons = {name: next((why for why, pattern in _FOREIGN.items() if pattern.search(name)), "") for name in many}
    candidates = {name: _parts(name, tensors) for name in many if not reasons[name]}
    left_out = Counter(filter(None, reasons.values()))
    companions = {name for parts in candidates.values() for name in parts.companions.values()}
    beside: dict[str, list[str]] = {}
    for name in tensors:
        module, _, last = name.rpartition(".")
        beside.setdefault(module, []).append(last)
    scales = {name: scale_of(name, tensors, beside) for name in candidates if tensors[name].eight_bits}
    companions.update(scale for scale, _ in scales.values() if scale)
    weights: dict[str, Weight] = {}
    takeable = []
    # A weight may be stored beside the tensors that it was derived from: they come first, and it is no second layer.
    for name, parts in sorted(candidates.items(), key=lambda item: not item[1].composed):
        if name in companions or parts.layer in weights:
            continue
        stored, named_in_full = tensors[name], parts.layer in only
        scale, multiplies = scales.get(name, ("", True))
        if obstacle := stored.obstacle or _obstacle(parts, tensors, stored.shape):
            left_out[obstacle] += 1
        elif not parts.composed and _WEIGHT.fullmatch(parts.parameter) is None and not named_in_full:
            left_out[_UNNAMED] += 1
            takeable.append(parts.layer)
        elif not multiplies:
            left_out[_UNSCALED] += 1
        elif not named_in_full and is_fixed_filter(parts.layer, parts.parameter, stored.shape, stored.read):
            left_out["fixed filters"] += 1
            takeable.append(parts.layer)
        elif num_kernels(stored.shape) > _MOST_KERNELS:
            left_out[f"banks of more than {_MOST_KERNELS} kernels"] += 1
        else:
            weights[parts.layer] = _weight(parts, name, tensors, tensors[scale] if scale else None)
    ordered = [weights[parts.layer] for parts in candidates.values() if parts.layer in weights]
    modulated = modulated_layers(tensors)
    matrices = [matrix for weight in ordered for matrix in _matrices(weight, has_style=weight.name in modulated)]
    return {matrix.name: matrix for matrix in matrices}, +left_out, takeable


def _obstacle(parts: _Parts, tensors: Mapping[str, Stored], shape: tuple[int, ...]) -> str:
    """Return what keeps a companion from being applied to a tensor of a shape."""
    for role, fits in (("g", _broadcasts), ("mask", tuple.__eq__)):
        if (name := parts.companions.get(role)) is not None:
            obstacle = tensors[name].obstacle
            if obstacle and (role, obstacle) != _INTEGER_MASK:
                return obstacle
            if not fits(tensors[name].shape, shape):
                return _UNFIT
    return ""


def _matrices(weight: Weight, *, has_style: bool) -> Iterator[Weight]:
    """Yield the weights that are matrices each: a bank's kernels, a modulated convolution's without its leading 1."""
    num = num_kernels(weight.shape)
    if is_modulated(weight.shape, has_style=has_style):
        yield _kernel(weight, weight.name, 0)
    elif num == 1:
        yield replace(weight, judged=is_judged(weight.name, weight.shape))
    else:
        yield from (_kernel(weight, f"{weight.name}.{index}", index) for index in range(num))


def _kernel(weight: Weight, name: str, index: int) -> Weight:
    shape = weight.shape[1:]
    return Weight(name, shape, 0, lambda: weight.read()[index], is_judged(name, shape))


def _parts(name: str, tensors: Mapping[str, Stored]) -> _Parts:
    if match := _PARAMETRIZED.fullmatch(name):
        module, parameter, second = match[1] or "", match[2], match[3]
        base = name.removesuffix("1") if second else name
        chain = base.removesuffix("original")
        # Spectral normalization may follow another parametrization, weight normalization for instance.
        vectors = (f"{chain}{position}._u" for position in range(4))
        companions = {"u": next((name for name in vectors if name in tensors), ""), "g": f"{base}0" if second else ""}
    else:
        module, _, last = name.rpartition(".")
        parameter, _, ending = last.rpartition("_")
        stem = name.removesuffix(f"_{ending}")
        if parameter and ending == "v" and f"{stem}_g" in tensors:
            companions = {"g": f"{stem}_g"}
        # torch's spectral normalization and pruning have _orig, a widespread spectral normalization by hand has _bar.
        elif parameter and ending in ("orig", "bar"):
            companions = {"u": f"{stem}_u", "mask": f"{stem}_mask"}
        else:
            return _Parts(_layer(module, last), last, composed=False)
    # A tensor's own name may be "", which stands here for none.
    present = {role: companion for role, companion in companions.items() if companion and companion in tensors}
    return _Parts(_layer(module, parameter), parameter, present)


def _layer(module: str, parameter: str) -> str:
    return module if module and parameter == "weight" else f"{module}.{parameter}" if module else parameter


def _weight(parts: _Parts, name: str, tensors: Mapping[str, Stored], scale: Stored | None) -> Weight:
    shape = tensors[name].shape
    companions = {role: tensors[companion] for role, companion in parts.companions.items()}
    u = companions["u"].shape if "u" in companions else shape[:1]
    output_dim = 1 if u[-1:] == shape[1:2] and u[-1:] != shape[:1] else 0
    read = partial(_read, tensors[name], companions.get("g"), companions.get("mask"), scale)
    return Weight(parts.layer, shape, output_dim, read)


def _broadcasts(g: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return not g or (len(g) == len(shape) and all(small in (1, large) for small, large in zip(g, shape, strict=True)))


def _read(stored: Stored, g: Stored | None, mask: Stored | None, scale: Stored | None) -> Tensor:
    weight = _single(stored.read())
    if scale is not None:
        weight = scaled(weight, _single(scale.read()))
    if g is not None:
        norms = _single(g.read())
        dims = [dim for dim in range(weight.ndim) if norms.ndim == 0 or norms.shape[dim] == 1]
        weight = weight * (norms / torch.linalg.vector_norm(weight, dim=dims, keepdim=True))
    if mask is not None:
        weight = weight * mask.read()
    return weight


def _single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
