"""Bad arguments of the library's functions: ValueError or TypeError, one line, and nothing changed."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import specreg
import spoilt
from kinds import OwnNormalized
from pictures import load_images
from specreg.autopsy.checkpoints import open_checkpoint
from specreg.data.open import find_images
from specreg.evaluation.metrics import neighbourhoods
from specreg.experiments.config import RunConfig, Settings, from_dict
from specreg.models import dcgan, resnet
from specreg.monitor.actions import Pin, RollBack, When
from specreg.monitor.modes import ModeThresholds
from specreg.monitor.writers import JsonlWriter, TensorBoardWriter, tracker
from specreg.records import RunDirectory
from specreg.report.runs import open_cells
from specreg.spectra.operator import convolution_norm
from specreg.training.state import load_checkpoint

NAN = float("nan")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))


def history() -> specreg.History:
    past = specreg.History()
    past.add(1, {"a": torch.ones(3)})
    return past


def empty() -> nn.Module:
    module = network()
    module[0].weight = nn.Parameter(torch.empty(0, 4))
    return module


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)


class Wrapper(nn.Module):
    """Keeps the weight of what it wraps, as SAGAN's spectral normalization and torchgan's do."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(4, 4)
        self.w_bar = nn.Parameter(self.module.weight.data)
        del self.module._parameters["weight"]


def on_meta(verb: Callable[[nn.Module], Any]) -> Any:
    """Return what a verb makes of a network that is moved away afterwards, as one that is offloaded is."""
    module = network()
    made = verb(module)
    module.to("meta")
    return made


def guard() -> specreg.Guard:
    return specreg.Guard(specreg.Monitor(network()))


N = network
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "spectral_norm only a number": (lambda: specreg.spectral_norm(N(), only=5), "expected a name, a glob"),
    "spectral_norm but for all": (lambda: specreg.spectral_norm(N(), skip="*"), "no layer matched"),
    "orthogonalize -1": (lambda: specreg.orthogonalize(N(), iterations=-1), "iterations must be an integer"),
    "penalty of a number": (lambda: specreg.d_optimal_penalty(5), "expected a torch"),
    "spectra of None": (lambda: specreg.spectra(None), "expected a torch"),
    "spectra of an empty layer": (lambda: specreg.spectra(empty()), "layer '0' has an empty weight, 0 x 4"),
    "static of an empty layer": (lambda: specreg.static_compensation(empty()), "layer '0' has an empty weight, 0 x 4"),
    "spectra on meta": (lambda: specreg.spectra(N().to("meta")), "layer '0' is on the meta device: give it memory"),
    "static moved to meta": (lambda: on_meta(specreg.static_compensation).step(), "moved to the meta device"),
    "Monitor moved to meta": (lambda: on_meta(specreg.Monitor).step(1), "moved to the meta device"),
    "SN on meta": (lambda: specreg.spectral_norm(N().to("meta")), "layer '0' is on the meta device"),
    "spectra of a pruned layer": (lambda: specreg.spectra(pruned()), "1 x Linear whose weight a hook derives"),
    "Monitor of wrappers": (
        lambda: specreg.Monitor(nn.ModuleDict({"d": Wrapper()})),
        r"or a module around it, .* of no known layer \(specreg.register takes its class\): d.w_bar$",
    ),
    "static of a list": (lambda: specreg.static_compensation([N(), N()]), "got list: put them into a torch.nn.ModuleD"),
    "remove from a number": (lambda: specreg.remove(5), "expected a torch"),
    "Monitor every 0": (lambda: specreg.Monitor(N(), every=0), "every must be an integer of at least 1"),
    "Monitor of nothing": (lambda: specreg.Monitor(nn.ReLU()), "no layer matched"),
    "Guard keep 0": (lambda: specreg.Guard(specreg.Monitor(N()), keep=0), "keep must be a fraction"),
    "Guard's state": (lambda: guard().load_state_dict({"a": 1}), "not a guard's state"),
    "History limit 1": (lambda: specreg.History(1), "limit must be an integer of at least 2"),
    "History of no layer": (lambda: history().singular_values("b"), "no layer 'b'"),
    "Thresholds of words": (lambda: specreg.Thresholds(window="long"), "window must be an integer of at least 1"),
    "Thresholds nan": (lambda: specreg.Thresholds(far=NAN), "far must lie in"),
    "Detector of no values": (lambda: specreg.Detector().update(1, {"a": []}), "'a'"),
    "attainment of nothing": (lambda: specreg.attainment(nn.ReLU(), torch.ones(2, 4)), "no layer matched"),
    "register no name": (lambda: specreg.register(nn.Linear, weight=None), "weight must be of type str, got NoneType"),
    "diversity of arrays": (
        lambda: specreg.diversity(np.ones((4, 2)), torch.rand(4, 2)), "generated samples must be of type Tensor, got nda"
    ),
    "gradients of arrays": (
        lambda: specreg.gradient_norms(N(), np.ones((4, 4)), np.ones((4, 4))), "real samples must be of type Tensor"
    ),
    "diversity of shapes": (lambda: specreg.diversity(torch.ones(4, 2), torch.ones(4, 3)), "shape"),
    "diversity of two": (lambda: specreg.diversity(torch.rand(2, 3), torch.rand(2, 3)), "at least 3 samples"),
    "diversity of NaN": (lambda: specreg.diversity(torch.full((4, 2), NAN), torch.rand(4, 2)), "NaN or inf"),
    "diversity of one": (lambda: specreg.diversity(torch.rand(4, 2), torch.ones(4, 2)), "all alike"),
    "from_dict of a list": (lambda: from_dict(RunConfig, [1]), "must be an object with keys"),
    "from_dict of another type": (lambda: from_dict(Settings, {"compile": "yes"}), "compile must be true or false"),
    "image_size true": (lambda: find_images(Path(__file__).parent).open(image_size=True), "image_size must be"),
    "image_size 10**9": (lambda: load_images(Path(__file__).parent, image_size=10**9), "image_size must be"),
    "spectra of a lazy layer": (
        lambda: specreg.spectra(nn.Sequential(nn.LazyLinear(3))), r"layer '0' has no weight yet \(lazy module\)",
    ),
    "dynamic start -1": (lambda: specreg.dynamic_compensation(N(), start=-1), "start must be an integer of at least 0"),
    "SR gradient true": (
        lambda: specreg.spectral_regularization(N(), gradient="true"), "gradient must be one of paper, exact, got 'true'",
    ),
    "SN of what normalizes itself": (
        lambda: specreg.spectral_norm(nn.Sequential(OwnNormalized(3, 4, 3))),
        "no layer matched: 0 are normalized by their own class already",
    ),
    "spectral penalty exponent 0": (lambda: specreg.spectral_penalty(N(), exponent=0), "at least 1, got 0"),
    "counts of dynamic": (lambda: specreg.dynamic_compensation(N()).counts(), "raises no number of singular values"),
    "When broken": (lambda: When("broken", call=print), "a state must be one of .*, got 'broken'"),
    "When of nothing": (lambda: When(call=print), "name one"),
    "RollBack times 1.5": (lambda: RollBack(Pin({"d": N()}), times=1.5), "times must be an integer"),
    "Pin of nothing": (lambda: Pin({}), "nothing to pin"),
    "Pin copies 0": (lambda: Pin({"d": N()}, copies=0), "copies must be"),
    "Pin in no folder": (lambda: Pin({"d": N()}, folder=Path("nowhere")), "does not exist"),
    "Pin before a copy": (lambda: Pin({"d": N()}).restore(), "nothing was pinned"),
    "tracker": (lambda: tracker("neptune"), "a tracker must be one of wandb, mlflow, trackio, got 'neptune'"),
    "TensorBoardWriter images_every -1": (
        lambda: TensorBoardWriter(specreg.Monitor(N()), "x", images_every=-1), "images_every must be an integer of at",
    ),
    "JsonlWriter in no folder": (
        lambda: JsonlWriter(specreg.Monitor(N()), Path("absent/a.jsonl")), "absent does not exist: create it first",
    ),
    "operator norm of 7x7": (
        lambda: convolution_norm(torch.randn(2, 2, 3, 3), [7, 7], stride=[2, 2]), "multiple of the stride",
    ),
    "neighbours of five": (
        lambda: neighbourhoods(torch.rand(5, 2), torch.rand(9, 2)), "5 neighbours need more points than 5",
    ),
    "ResNet of 28x28": (lambda: resnet.Discriminator(28, 4), "the sides are 8, 16, 32, 48, 64, 128"),
    "DCGAN of 30x30": (lambda: dcgan.Generator(30, 4), "no DCGAN for 30x30 images: the sides are 28, 32"),
    **{
        f"Thresholds {options}": (lambda options=options: specreg.Thresholds(**options), f"{next(iter(options))} must")
        for options in (
            {"window": 0}, {"warmup": -1}, {"patience": 1.5}, {"fast": 0}, {"sustained": 0}, {"far": 1},
            {"collapsed": 0.1}, {"regained": 2},
        )
    },
    **{
        f"ModeThresholds {options}": (lambda options=options: ModeThresholds(**options), said)
        for options, said in (
            ({"smoothing": 0}, "smoothing must be an integer of at least 1"),
            ({"warmup": -1}, "warmup must be an integer of at least 0"),
            ({"lost": 1.0}, r"lost must lie in \(0, 1\), got 1.0"),
            ({"learnt": NAN}, r"learnt must lie in \(0, 1\), got nan"),
            ({"losing": 0.3, "lost": 0.2}, r"lost must be at least losing \(0.3\), got 0.2"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_one_line(name):
    call, said = CALLS[name]
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


READERS: dict[str, Callable[[Path], object]] = {
    "find_images": lambda path: find_images(path).open(),
    "load_images": load_images,
    "History.load": specreg.History.load,
    "open_checkpoint": open_checkpoint,
    "load_checkpoint": load_checkpoint,
    "open_cells": lambda path: open_cells([path]),
    "RunDirectory.read": lambda path: RunDirectory(path.parent).read(path.stem),
}
PATHS: dict[str, spoilt.Builder] = {
    "nothing": spoilt.unprintable(".json"),
    "a folder": spoilt.folder_of("a.json"),
    "a pipe": spoilt.pipe("a.json"),
    "a circle": spoilt.circle("a.json"),
    "below a file": spoilt.below_a_file("a.json"),
    "too long": spoilt.too_long(".json"),
    "no bytes": spoilt.file("a.json", b""),
    "text": spoilt.file("a.json", b"text\n\x1b[2J"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PATHS)
def test_a_bad_path_is_one_line_whatever_reads_it(kind, reader, tmp_path):
    path = Path(PATHS[kind](tmp_path))
    before = spoilt.tree(tmp_path)
    if (reader, kind) in {("RunDirectory.read", one) for one in ("nothing", "a circle", "below a file")}:
        assert READERS[reader](path) is None
        return
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert spoilt.tree(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [spoilt.npz(iterations=np.array(["a"])), spoilt.npz(iterations=np.array(3)), spoilt.npz(x=np.ones((2, 2))),
     spoilt.npz(iterations=np.array([2, 1]), a=np.ones((2, 3), np.float32)), spoilt.huge_npz("iterations"),
     spoilt.npz(iterations=np.array([1, 2]), a=np.array(["a", "b"])), spoilt.torn(spoilt.npz(iterations=np.arange(9))),
     spoilt.npz(iterations=np.array([print], dtype=object)), spoilt.zipped({"iterations.npy": b"\x93NUMPX"})],
)  # fmt: skip
def test_a_history_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is not a (readable )?history of spectra.*: (save|name)"):
        specreg.History.load(tmp_path / "a.npz")


def test_a_refused_call_leaves_the_module_as_it_was():
    module = network()
    before = copy.deepcopy(module.state_dict())
    for call in (
        lambda: specreg.static_compensation(module, keep=NAN),
        lambda: specreg.spectral_norm(module, only="9"),
        lambda: specreg.spectral_regularization(module, gradient="none"),
        lambda: specreg.orthogonalize(module, iterations=math.inf),
    ):
        with pytest.raises(ValueError, match=r"must be|names no layer"):
            call()
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
