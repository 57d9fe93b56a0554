"""Find the weight matrices in a checkpoint file: names, shapes, and how to read each alone.

A checkpoint is a foreign file: nothing in it is executed, and its names are made printable before they are shown. Which
tensors make a layer's *stored* weight follows the rules of ``specreg.layers``.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specreg.files import check_file, check_stored, exists, read_json
from specreg.layers import matches, shown
from specreg.names import printable

_BLUR = 8  # largest side of filters against aliasing, buffers of StyleGAN's ports that are no layers
INDEX = ".safetensors.index.json"
_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".th", ".pkl")
# Integers and the formats below 8 bits are left out: they need scales that other tensors hold.
_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_FLOATING_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16} | {
    getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")
}
_OPTIMIZER = re.compile(r"optimizer|exp_avg|momentum_buffer", re.IGNORECASE)
_WEIGHT = re.compile(r"(\w*_)?(weight|kernel)s?\d*(_(ih|hh|hr)_l\d+(_reverse)?)?")
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.original(1?)", re.DOTALL)
# Messages of torch's unpickler on objects that it refuses without naming them.
_REFUSALS = ("Unsupported class", "unrecognized function", "Can only build", "Can only create", "TorchScript")


@dataclass(frozen=True)
class Weight:
    """One layer's stored weight in a checkpoint.

    Attributes:
        name: of the module, or of the parameter if that is not called ``weight``.
        shape: of the weight.
        output_dim: the dimension of the outputs, 0 or 1.
        read: reads it from the file, in single or double precision.
    """

    name: str
    shape: tuple[int, ...]
    output_dim: int
    read: Callable[[], Tensor] = field(repr=False)


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


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    floating: bool
    read: Callable[[], Tensor]


def open_checkpoint(
    path: Path, *, only: Sequence[str] = (), skip: Sequence[str] = (), transposed: Sequence[str] = ()
) -> Checkpoint:
    """Find the weight matrices in a safetensors file, an index of several, or a file of ``torch.save``.

    Args:
        path: the file, or a folder that holds one checkpoint.
        only: the layers to take, names or globs; a name stands for everything below it. A tensor that is not named
            like a weight is taken if it is named in full.
        skip: the layers to leave out.
        transposed: the transposed convolutions, whose outputs are dimension 1. A checkpoint shows them only by
            spectral normalization's vectors.

    Raises:
        ValueError: there is no such file, it is damaged or no checkpoint, it could be read only by running code in it,
            it holds no weight matrix, or a name matches no layer.
    """
    tensors = _tensors(_file(path))
    layers, left_out = _layers(tensors, only)
    if not layers:
        names = f" ({_listed(list(tensors))})" if tensors else ""
        raise ValueError(
            f"{path} holds no weight matrix, but {len(tensors)} other tensors{names}: name those to take with --only"
        )
    for option, patterns in (("--only", only), ("--skip", skip), ("--transposed", transposed)):
        for pattern in patterns:
            if not any(matches(pattern, name) for name in layers):
                raise ValueError(f"{option} {pattern!r} names no layer of {path}; the layers are: {_listed(layers)}")
    weights = tuple(
        replace(weight, output_dim=1) if _matches_any(transposed, name) else weight
        for name, weight in layers.items()
        if (not only or _matches_any(only, name)) and not _matches_any(skip, name)
    )
    if not weights:
        raise ValueError(f"--skip leaves no layer of {path}")
    return Checkpoint(path, weights, left_out)


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


def _file(path: Path) -> Path:
    if not exists(path):
        raise ValueError(f"there is no checkpoint {path}: check the name")
    if not path.is_dir():
        return path
    try:
        files = sorted(path.iterdir())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    candidates = [file for file in files if file.name.endswith(INDEX)]
    candidates = candidates or [file for file in files if file.suffix.lower() in _ENDINGS and file.is_file()]
    if len(candidates) != 1:
        names = f" ({_listed([file.name for file in candidates])})" if candidates else ""
        raise ValueError(f"the folder {path} holds {len(candidates) or 'no'} checkpoints{names}: name the one file")
    return candidates[0]


def _tensors(path: Path) -> dict[str, _Stored]:
    """Return all tensors in a file, by name. The first bytes tell the format; endings do not."""
    check_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the file and the disk") from error
    if not head:
        raise ValueError(f"{path} is empty: copy or download it again")
    if path.name.endswith(INDEX):
        return _sharded(path)
    if head[:2] == b"PK" or (head[:1] == b"\x80" and path.suffix != ".safetensors" and head[8:9] != b"{"):
        return _pickled(path, zipped=head[:2] == b"PK")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _safetensors(path)
    if head.startswith(b"version https://"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: get that with git lfs pull")
    raise ValueError(f"{path} is neither a safetensors file nor one of torch.save: convert it into one of them")


def _safetensors(path: Path) -> dict[str, _Stored]:
    try:
        file: Any = safe_open(path, framework="pt")
        tensors = {}
        for name in sorted(file.keys(), key=_natural):
            entry = file.get_slice(name)
            read = partial(file.get_tensor, name)
            tensors[name] = _Stored(tuple(entry.get_shape()), entry.get_dtype() in _FLOATING, read)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return tensors


def _sharded(path: Path) -> dict[str, _Stored]:
    index = read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{path} is no index of safetensors files: it has no weight_map of file names")
    tensors: dict[str, _Stored] = {}
    for shard in sorted(set(shards.values())):
        # An index may come from anywhere and must not lead out of its folder.
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{path} names the file {shard!r}: a shard is a .safetensors file in the index's folder")
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names {shard!r}, which is not in its folder: copy or download it too")
        tensors |= _tensors(path.parent / shard)
    if missing := [name for name in shards if name not in tensors]:
        raise ValueError(f"{path} names tensors that its files lack ({_listed(missing)}): download them again")
    return {name: tensors[name] for name in sorted(tensors, key=_natural)}


def _pickled(path: Path, *, zipped: bool) -> dict[str, _Stored]:
    try:
        if zipped:
            check_stored(path)
        # weights_only makes tensors and plain values and calls nothing that the file names. The old format, which is
        # no zip file, cannot be mapped into memory.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns before it fails on an odd file
            root = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        named_tensors = list(_walk(root))
    except Exception as error:  # a damaged pickle makes its reader fail anywhere
        message = str(error)
        class_name = re.search(r"GLOBAL (\S+)", message)
        refused = isinstance(error, RuntimeError) or type(error).__name__ == "UnpicklingError"
        if refused and (class_name or any(part in message for part in _REFUSALS)):
            content = f"Python objects ({printable(class_name[1])})" if class_name else "Python objects or code"
            raise ValueError(
                f"{path} holds {content}, which only running code could restore, so it was refused and nothing of it "
                f"was run: save model.state_dict() with torch.save or as safetensors, and inspect that"
            ) from error
        raise _damaged(path, error) from error
    tensors: dict[str, _Stored] = {}
    for name, tensor in named_tensors:
        if name in tensors:
            raise ValueError(f"{path} holds two tensors named {name!r}")
        tensors[name] = _Stored(tuple(tensor.shape), tensor.dtype in _FLOATING_TYPES, tensor.detach)
    return tensors


def _walk(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts and lists under dotted names; containers in a circle are visited once."""
    pending: list[tuple[str, Any]] = [("", root)]
    visited: set[int] = set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            # A view may claim to be far larger than its storage, and fill the memory when it is read; on the device
            # "meta" there is no storage.
            dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if dense and value.untyped_storage().nbytes() >= value.numel() * value.itemsize:
                yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in visited:
            visited.add(id(value))
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            pending += [(f"{name}.{key}" if name else str(key), item) for key, item in reversed(items)]


@dataclass(frozen=True)
class _Parts:
    """A tensor's layer and parameter, and the companions that make the weight with it, by role (g, u, mask)."""

    layer: str
    parameter: str
    companions: Mapping[str, str] = field(default_factory=dict)
    composed: bool = True


def _layers(tensors: Mapping[str, _Stored], only: Sequence[str]) -> tuple[dict[str, Weight], Counter[str]]:
    """Put the tensors together to layers, in the tensors' order; also count those left out, by reason."""
    matrices = [name for name, tensor in tensors.items() if len(tensor.shape) > 1 and 0 not in tensor.shape]
    candidates = {name: _parts(name, tensors) for name in matrices if _OPTIMIZER.search(name) is None}
    left_out = Counter({"of an optimizer": len(matrices) - len(candidates)})
    companions = {name for parts in candidates.values() for name in parts.companions.values()}
    weights: dict[str, Weight] = {}
    # A weight may be stored beside the tensors that it was derived from: they come first, and it is no second layer.
    for name, parts in sorted(candidates.items(), key=lambda item: not item[1].composed):
        if name in companions or parts.layer in weights:
            continue
        shape = tensors[name].shape
        if not parts.composed and _WEIGHT.fullmatch(parts.parameter) is None and parts.layer not in only:
            left_out["not named like a weight"] += 1
        elif not tensors[name].floating:
            left_out["of integers, complex or quantized"] += 1
        elif parts.parameter == "kernel" and len(shape) == 2 and max(shape) <= _BLUR and parts.layer not in only:
            left_out["a blur's kernel"] += 1
        else:
            weights[parts.layer] = _weight(parts, name, tensors)
    ordered = {parts.layer: weights[parts.layer] for parts in candidates.values() if parts.layer in weights}
    return ordered, +left_out


def _parts(name: str, tensors: Mapping[str, _Stored]) -> _Parts:
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
    present = {role: companion for role, companion in companions.items() if companion in tensors}
    return _Parts(_layer(module, parameter), parameter, present)


def _layer(module: str, parameter: str) -> str:
    return module if module and parameter == "weight" else f"{module}.{parameter}" if module else parameter


def _weight(parts: _Parts, name: str, tensors: Mapping[str, _Stored]) -> Weight:
    shape = tensors[name].shape
    companions = {role: tensors[companion] for role, companion in parts.companions.items()}
    for role, fits in (("g", _broadcasts), ("mask", tuple.__eq__)):
        if role in companions and not fits(companions[role].shape, shape):
            raise ValueError(f"layer {shown(parts.layer)!r}: {parts.companions[role]!r} does not fit {name!r}")
    u = companions["u"].shape if "u" in companions else shape[:1]
    output_dim = 1 if u[-1:] == shape[1:2] and u[-1:] != shape[:1] else 0
    read = partial(_read, tensors[name], companions.get("g"), companions.get("mask"))
    return Weight(parts.layer, shape, output_dim, read)


def _broadcasts(g: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return not g or (len(g) == len(shape) and all(small in (1, large) for small, large in zip(g, shape, strict=True)))


def _read(stored: _Stored, g: _Stored | None, mask: _Stored | None) -> Tensor:
    weight = _single(stored.read())
    if g is not None:
        norms = _single(g.read())
        lengths = weight
        for dim in range(weight.ndim):
            if norms.ndim == 0 or norms.shape[dim] == 1:
                lengths = torch.linalg.vector_norm(lengths, dim=dim, keepdim=True)
        weight = weight * (norms / lengths)
    if mask is not None:
        weight = weight * mask.read()
    return weight


def _single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort blocks.2 before blocks.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]{1,18})", name)]


def _listed(names: Sequence[str] | Mapping[str, Any], most: int = 8) -> str:
    listed = ", ".join(printable(name) for name in list(names)[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = printable(str(error).strip().split("\n")[0][:120]) or type(error).__name__
    return ValueError(f"{path} is damaged or incomplete ({reason}): copy or download it again")
