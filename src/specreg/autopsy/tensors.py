"""Tensors within a file: what a pickle says of them, checked against what the file has, and read one at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specreg.files import file_stamp, reading
from specreg.pickles import Array, Bytes, Global, Object, numpy_array

# What keeps a tensor from being read as a weight, and what whoever has the model can do about it.
OBSTACLES = {
    "of integers": "",
    "of Python objects": "",
    "of complex numbers": "",
    "quantized": "save model.dequantize() or the weights' .dequantize()",
    "sparse": "save their .to_dense()",
    "without values, on the device meta": "give the model its weights before it is saved",
    "of a wrapping class": "save what it wraps, for instance its .full_tensor() or .dequantize()",
    "nested": "save their .unbind()",
    "of other bytes' order": "save them on a little-endian machine",
    "views larger than their storage": "save their .clone()",
    "reaching beyond their storage": "",
}  # fmt: skip
_LARGEST = 1 << 62
_MOST_ARGUMENTS = 16  # of a call that makes a tensor
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
# The functions of torch that make tensors, by what their arguments are.
_OBSTRUCTED = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_qtensor": "quantized", "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without values, on the device meta",
    "_rebuild_wrapper_subclass": "of a wrapping class",
}  # fmt: skip
_STRIDED = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_WRAPPERS = (  # the tensor is their first argument
    "Parameter", "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_xla_tensor",
)  # fmt: skip
_TYPED = ("_rebuild_from_type", "_rebuild_from_type_v2")
_NAMES = {*_OBSTRUCTED, *_STRIDED, *_WRAPPERS, *_TYPED}
_MODULES = ("torch._utils", "torch._tensor", "torch.nn.parameter")
_ARRAY_TYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool,
    "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
    "u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64,
}  # fmt: skip
_FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16} | {
    _DTYPES[f"float8_{kind}"] for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]  # (1, 1) where the file does not say it
    read: Callable[[], Tensor] = field(repr=False)  # ValueError where that cannot be done
    obstacle: str = ""  # one of OBSTACLES, or "" if it may be a weight
    eight_bits: bool = False  # so that its values mostly go with a scale


def obstructed(obstacle: str, shape: Any = None) -> Stored:
    """Return a tensor that is only counted."""
    assert obstacle in OBSTACLES

    def read() -> Tensor:
        raise ValueError(f"a tensor is {obstacle}")

    sides = _integers(shape)
    return Stored((1, 1) if sides is None else sides, read, obstacle)


@dataclass(frozen=True)
class Tensors:
    """Interprets a pickle's objects as the tensors of one file; ``locate`` finds a storage in it by its description."""

    path: Path
    stamp: list[int]  # of the file when it was opened
    locate: Callable[[Any], tuple[torch.dtype, Bytes] | None]

    def of(self, value: Object) -> Stored | None:
        """Return the tensor that an object stands for, None if it stands for something else."""
        if not is_tensor(value):
            return None
        for _ in range(8):  # a parameter holds a tensor, which may be of another class; a hostile one holds itself
            if not is_tensor(value):
                return obstructed("of a wrapping class")
            if (array := numpy_array(value)) is not None:
                return self._array(array)
            name, arguments = value.maker.name, value.arguments
            if (
                not isinstance(arguments, tuple)
                or not (3 if name in _TYPED else 1) <= len(arguments) <= _MOST_ARGUMENTS
            ):
                break
            if name in _WRAPPERS:
                value = arguments[0]
            elif name in _TYPED:
                value = Object(arguments[0], arguments[2])
            else:
                return self._tensor(name, arguments)
        raise ValueError("it describes a tensor without what makes one")

    def _tensor(self, name: str, arguments: tuple[Any, ...]) -> Stored:
        if (obstacle := _OBSTRUCTED.get(name)) is not None:
            parts = arguments[1] if name == "_rebuild_sparse_tensor" and len(arguments) > 1 else arguments
            shapes = [part for part in parts[:_MOST_ARGUMENTS] if _integers(part)] if isinstance(parts, tuple) else []
            return obstructed(obstacle, shapes[0] if shapes else None)
        storage, offset, size, stride, *rest = (*arguments, None, None, None, None)[: max(4, len(arguments))]
        located = self.locate(storage)
        if located is None:
            raise ValueError("it describes a tensor without a storage")
        dtype, region = located
        if name == "_rebuild_tensor_v3":
            chosen = rest[2] if len(rest) > 2 else None
            if not isinstance(chosen, Global) or chosen.module != "torch" or chosen.name not in _DTYPES:
                return obstructed("of integers", size)
            dtype = _DTYPES[chosen.name]
        return strided(self.path, self.stamp, region, dtype, offset, size, stride)

    def _array(self, array: Array) -> Stored:
        """Return a numpy array, whose bytes are within the pickle."""
        sides = _integers(array.shape)
        dtype = _ARRAY_TYPES.get(array.kind) if isinstance(array.kind, str) else None
        if dtype is None or sides is None or not isinstance(array.content, Bytes | str):
            return obstructed("of integers", sides)
        if array.order == ">":
            return obstructed("of other bytes' order", sides)
        axes = range(len(sides)) if array.axes is None else _integers(array.axes)
        if axes is None or sorted(axes) != list(range(len(sides))):
            raise ValueError("it describes an array with axes that it has not")
        steps = contiguous(sides[::-1])[::-1] if array.fortran else contiguous(sides)
        shape, stride = [sides[axis] for axis in axes], [steps[axis] for axis in axes]
        return strided(self.path, self.stamp, array.content, dtype, 0, shape, stride)


def strided(
    path: Path, stamp: list[int], content: Bytes | str, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> Stored:
    """Return a view of a storage, of which nothing is believed before it has been compared with that.

    ``content`` is where the storage is in the file, or its bytes as a text, one character for each.
    """
    shape, steps = _integers(size), _integers(stride)
    if shape is None or steps is None or len(shape) != len(steps):
        raise ValueError("it describes a tensor without a proper shape")
    if type(offset) is not int or not 0 <= offset < _LARGEST:
        raise ValueError("it describes a tensor without a proper place in its storage")
    if "q" in str(dtype):
        return obstructed("quantized", shape)
    obstacle = "" if dtype in _FLOATING else "of complex numbers" if dtype.is_complex else "of integers"
    if 0 in shape:
        return Stored(shape, lambda: torch.empty(shape), obstacle)
    room = (content.size if isinstance(content, Bytes) else len(content)) // dtype.itemsize
    end = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) + 1
    if math.prod(shape) > room:
        return obstructed("views larger than their storage", shape)
    if end > room:
        return obstructed("reaching beyond their storage", shape)
    begin, size_read = offset * dtype.itemsize, (end - offset) * dtype.itemsize

    def values() -> Tensor:
        if isinstance(content, Bytes):
            read = read_region(path, stamp, Bytes(content.begin + begin, size_read))
        else:
            read = bytearray(content[begin : begin + size_read].encode("latin-1"))
        return torch.frombuffer(read, dtype=torch.uint8).view(dtype).as_strided(shape, steps)

    return Stored(shape, values, obstacle, dtype.itemsize == 1)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor whose values lie one behind the other."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def is_tensor(value: Any) -> bool:
    """Tell whether an object would be made by one of the functions that make tensors, or numpy's arrays."""
    maker = value.maker if isinstance(value, Object) else None
    is_torch = isinstance(maker, Global) and maker.name in _NAMES and maker.module in _MODULES
    return is_torch or numpy_array(value) is not None


def _integers(value: Any) -> tuple[int, ...] | None:
    """Return a shape or strides, None where there is none."""
    if isinstance(value, Object) and value.maker == Global("torch", "Size"):
        value = value.argument
    if not isinstance(value, tuple | list) or len(value) > 64:
        return None
    return tuple(value) if all(type(side) is int and 0 <= side < _LARGEST for side in value) else None


def read_region(path: Path, stamp: list[int], region: Bytes) -> bytearray:
    """Return a part of a file; ValueError if that was written anew since it had this stamp."""
    content = bytearray(region.size)
    with reading(path), open(path, "rb") as file:
        file.seek(region.begin)
        size = file.readinto(content)
    if size != region.size:
        raise ValueError(f"{path} has become shorter while it was read: inspect it again")
    require_unchanged(path, stamp)
    return content


def require_unchanged(path: Path, stamp: list[int]) -> None:
    """Raise ValueError if a file was written anew since it had a stamp."""
    with reading(path):
        if file_stamp(path) != stamp:
            raise ValueError(f"{path} was written anew while it was read: inspect it again")
