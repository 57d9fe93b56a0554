"""What files inspect reads: pickles of anything in every format, arrays, indices, and what it says of the others."""

import argparse
import datetime
import functools
import json
import os
import pickle
import re
import sys
import tarfile
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint.format_utils
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import spectral_norm

import hostile
from specreg.autopsy.checkpoints import open_checkpoint
from specreg.autopsy.formats import read_tensors
from specreg.autopsy.spectra import inspect
from spoilt import quiet, written, zipped


class Averaged(nn.Module):
    """A whole module as somebody may pickle it, with what it has beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), spectral_norm(nn.Linear(8, 5)))
        self.options = argparse.Namespace(lr=0.1, path=Path("a"), scale=np.float32(2), seen=np.arange(3))
        self.register_buffer("kept", torch.ones(3))


def strange() -> dict[str, Any]:
    """What trainers put beside weights."""
    return {
        "args": argparse.Namespace(lr=0.1, seed=np.int64(3)), "counts": defaultdict(list, a=[1]), "path": Path("a/b"),
        "when": datetime.datetime(2020, 1, 1), "random": (1, np.random.RandomState(0).get_state()), "loss": [0.1] * 9,
        "best": np.float64(0.5), "kinds": {nn.Linear, frozenset([1])}, "nested": {frozenset([1])}, "when not": re.compile("a"), (1, "b"): b"abc",
        "call": functools.partial(os.mkdir, "a"), "size": torch.Size([2]), "device": torch.device("cpu"),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["new", "old", "pickle", "pickle of protocol 5"])
def test_what_is_beside_the_weights_does_not_matter(form, tmp_path):
    weight = torch.randn(4, 3, dtype=torch.float64)
    state = strange() | {"model": {"a.weight": weight, "b.weight": weight[1:3].t(), "c.weight": weight.float().numpy()}}
    if form.startswith("pickle"):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(state, 5 if "5" in form else 3))
    else:
        torch.save(state, tmp_path / "m.pkl", _use_new_zipfile_serialization=form == "new")
    found = open_checkpoint(tmp_path / "m.pkl")
    assert [one.name for one in found.weights] == ["model.a", "model.b", "model.c"]
    for one, expected in zip(found.weights, (weight, weight[1:3].t(), weight.float()), strict=True):
        torch.testing.assert_close(one.read(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["new", "old", "pickle"])
def test_a_pickled_module_is_read_without_its_class(form, tmp_path, monkeypatch):
    model = Averaged()
    whole = {"G_ema": model, "optimizer": torch.optim.Adam(model.parameters())}
    if form == "pickle":
        (tmp_path / "m.pt").write_bytes(pickle.dumps(whole))
    else:
        torch.save(whole, tmp_path / "m.pt", _use_new_zipfile_serialization=form == "new")
    monkeypatch.delattr(sys.modules[__name__], "Averaged")
    found = open_checkpoint(tmp_path / "m.pt")
    assert [weight.name for weight in found.weights] == ["G_ema.body.0", "G_ema.body.2"]
    for weight, layer in zip(found.weights, (model.body[0].weight, model.body[2].weight_orig), strict=True):
        torch.testing.assert_close(weight.read(), layer.detach(), rtol=0, atol=0)


class Persistent(nn.Linear):
    """Pickled as StyleGAN2-ADA does it: a call with the source of the class and the module's state."""

    def __reduce__(self):
        from torch_utils.persistence import _reconstruct_persistent_obj

        source = "raise SystemExit('the source was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": "G", "state": dict(self.__dict__)}
        return _reconstruct_persistent_obj, (meta,)


def _reconstruct_persistent_obj(meta):
    raise SystemExit("the pickle was run")


def test_a_pickle_of_stylegan_is_read_without_its_source(tmp_path, monkeypatch):
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    whole = {"G": nn.Sequential(Persistent(6, 5), nn.ReLU(), Persistent(5, 4)), "D": Persistent(3, 3), "augment": None}
    (tmp_path / "network-snapshot-000200.pkl").write_bytes(pickle.dumps(whole))
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.delitem(sys.modules, name)
    found = open_checkpoint(tmp_path / "network-snapshot-000200.pkl")
    assert [weight.name for weight in found.weights] == ["G.0", "G.2", "D"]
    for weight, layer in zip(found.weights, (whole["G"][0], whole["G"][2], whole["D"]), strict=True):
        torch.testing.assert_close(weight.read(), layer.weight.detach(), rtol=0, atol=0)


def test_an_old_file_of_python_2_is_read(tmp_path):
    # There an OrderedDict is a call with a list of lists.
    pairs = b"(](](U\x08a.weight" + hostile.TENSOR + b"eetR"
    payload = hostile.named("collections", "OrderedDict") + pairs
    (tmp_path / "m.pth").write_bytes(hostile.old(b"\x80\x02" + payload + b"."))
    assert list(inspect([tmp_path / "m.pth"]).layers[0]) == ["a"]


@quiet()
def scripted(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)), folder / "m.pt")
    return folder / "m.pt"


def exported(folder: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), folder / "m.pt2")
    return folder / "m.pt2"


@quiet()
def packaged(folder: Path) -> Path:
    with torch.package.PackageExporter(str(folder / "m.pt")) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", nn.Linear(2, 3))
    return folder / "m.pt"


@quiet()
def distributed(folder: Path, name: str = "") -> Path:
    state = {"a.weight": torch.eye(3)}
    torch.distributed.checkpoint.save(state, checkpoint_id=str(folder))
    return folder / name


def tarred(folder: Path) -> Path:
    with tarfile.open(folder / "m.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return folder / "m.tar"


OTHERS = {
    "TorchScript": (scripted, "an archive of TorchScript, .*: convert it with torch.save(torch.jit.load(PATH).state_dict(), 'model.pt')"),
    "torch.export": (exported, "an archive of torch.export, .*: convert it with torch.save(torch.export.load(PATH).state_dict, 'model.pt')"),
    "torch.package": (packaged, "an archive of torch.package, .*: save torch.package.PackageImporter(PATH).load_pickle"),
    "a distributed checkpoint": (distributed, "convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save(PATH, "),
    "a part of one": (lambda folder: distributed(folder, "__0_0.distcp"), "part of a distributed checkpoint, .* name its folder"),
    "Orbax": (lambda folder: written(folder, b"", "manifest.ocdbt").parent, "a checkpoint of Orbax, .*turned to (out, in, ...)"),
    "ONNX": (lambda folder: written(folder, b"\x08\x07\x12\x07pytorch", "m.onnx"), "an ONNX model, .*onnx.numpy_helper"),
    "Keras": (lambda folder: written(folder, b"\x89HDF\r\n\x1a\n" + bytes(9), "m.h5"), "turned to (out, in, ...)"),
    "Keras 3": (lambda folder: written(folder, zipped({"config.json": b"", "model.weights.h5": b""})), "a model of Keras"),
    "GGUF": (lambda folder: written(folder, b"GGUF\3\0\0\0"), "a GGUF file"),
    "Flax": (lambda folder: written(folder, b"\x81\xa6params", "flax_model.msgpack"), "flax.serialization.msgpack_restore"),
    "TensorFlow": (lambda folder: written(folder, bytes(99), "model.ckpt-9.data-00000-of-00001"), "tf.train.load_checkpoint"),
    "TensorFlow's index": (lambda folder: written(folder, bytes(99), "model.ckpt-9.index"), "tf.train.load_checkpoint"),
    "a saved model": (lambda folder: written(folder, b"\x08\x01", "saved_model.pb").parent, "a model of TensorFlow"),
    "a web page": (lambda folder: written(folder, b"<!DOCTYPE html>", "m.pt"), "is a web page, not the file itself"),
    "gzip": (lambda folder: written(folder, b"\x1f\x8b\x08\0"), "unpack it"),
    "tar": (tarred, "an archive of tar, .*: unpack it"),
    "a zip of checkpoints": (lambda folder: written(folder, zipped({"a/model.pth": b"x"})), "a zip archive, .*: unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_intact_files_of_other_formats_are_named_with_their_conversion(case, tmp_path):
    make, said = OTHERS[case]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=r".") as raised:
        inspect([path])
    message = str(raised.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert "damaged" not in message
    assert re.search(re.escape(said.replace("PATH", repr(str(path)))).replace(r"\.\*", ".*"), message)


@quiet()
def test_the_conversions_that_are_named_give_what_is_read(tmp_path):
    torch.save(torch.jit.load(scripted(tmp_path)).state_dict(), tmp_path / "a.pt")
    torch.save(torch.export.load(exported(tmp_path)).state_dict, tmp_path / "b.pt")
    (tmp_path / "d").mkdir()
    torch.distributed.checkpoint.format_utils.dcp_to_torch_save(distributed(tmp_path / "d"), tmp_path / "c.pt")
    shapes = [[weight.shape for weight in open_checkpoint(tmp_path / f"{name}.pt").weights] for name in "abc"]
    assert shapes == [[(3, 2)], [(3, 2)], [(3, 3)]]


def test_arrays_of_chainer_and_numpy_are_read(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "block1/c1/W": generator.normal(size=(4, 3, 3, 3)).astype(">f4"), "block1/c1/b": np.ones(4),
        "l/W": np.asfortranarray(generator.normal(size=(5, 4))), "half.weight": np.ones((2, 3), np.float16),
        "wide/W": generator.normal(size=(512, 512)),
        "updater/optimizer:dis/l/W": np.ones((5, 4)), "names": np.array([["a"]]), "objects": np.array([[None]]),
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "m.npz", **arrays)
        found = open_checkpoint(tmp_path / "m.npz")
        assert [weight.name for weight in found.weights] == ["block1.c1", "l", "half", "wide"]
        for weight, name in zip(found.weights, ("block1/c1/W", "l/W", "half.weight", "wide/W"), strict=True):
            np.testing.assert_array_equal(weight.read(), arrays[name])
        assert found.left_out == {"of an optimizer": 1, "of integers": 1, "of Python objects": 1}


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin.index.json", "model.safetensors.index.fp16.json", "model.safetensors.index.json"]
)
def test_indices_of_every_kind_are_read(name, tmp_path):
    ending = ".bin" if ".bin" in name else ".safetensors"
    save = torch.save if ending == ".bin" else save_file
    state = {layer: torch.randn(3, 2) for layer in ("a.10", "a.2", "b")}
    shards = {f"{layer}.weight": f"{1 + (layer == 'a.10')}{ending}" for layer in state}
    for file in set(shards.values()):
        save({name: state[name.removesuffix(".weight")] for name in shards if shards[name] == file}, tmp_path / file)
    (tmp_path / name).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    for path in (tmp_path, tmp_path / name):
        found = open_checkpoint(path)
        assert [weight.name for weight in found.weights] == ["a.2", "a.10", "b"]
        assert all(torch.equal(weight.read(), state[weight.name]) for weight in found.weights)


def test_what_a_trainer_writes_beside_a_model_is_no_second_checkpoint(tmp_path):
    save_file({"a.weight": torch.eye(3)}, tmp_path / "model.safetensors")
    for name in (
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "optimizer_D.pth",
        "D_optim.pth", "optim.pt", "opt010000.pt", "scheduler_g.ckpt", "brain.ckpt", "counter.ckpt",
        "dataloader-TRAIN.ckpt", "._model.safetensors", "100000_optims.ckpt", "netD_optimizer.pth", "lr_scheduler.pt",
    ):  # fmt: skip
        torch.save({}, tmp_path / name)
    assert list(inspect([tmp_path]).layers[0]) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "opt.pt", "optimus.pt", "netD.pth", "brain.pth", "model_and_optimizer.pth", "G_with_scheduler.pt",
        "bigvgan_discriminator_optimizer.pt",
    ],
)  # fmt: skip
def test_what_is_only_called_alike_is_a_checkpoint(name, tmp_path):
    torch.save({"a.weight": torch.eye(3)}, tmp_path / name)
    assert list(inspect([tmp_path]).layers[0]) == ["a"]


def test_safetensors_that_a_training_writes_anew_are_read_whole_or_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.eye(30)}, path)
    os.utime(path, ns=(0, 0))  # the clock of a file system may stand still for this test
    stored = read_tensors(path)[0]["a.weight"]
    with open(path, "r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match="has become shorter while it was read"):
        stored.read()
    save_file({"a.weight": torch.ones(30, 30)}, path)  # as large as before
    with pytest.raises(ValueError, match="was written anew while it was read"):
        stored.read()


@pytest.mark.parametrize("form", ["new", "old", "pickle", "npz"])
def test_a_checkpoint_that_a_training_writes_anew_is_refused(form, tmp_path):
    path = tmp_path / "model.pkl"
    state = {"losses": [], "a.weight": torch.eye(30)}

    def write():
        if form == "npz":
            with open(path, "wb") as file:
                np.savez(file, **{"a.weight": state["a.weight"].numpy()})
        elif form == "pickle":
            path.write_bytes(pickle.dumps(state))
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "new")

    write()
    os.utime(path, ns=(0, 0))
    stored = read_tensors(path)[0]["a.weight"]
    assert torch.equal(stored.read(), torch.eye(30))
    state.update(losses=list(range(100)), **{"a.weight": torch.ones(30, 30)})
    write()
    with pytest.raises(ValueError, match="was written anew while it was read"):
        stored.read()


def test_arrays_with_turned_axes_are_read_as_they_are(tmp_path):
    kernels = np.arange(48, dtype="f4").reshape(2, 2, 3, 4).transpose(3, 2, 0, 1)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a.weight": kernels}, protocol=5))
    read = read_tensors(tmp_path / "model.pkl")[0]["a.weight"]
    assert torch.equal(read.read(), torch.from_numpy(kernels.copy()))
