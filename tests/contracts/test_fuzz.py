"""Readers under random input: each reads it, or raises ValueError or FileNotFoundError in one line.

50 examples for each reader in every run of the tests, 20,000 with ``-m soak``; the same ones each time.
"""

import argparse
import io
import json
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import hostile
from runs import make_run
from specreg import History
from specreg.autopsy.spectra import inspect
from specreg.experiments.config import RunConfig, from_dict
from specreg.experiments.run import saved_config
from specreg.experiments.sweep import saved_settings
from specreg.records import SERIES, RunDirectory
from specreg.report.runs import open_cells
from specreg.report.verdicts import history, line, segments
from specreg.training.state import load_checkpoint
from spoilt import peak_memory, safetensors, saved, tensor, zipped

MEMORY = 256 << 20  # bytes that the process may grow by, whatever the examples claim
RANDOM = torch.Generator().manual_seed(0)  # of the files that are made once, when this is imported
Read = Callable[[Path], object]


@st.composite
def mutated(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """A valid file with bits flipped, cut off, parts put in, doubled or taken out."""
    content = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), place + draw(st.integers(0, 64)))
        how = draw(st.sampled_from(("flip", "set", "cut", "insert", "double", "remove", "number")))
        if how == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[place:]
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif how == "double":
            content[place:place] = content[place:end]
        elif how == "remove":
            del content[place:end]
        else:  # what is a size or an offset becomes huge
            content[place : place + 8] = draw(
                st.sampled_from((b"\xff" * 8, b"\xff" * 4, b"\0" * 8, b"\x7f" + b"\xff" * 7))
            )
    return bytes(content)


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 10**400, 1e-300, 1e300, True, False])
)
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(["sn", "static", "collapsed", "healthy", "auto", "..", "\x1b[2J"])
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the ways to all values within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(way for key, one in inner for way in paths_in(one, (*before, key)))]


@st.composite
def reshaped(draw: st.DrawFn, valid: list[Any]) -> Any:
    """A valid JSON value with some of its values replaced, keys added or taken away."""
    value = json.loads(json.dumps(draw(st.sampled_from(valid))))
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(paths_in(value)))
        if not way:
            continue
        holder = value
        for key in way[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if how == "remove":
            del holder[way[-1]]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        else:
            holder[way[-1]] = draw(VALUES)
    return value


def texts(*valid: Any, lines: bool = False) -> SearchStrategy[bytes]:
    """Bytes, mutated JSON, JSON of other shapes; or several of them as lines."""
    plain = [json.dumps(one).encode() for one in valid]
    whole = st.one_of(
        st.binary(max_size=64), mutated(plain), VALUES.map(json.dumps).map(str.encode),
        *[reshaped(list(valid)).map(json.dumps).map(str.encode)] * 3,
    )  # fmt: skip
    return st.lists(whole, min_size=1, max_size=3).map(lambda some: b"\n".join(some) + b"\n") if lines else whole


@dataclass(frozen=True)
class Reader:
    """What is read, by file name, and how.

    Attributes:
        sound: most of it is, and to be read.
        whole: what is not spoilt is there, as in a run.
    """

    files: dict[str, SearchStrategy[bytes]]
    read: Read
    sound: bool = False
    whole: bool = False


def series() -> dict[str, SearchStrategy[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(make_run(Path(folder) / "run"))
        return {f"{name}.jsonl": texts(*run.series(name)[-3:], lines=True) for name in SERIES}


def results() -> dict[str, SearchStrategy[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(make_run(Path(folder) / "run"))
        return {f"{name}.json": texts(run.read(name)) for name in ("config", "result", "timing", "environment")}


def read_records(folder: Path) -> None:
    directory = RunDirectory(folder)
    for name in SERIES:
        directory.series(name)
    directory.rewind(500)


def read_report(folder: Path) -> None:
    ((run,),) = (cell.runs for cell in open_cells([folder]))
    run.read()
    for name in run.layers:
        run.bulks(name)
    assert line(run).isprintable()
    segments(run), history(run)


def checkpoints() -> list[bytes]:
    state = {
        "schema": 2,
        "step": 3,
        "generator": {"a.weight": torch.eye(3)},
        "random": torch.zeros(9, dtype=torch.uint8),
    }
    return [saved(state), saved({**state, "monitor": {"detector": {"layers": {"a": {"recent": [1.0]}}}}})]


def legacy(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM)


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": drawn(4, 3), "b.weight_orig": drawn(3, 3), "b.weight_u": drawn(3)}


class Held(torch.nn.Module):
    """Whole modules and what trainers put beside them, pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.layer.load_state_dict({"weight": drawn(2, 3), "bias": torch.zeros(2)})
        self.options = argparse.Namespace(names={"a", "b"}, when=np.float64(1))


def pickled() -> list[bytes]:
    held = {
        "model": Held(),
        "array": np.eye(3, dtype=np.float32),
        "sparse": torch.eye(2).to_sparse(),
        (1, "a"): [0.5, b"a"],
    }
    return [pickle.dumps(held, protocol) for protocol in (2, 4, 5)]


def arrays(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, **{"b/c/W": np.eye(3, dtype=np.float32), "b/c/b": np.ones(3), "d": np.asfortranarray(np.ones((2, 3)))})
    return file.getvalue()


# Instructions of a pickle, with what they need.
INSTRUCTIONS = [
    *(bytes([code]) for code in b"(012N\x88\x89]})tlaeduRsob.Q\x81\x85\x86\x87\x8f\x90\x91\x92\x93\x94\x97\x98"),
    *(code + index for code in (b"q", b"h") for index in (b"\0", b"\1", b"\2")),
    *(code + struct.pack("<I", index) for code in (b"r", b"j") for index in (0, 1, 2**32 - 1)),
    *(code + index + b"\n" for code in (b"p", b"g", b"I", b"L", b"F") for index in (b"0", b"1", b"-1", b"9" * 30)),
    *(code + struct.pack("<Q", size) + b"aa" for code in (b"\x8d", b"\x8e", b"\x95", b"\x96") for size in (2, 2**62)),
    *(code + struct.pack("<I", size) + b"aa" for code in (b"X", b"T", b"B", b"\x8b") for size in (2, 2**32 - 1)),
    *(hostile.text(text) for text in ("a.weight", "_modules", "_parameters", "state", "storage", "0", "weight_orig")),
    *(hostile.number(number) for number in (0, 1, 3, -1, 2**40, 2**80)),
    *(hostile.named("torch._utils", f"_rebuild_{kind}") for kind in ("tensor_v2", "tensor_v3", "parameter")),
    hostile.named("torch._utils", "_rebuild_sparse_tensor"), hostile.named("torch._tensor", "_rebuild_from_type_v2"),
    hostile.named("collections", "OrderedDict"),
    hostile.named("torch", "FloatStorage"), hostile.named("torch.storage", "_load_from_bytes"),
    hostile.named("torch_utils.persistence", "_reconstruct_persistent_obj"), hostile.named("torch", "Size"),
    hostile.named("numpy.core.multiarray", "_reconstruct"), hostile.named("numpy", "dtype"), hostile.FUNCTION,
    hostile.CLASS, b"(ihostile\nCanary\n", b"P0\n", b"\x82\xc8", hostile.storage(), hostile.TENSOR,
]  # fmt: skip


def sequences(form: Callable[[bytes], bytes]) -> SearchStrategy[bytes]:
    """Files with a pickle of any instructions, most of which make a value."""
    return st.lists(st.sampled_from(INSTRUCTIONS), max_size=40).map(lambda some: form(b"".join(some)))


MAKERS = [piece for piece in INSTRUCTIONS if piece.startswith(b"c")]
VALUES_IN_PICKLES = st.recursive(
    st.sampled_from([b"N", b"\x88", b")", hostile.TENSOR, hostile.storage(), hostile.held(b"abcd"), *MAKERS, *(
        piece for piece in INSTRUCTIONS if piece.startswith((b"X\x01", b"X\x08", b"\x8b\x01"))
    )]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda some: b"](" + b"".join(some) + b"e"),
        st.lists(inner, max_size=4).map(lambda some: b"(" + b"".join(some) + b"t"),
        st.lists(st.tuples(inner, inner), max_size=3).map(lambda some: b"}(" + b"".join(map(b"".join, some)) + b"u"),
        st.tuples(st.sampled_from(MAKERS), st.lists(inner, max_size=5)).map(
            lambda call: call[0] + b"(" + b"".join(call[1]) + b"tR"
        ),
        st.tuples(inner, inner).map(lambda built: built[0] + built[1] + b"b"),
    ),
    max_leaves=12,
)  # fmt: skip


def odd_weights() -> dict[str, torch.Tensor]:
    """One of each kind that is not read the usual way."""
    return {
        "a.weight": drawn(4, 3).to(torch.float8_e4m3fn), "a.weight_scale": drawn(4, 1).abs(),
        "b.weight": drawn(1, 3, 9, 1, 1), "c.weight": drawn(2, 3, 9, 1, 1),
        "d.weight": torch.ones(3, 1, 2, 2), "e.weight_orig": drawn(3, 3),
        "e.weight_mask": torch.ones(3, 3, dtype=torch.uint8),
        "f.weight_g": drawn(3, 1).abs(), "f.weight_v": drawn(3, 2), "g.embed.weight": drawn(3, 2),
    }  # fmt: skip


def past() -> bytes:
    one = History()
    for step in range(3):
        one.add(step, {"a": drawn(4).abs(), "b": drawn(2, 3).abs()})
    with tempfile.TemporaryDirectory() as folder:
        one.save(Path(folder) / "a.npz")
        return (Path(folder) / "a.npz").read_bytes()


HEADER = {"a.weight": tensor([2, 3], 0, 24), "b.weight": tensor([2, 2], 24, 40), "__metadata__": {"format": "pt"}}
SWEEP = {"preset": "paper", "cells": {"C8-32": {"changes": [], "runs": ["sn-seed0"], "settings": {"a": {"b": 1}}}}}
COMPARISON = {
    "preset": "",
    "cells": {"runs": {"changes": [], "runs": ["sn-seed0"], "settings": asdict(RunConfig().settings)}},
}
CONTENT = np.linspace(0.1, 1, 10, dtype=np.float32).tobytes()
READERS = {
    "config": Reader(
        {"config.json": texts(asdict(RunConfig()))}, lambda folder: saved_config(RunDirectory(folder)),
    ),
    "config as values": Reader(
        {"config.json": st.one_of(VALUES, reshaped([asdict(RunConfig())])).map(json.dumps).map(str.encode)},
        lambda folder: from_dict(RunConfig, json.loads((folder / "config.json").read_text())),
    ),
    "comparison": Reader({"sweep.json": texts(COMPARISON)}, saved_settings),
    "sweep": Reader({"sweep.json": texts(SWEEP)}, lambda folder: open_cells([folder])),
    "series": Reader(series(), read_records),
    "report": Reader(results() | series(), read_report, whole=True),
    "history": Reader(
        {"a.npz": st.one_of(
            st.binary(max_size=64), st.just(past()), mutated([past(), zipped({"iterations.npy": b"\x93NUMPY"})])
        )},
        lambda folder: History.load(folder / "a.npz"),
    ),
    "checkpoint": Reader(
        {"a.pt": st.one_of(st.binary(max_size=64), mutated(checkpoints()))},
        lambda folder: load_checkpoint(folder / "a.pt"),
    ),
    "safetensors": Reader(
        {"a.safetensors": st.one_of(
            st.binary(max_size=64), mutated([safetensors(HEADER, CONTENT)]),
            reshaped([HEADER]).map(lambda header: safetensors(header, CONTENT)),
        )},
        lambda folder: inspect([folder / "a.safetensors"]),
    ),
    "index": Reader(
        {"m.safetensors.index.json": texts({"weight_map": {"a.weight": "a.safetensors"}, "metadata": {}}),
         "a.safetensors": st.just(safetensors(HEADER, CONTENT))},
        lambda folder: inspect([folder / "m.safetensors.index.json"]),
    ),
    "torch file": Reader(
        {"a.pt": st.one_of(
            st.binary(max_size=64),
            mutated([saved(weights()), saved({"m": weights(), "step": 3}), saved(odd_weights())]),
        )},
        lambda folder: inspect([folder / "a.pt"]),
    ),
    "old torch file": Reader({"a.pt": mutated([legacy(weights())])}, lambda folder: inspect([folder / "a.pt"])),
    "plain pickle": Reader({"a.pkl": mutated(pickled())}, lambda folder: inspect([folder / "a.pkl"])),
    "values in a pickle": Reader(
        {"a.pkl": st.one_of(*(
            VALUES_IN_PICKLES.map(form) for form in (hostile.archive, hostile.old_archive, hostile.plain)
        ))},
        lambda folder: inspect([folder / "a.pkl"]),
        sound=True,
    ),
    "instructions": Reader(
        {"a.pkl": st.one_of(
            sequences(hostile.archive), sequences(hostile.old_archive), sequences(hostile.plain), sequences(bytes),
            mutated([hostile.archive(payload) for payload in hostile.calls().values()]),
        )},
        lambda folder: inspect([folder / "a.pkl"]),
    ),
    "arrays": Reader(
        {"a.npz": mutated([arrays(np.savez), arrays(np.savez_compressed)])}, lambda folder: inspect([folder / "a.npz"])
    ),
}  # fmt: skip


def fuzz(reader: Reader, examples: int, folder: Path) -> tuple[int, int]:
    """Run the reader on so many examples; returns how many it read and how many it refused."""
    counts, whole = [0, 0], folder / "whole"
    hostile.RAN.clear()
    if reader.whole:
        make_run(whole)

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        st.fixed_dictionaries({}, optional=reader.files)
        if len(reader.files) > 2
        else st.fixed_dictionaries(reader.files)
    )
    def attempt(contents: dict[str, bytes]) -> None:
        for name in reader.files:
            (folder / name).unlink(missing_ok=True)
        if reader.whole:
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            contents = dict(list(contents.items())[-1:])
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        said = None
        try:
            reader.read(folder)
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        assert said is None or len(said.splitlines()) == 1
        assert hostile.RAN == []
        counts[0 if said is None else 1] += 1

    attempt()
    return counts[0], counts[1]


@pytest.mark.parametrize("examples", [50, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_says_in_one_line_what_is_wrong(name, examples, tmp_path, capsys):
    before = peak_memory(anew=True)
    read, refused = fuzz(READERS[name], examples, tmp_path)
    grown = peak_memory() - before
    if examples > 50:
        with capsys.disabled():
            print(f"\n{name}: {read} read, {refused} refused, {grown / 2**20:.0f} MiB more memory")  # noqa: T201
    assert read > 0
    assert (read if READERS[name].sound else refused) > max(5, examples // 40)
    assert grown < MEMORY
