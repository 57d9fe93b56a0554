"""What a file is, by its first bytes and the names in it: its tensors, or how to convert it into what is read here."""

import json
import math
import re
import sys
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specreg.archives import opened, stored_entries
from specreg.autopsy import torchfiles
from specreg.autopsy.tensors import Stored, contiguous, obstructed, require_unchanged, strided
from specreg.autopsy.torchfiles import Contents
from specreg.files import check_file, exists, file_stamp, read_json, reading
from specreg.names import listed, printable
from specreg.pickles import Bytes, LimitError

INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[^.]+)?\.json")
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".th", ".pkl", ".npz")
# What trainers write beside a model; bigvgan_discriminator_optimizer.pt has the discriminators in it.
BESIDE = re.compile(
    r"((?!\w*_(?:and|with)_|bigvgan_discriminator_)(\w+_)?(optimizer|scheduler)\w*|(\w+_)?optims?(_\w+)?|opt_?\d+|"
    r"(sampler|rng_state|random_states|dl_state_dict|custom_checkpoint|scaler|training_args)[_\d]*|"
    r"dataloader[-\w]*|.*optim_states)\.\w+|(brain|counter)\.ckpt"
)
# A part of a checkpoint, which an index beside it puts together.
SHARD = re.compile(r"-\d+-of-(?!0*1\.)\d+\.(safetensors|bin)$")
# Of safetensors: the others have less than 8 bits, and need scales that other tensors hold.
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MOST_UNPACKED = 20  # times the file's size that numpy's arrays may take: weights hardly become smaller
_FLOOR = 64 << 20  # bytes that they may take in any case
_LONGEST_HEADER = 16 << 20  # bytes that say where tensors are: of a hundred thousand of them

_TURNED = "and save its kernels, turned to (out, in, ...), with safetensors.numpy.save_file"
_OTHERS = {  # first bytes or the end of the name: what it is, and how it becomes one of the formats here
    b"version https://": ("a Git LFS pointer, not the file itself", "get that with git lfs pull"),
    b"<": ("a web page, not the file itself", "download it again"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it, and inspect what is in it"),
    b"GGUF": ("a GGUF file", "inspect the safetensors that it was made from, or save gguf.dequantize of its tensors"),
    b"\x89HDF": ("an HDF5 file, as of Keras", f"load it there {_TURNED}"),
    ".onnx": (
        "an ONNX model",
        "save onnx.numpy_helper.to_array of each of model.graph.initializer with safetensors.numpy.save_file",
    ),
    ".msgpack": ("a file of Flax", f"read it with flax.serialization.msgpack_restore {_TURNED}"),
    ".pb": ("a model of TensorFlow", f"load it there {_TURNED}"),
    ".index": ("a checkpoint of TensorFlow", f"read it with tf.train.load_checkpoint {_TURNED}"),
    ".distcp": ("a part of a distributed checkpoint", "name its folder"),
}
_EXPORTED = "convert it with torch.save(torch.export.load({file!r}).state_dict, 'model.pt')"
_SCRIPTED = "convert it with torch.save(torch.jit.load({file!r}).state_dict(), 'model.pt')"
_PACKAGED = "save torch.package.PackageImporter({file!r}).load_pickle(...).state_dict(), which runs the code in it"
_ZIPPED = {  # the name of an entry in a zip file: the same
    "constants.pkl": ("an archive of TorchScript", _SCRIPTED),
    "archive_format": ("an archive of torch.export", _EXPORTED),
    "serialized_exported_program.json": ("an archive of torch.export", _EXPORTED),
    "extern_modules": ("an archive of torch.package", _PACKAGED),
    "model.weights.h5": ("a model of Keras", f"load it there {_TURNED}"),
}
_TF_SHARD = re.compile(r".*\.data-\d+-of-\d+")  # of TensorFlow's checkpoint


def find_file(path: Path) -> Path:
    """Return the checkpoint that a path names: the file itself, or the only one in a folder."""
    if not exists(path):
        raise ValueError(f"there is no checkpoint {path}: check the name")
    if not path.is_dir():
        return path
    with reading(path):
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    if any(file.suffix == ".distcp" for file in files):
        call = f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save({str(path)!r}, 'model.pt')"
        raise ValueError(f"{path} is a distributed checkpoint: convert it with {call}")
    if any(file.name == "saved_model.pb" for file in files):
        raise _OtherError(path, *_OTHERS[".pb"])
    if any(file.name in ("_CHECKPOINT_METADATA", "manifest.ocdbt") for file in files):
        raise _OtherError(path, "a checkpoint of Orbax", f"restore it there {_TURNED}")
    candidates = [file for file in files if INDEX.search(file.name)] or [
        file
        for file in files
        if file.suffix.lower() in ENDINGS and file.is_file() and BESIDE.fullmatch(file.name) is None
    ]
    if len(candidates) != 1:
        if not candidates:
            raise ValueError(f"the folder {path} holds no checkpoints: name a file")
        endings = dict.fromkeys(file.suffix for file in candidates)
        names = listed([file.name for file in candidates])
        raise ValueError(
            f"the folder {path} holds {len(candidates)} checkpoints ({names}): name "
            f"the one file, or a training's all as {' '.join(str(path / f'*{ending}') for ending in endings)}"
        )
    return candidates[0]


def read_tensors(path: Path) -> Contents:
    """Return all tensors in a file by name, and reasons why others are left out, counted; nothing in it is executed."""
    check_file(path)
    with reading(path), open(path, "rb") as file:
        head = file.read(262)  # tar's sign is at its end
    if not head:
        raise ValueError(f"{path} is empty: copy or download it again")
    if INDEX.search(path.name):
        return _sharded(path)
    if head[8:9] == b"{":
        return _safetensors(path)
    for sign, (what, remedy) in _OTHERS.items():
        if head.startswith(sign) if isinstance(sign, bytes) else path.suffix == sign:
            raise _OtherError(path, what, remedy)
    if _TF_SHARD.fullmatch(path.name):
        raise _OtherError(path, *_OTHERS[".index"])
    if path.suffix == ".safetensors":  # a damaged one
        return _safetensors(path)
    try:
        if head.startswith(b"PK"):
            with warnings.catch_warnings(action="ignore"):  # of numpy, before it fails on an odd header
                return _zipped(path)
        # Every protocol of pickles since 2 begins so; the older ones begin with any of their instructions.
        if head.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
            with open(path, "rb") as file:
                return torchfiles.read_stream(path, file)
    except (_OtherError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes its reader fail anywhere
        raise _damaged(path, error) from error
    if head[257:] == b"ustar":
        raise _OtherError(path, "an archive of tar", "unpack it, and inspect what is in it")
    raise ValueError(f"{path} is neither a safetensors file nor one of torch.save: convert it into one of them")


class _OtherError(ValueError):
    """A format that is not read here."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        super().__init__(f"{path} is {what}, which is not read here: {remedy}")


def _zipped(path: Path) -> Contents:
    stamp = file_stamp(path)
    with opened(path) as archive:
        names = archive.namelist()
        ends = {name.rpartition("/")[2] for name in names}
        if names and all(name.endswith(".npy") for name in names):
            return _arrays(path, stamp, archive)
        for entry, (what, remedy) in _ZIPPED.items():
            if entry in ends:
                raise _OtherError(path, what, remedy.format(file=str(path)))
        if "data.pkl" not in ends and any(Path(end).suffix.lower() in ENDINGS for end in ends):
            raise _OtherError(path, "a zip archive", "unpack it, and inspect what is in it")
        entries = stored_entries(archive, path)
    with open(path, "rb") as stream:
        return torchfiles.read_zip(path, stamp, stream, entries)


def _safetensors(path: Path) -> Contents:
    """Return what is in a file that the library finds sound; read and not mapped: a training may write it anew."""
    others = {"C": "of complex numbers", **dict.fromkeys("IUB", "of integers")}
    tensors = {}
    try:
        stamp = file_stamp(path)
        with safe_open(path, framework="pt"), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise LimitError(f"its header has more than {_LONGEST_HEADER} bytes")
            header = json.loads(file.read(length))
        for name in sorted(header.keys() - {"__metadata__"}, key=_natural):
            entry = header[name]
            kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            dtype = _KINDS.get(kind)
            if dtype is None or sys.byteorder == "big":
                why = others.get(kind[0], "quantized") if dtype is None else "of other bytes' order"
                tensors[name] = obstructed(why, shape)
                continue
            region, steps = Bytes(8 + length + begin, end - begin), contiguous(shape)
            tensors[name] = strided(path, stamp, region, dtype, 0, shape, steps)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:  # it may change while it is read
        raise _damaged(path, error) from error
    return tensors, Counter()


def _sharded(path: Path) -> Contents:
    index = read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{path} is no index of a model's files: it has no weight_map of file names")
    tensors: dict[str, Stored] = {}
    left_out: Counter[str] = Counter()
    for shard in sorted(set(shards.values())):
        # An index may come from anywhere and must not lead out of its folder.
        if "/" in shard or "\\" in shard or Path(shard).suffix not in (".safetensors", ".bin"):
            raise ValueError(
                f"{path} names the file {shard!r}: a shard is a .safetensors or .bin file in the index's folder"
            )
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names {shard!r}, which is not in its folder: copy or download it too")
        own, others = read_tensors(path.parent / shard)
        tensors |= own
        left_out += others
    if missing := [name for name in shards if name not in tensors]:
        raise ValueError(f"{path} names tensors that its files lack ({listed(missing)}): download them again")
    return {name: tensors[name] for name in sorted(tensors, key=_natural)}, left_out


def _arrays(path: Path, stamp: list[int], archive: zipfile.ZipFile) -> Contents:
    """Return numpy's arrays; Chainer's are named by the way to them, and W where torch's are named weight."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _MOST_UNPACKED * path.stat().st_size + _FLOOR:
        raise ValueError("its arrays claim to be far larger than the file")
    tensors = {}
    for entry in entries:
        with archive.open(entry) as file:
            is_first = np.lib.format.read_magic(file) == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            begin = file.tell()
        parts = entry.filename.removesuffix(".npy").split("/")
        name = ".".join([*parts[:-1], "weight" if parts[-1] == "W" else parts[-1]])
        if dtype.kind not in "fbiu":
            kinds = {"O": "of Python objects", "c": "of complex numbers"}
            tensors[name] = obstructed(kinds.get(dtype.kind, "of integers"), shape)
            continue
        if min(shape, default=0) < 0 or begin + dtype.itemsize * math.prod(shape) != entry.file_size:
            raise ValueError(f"its array {entry.filename!r:.80} has another size than it says")
        obstacle = "" if dtype.kind == "f" else "of integers"
        tensors[name] = Stored(shape, partial(_array, path, stamp, entry.filename), obstacle)
    return tensors, Counter()


def _array(path: Path, stamp: list[int], entry: str) -> Tensor:
    try:
        with opened(path) as archive, archive.open(entry) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)  # a piece at a time, as opened() lets it
    except MemoryError:
        raise
    except Exception as error:  # of zlib and others
        require_unchanged(path, stamp)
        raise _damaged(path, error) from error
    require_unchanged(path, stamp)
    # Integers are a mask's, 0 and 1.
    kind = f"f{min(8, array.dtype.itemsize)}" if array.dtype.kind == "f" else "f4"
    return torch.from_numpy(array.astype(kind))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort blocks.2 before blocks.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]{1,18})", name)]


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = printable(str(error).strip().split("\n")[0][:120]) or type(error).__name__
    if isinstance(error, LimitError):
        return ValueError(
            f"{path} holds more than is read of a file of its size ({reason}): save its weights alone, with "
            f"safetensors.torch.save_file for instance"
        )
    return ValueError(f"{path} is damaged or incomplete ({reason}): copy or download it again")
