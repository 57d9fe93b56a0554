"""Bad input, a table of it: one line that names the thing and the remedy, exit code 2, nothing written.

One case for each kind of error: what is wrong within images, archives and checkpoints stands with what reads them.
"""

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import spoilt
from runs import make_run
from specreg.cli import main
from specreg.experiments.config import Settings
from spoilt import (
    DEEP,
    SHALLOW,
    Builder,
    below_a_file,
    encoded,
    file,
    folder_of,
    pipe,
    png,
    saved,
    too_long,
    torn,
    tree,
    unprintable,
    zipped,
)

TINY = [
    "--steps", "2", "--batch-size", "4", "--d-channels", "4", "--g-channels", "4", "--latent", "4", "--d-steps", "1",
    "--samples", "10", "--reference", "10", "--log-every", "1", "--spectra-every", "1", "--checkpoint-every", "1",
    "--no-tensorboard", "--quiet",
]  # fmt: skip
NINES = "9" * 30
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two steps, which brings everything to memory that the commands import."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(out), *TINY]) == 0
    (out / "result.json").unlink()
    (out / "checkpoint-before.pt").unlink()
    make_run(out.parent / "made")
    assert main(["report", str(out.parent / "made"), "--out", str(out.parent / "page.html")]) == 0
    assert main(["inspect", spoilt.file("w.pt", weights())(out.parent)]) == 0
    return out


def weights() -> bytes:
    return saved({"conv.weight": torch.randn(4, 3, 3, 3), "last.weight": torch.eye(4)})


class Run:
    """A copy of the trained run, spoilt; as an argument, its path."""

    def __init__(self, *spoils: Spoil, name: str = "run") -> None:
        self.spoils, self.name = spoils, name


def written(name: str, content: bytes | str) -> Spoil:
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def gone(name: str) -> Spoil:
    return lambda run: (run / name).unlink()


def piped(name: str) -> Spoil:
    return lambda run: ((run / name).unlink(missing_ok=True), os.mkfifo(run / name))


def a_folder(name: str) -> Spoil:
    return lambda run: ((run / name).unlink(missing_ok=True), (run / name).mkdir())


def linked(name: str, target: str) -> Spoil:
    return lambda run: ((run / name).unlink(missing_ok=True), (run / name).symlink_to(target))


def changed(name: str, **values: object) -> Spoil:
    """Change keys of a JSON file; a dotted one, with two underscores for the dot, inside."""

    def spoil(run: Path) -> None:
        whole = json.loads((run / name).read_text())
        for key, value in values.items():
            *outer, last = key.split("__")
            inside = whole
            for one in outer:
                inside = inside[one]
            inside[last] = value
        (run / name).write_text(json.dumps(whole))

    return spoil


def state(change: Callable[[dict[str, object]], object]) -> Spoil:
    """Change what a checkpoint holds."""

    def spoil(run: Path) -> None:
        held = torch.load(run / "checkpoint.pt", weights_only=True)
        held = change(held) or held
        torch.save(held, run / "checkpoint.pt")

    return spoil


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def noise(folder: Path) -> str:
    """Few real images: those of a data set take a second to be compared with."""
    np.savez(folder / "noise.npz", images=np.random.default_rng(0).integers(256, size=(200, 8, 8), dtype=np.uint8))
    return str(folder / "noise.npz")


def made(*spoils: Spoil, name: str = "made", **how: object) -> Builder:
    """A run as the report reads it, spoilt."""

    def build(folder: Path) -> str:
        run = make_run(folder / name, **how)
        for spoil in spoils:
            spoil(run)
        return str(run)

    return build


def compared(*spoils: Spoil) -> Builder:
    """A comparison whose only run is complete, and spoilt."""

    def build(folder: Path) -> str:
        settings = asdict(Settings())
        run = make_run(folder / "compared" / "runs" / "sn-seed0", "sn")
        cells = {"runs": {"changes": [], "runs": ["sn-seed0"], "settings": settings}}
        (run.parents[1] / "sweep.json").write_text(json.dumps({"preset": "", "cells": cells}))
        (run / "config.json").write_text(json.dumps({"method": "sn", "seed": 0, "settings": settings}))
        for spoil in spoils:
            spoil(run)
        return str(folder / "compared")

    return build


def swept(content: bytes | str, name: str = "sweep.json") -> Builder:
    return file(f"swept/{name}", content.encode() if isinstance(content, str) else content)


def parent(builder: Builder) -> Builder:
    return lambda folder: str(Path(builder(folder)).parent)


def images(**entries: bytes) -> Builder:
    return file("images.zip", zipped({name.replace("__", "."): content for name, content in entries.items()}))


OUT = "<out>"  # a path where nothing is
BAD_JSON = {  # content -> what is said of it
    "no UTF-8": (b'{"method": "\xff"}', "is damaged"),
    "half": (b'{"method": "sn", "see', "is damaged"),
    "a list": (b"[1, 2]", ""),
    "null": (b"null", ""),
    "deep": (DEEP, "nested too deeply"),
    "deep enough": (SHALLOW, "nested too deeply"),
    "a number of 5000 digits": (b'{"seed": ' + b"9" * 5000 + b"}", "is damaged"),
    "an unknown key": (b'{"colour": "red"}', ""),
    "an unprintable key": ('{"\x1b[2J\u202e": 1}'.replace("\x1b", "\\u001b").encode(), ""),
}
WRONG_VALUES = {  # of a run's configuration -> what is said
    "settings__training__steps": ("5", "steps must be an integer, got '5'"),
    "settings__training__batch_size": (10**12, "batch_size must be an integer of at most 65536"),
    "settings__training__d_lr": (float("nan"), "d_lr must be a finite number, got nan"),
    "settings__data__data": (5, "data must be a string, got 5"),
    "settings__data__conditional": ("no", "conditional must be true or false, got 'no'"),
    "settings__data__image_size": ([8], "image_size must be an integer or null, got [8]"),
    "settings__data": ([], "settings.data must be an object with keys"),
    "method": (["sn"], "method must be one of"),
}
SOME_JSON = {name: BAD_JSON[name] for name in ("half", "a list", "deep")}  # where the same code reads it

COMPARE = {
    "unknown flag": (["--stepz", "5"], "Unrecognized options: --stepz, 5 (did you mean --steps?)"),
    "value of a wrong type": (["--steps", "many"], "Error parsing --steps: invalid literal"),
    "unknown method": (["--methods", "magic"], "methods must be one of sn, static, dynamic"),
    "a method with a slip": (["--methods", "sttic"], "got 'sttic' (did you mean static?)"),
    "no methods": (["--methods", ","], "methods must not be empty"),
    "seeds given twice": (["--seeds", "0", "--seeds=1"], "--seeds is given 2 times, and only the last would count"),
    "bad seed": (["--seeds", "one"], "seeds must be integers, got 'one'"),
    "seed that numpy refuses": (["--seeds", "4294967296"], "seed must be an integer of at most 4294967295"),
    "no jobs": (["--jobs", "0"], "jobs must be an integer of at least 1"),
    "unwritable output": (["--out", "/proc/specreg"], "cannot write to /proc/specreg"),
    "output that is a file": (["--out", file("out", b"text")], "cannot write to"),
    "no such features": (["--features", "mnist"], "features are for 28x28 images"),
    "unreadable result": (["--methods", "sn", "--out", compared(written("result.json", "[]"))], "result.json is damaged"),
    "damaged spectra": (["--methods", "sn", "--out", compared(written("spectra.jsonl", '{"step": 1}\n'))],
                        "spectra.jsonl is damaged: 'layers'"),
    "a dry run without a test part": (["--dry-run", "--data", images(a__png=png(8)), "--reference-split", "test"],
                                      "that is not trained on: drop --reference-split test"),
    "other settings": (["--methods", "sn", "--steps", "7", "--out", compared()], "holds runs with other settings"),
    "another's pictures": (["--out", parent(swept("", "samples.png"))], "samples.png is there, and no comparison's"),
    "another's results": (["--out", parent(swept("[]", "results.json"))], "results.json is there, and no comparison's"),
    "an empty variable": (["--data", ""], "--data is given nothing: is a variable of the shell not set?"),
    "settings in a pipe": (["--out", parent(pipe("sweep.json"))], "sweep.json is a pipe"),
    "settings of a list": (["--out", parent(swept("[1, 2]"))], "sweep.json does not hold a sweep"),
}  # fmt: skip

SWEEP = {
    "no preset": ([], "preset must be one of paper, "),
    "unknown preset": (["--preset", "papers"], "got 'papers' (did you mean paper?)"),
    "unknown cell": (["--preset", "paper", "--cells", "A16128"], "no cell is named 'A16128' (did you mean A16-128?)"),
    "no time": (["--preset", "digits", "--minutes", "nan"], "minutes must be a positive number, got nan"),
    "less than no GPU": (["--preset", "digits", "--gpus", "-1"], "gpus must not be negative"),
    "cores without Ray": (["--preset", "digits", "--cpus", "2"], "--cpus and --gpus are for --ray"),
    "jobs on Ray": (["--preset", "digits", "--ray", "--jobs", "2"], "--jobs is for this machine alone"),
    "images that are not shipped": (["--preset", "paper", "--cells", "A16-128"], "say where they are with --data"),
    "two data sets": (["--preset", "paper"], "choose the cells of one data set with --cells"),
    "images that are not there": (["--preset", "paper", "--cells", "A16-128", "--data", "x.zip"], "no data at x.zip, seen from"),
    "weights without their features": (["--preset", "digits", "--inception-weights", "w.pth"],
                                       "--inception-weights are for --features inception"),
    "a sweep in a pipe": (["--preset", "digits", "--out", parent(pipe("sweep.json"))], "sweep.json is a pipe"),
    "a sweep in a run": (["--preset", "digits", "--out", Run()], "holds a run: choose another folder"),
} | {
    f"sweep.json: {name}": (["--preset", "digits", "--out", parent(swept(content))], said or "does not hold a sweep")
    for name, (content, said) in SOME_JSON.items()
}  # fmt: skip

TRAIN = {
    "an empty output": (["--out="], "--out is given nothing"),
    "another's records": (["--out", parent(swept('{"step": 1}\n', "metrics.jsonl"))], "metrics.jsonl is there, and no run"),
    "another's result": (["--out", parent(swept("{}", "result.json"))], "result.json is there, and no run's config.json"),
    "absurd side": (["--image-size", "1000000000"], "image_size must be an integer of at most"),
    "rate that is no number": (["--d-lr", "nan"], "d_lr must be a finite number, got nan"),
    "detector's nan": (["--detector.fast", "nan"], "fast must"),
    "negative seed": (["--seed", "-1"], "seed must be an integer of at least 0"),
    "unknown loss": (["--loss", "mse"], "invalid choice 'mse' for argument '--loss'"),
    "weights that are not there": (["--features", "inception", "--inception-weights", "none.pth"], "Inception "),
    "resized digits": (["--image-size", "32"], "digits are 8x8"),
    "cached digits": (["--cache", "cache"], "drop --stacked and --cache"),
    "output below a file": (["--out", below_a_file("below")], "cannot write to"),
    "a run in a sweep": (["--out", parent(swept(b"{}"))], "holds a comparison or a sweep: choose another folder"),
    "output of no UTF-8 in /proc": (["--out", os.fsdecode(b"/proc/\xff")], "cannot write to"),
    "missing data": (["--data", "nowhere.zip"], "no data at nowhere.zip"),
    "data with too long a name": (["--data", too_long(".zip")], "File name too long"),
    "data from a device": (["--data", "/dev/zero"], "/dev/zero is a pipe or a device"),
    "half an image": (["--data", folder_of("images", a__png=torn(png(64)))], "a.png is not a readable image"),
    "a zip of texts": (["--data", images(a__txt=b"a")], "holds no images"),
    "no network": (["--data", images(a__png=png(30))], "no network for 30x30 images"),
    "conditional without a network for it": (["--data", images(a__png=png(28)), "--conditional"],
                                             "the network dcgan, chosen as it fits 28x28 images, cannot be conditional: drop"),
    "conditional on nothing": (["--data", images(a__png=png(32)), "--conditional"], "has no classes to be conditional"),
    "a cache that is a file": (["--data", images(a__png=png(32)), "--cache", file("cache", b"")], "cannot write the cache"),
    "configuration from a pipe": (["--out", Run(piped("config.json"))], "config.json is a pipe"),
    "lock that is a pipe": (["--out", Run(piped("run.lock"))], "run.lock is a pipe"),
    "another configuration": (["--out", Run(), "--d-channels", "5", "--d-lr", "0.5"],
                              "holds a run with another configuration (d_channels 4 -> 5; d_lr 0.0002 -> 0.5)"),
    "fewer steps": (["--out", Run(), "--steps", "1"], "another configuration (steps 2 -> 1: steps can only grow)"),
    "more steps of falling rates": (["--out", Run(changed("config.json", settings__training__lr_decay="linear")), "--steps", "4"],
                                    "(steps 2 -> 4: the learning rates decay to 0 over the old ones)"),
    "other images than before": (["--out", Run(changed("environment.json", images=5))], "was trained on 5 images, and its"),
    "a series that is a folder": (["--out", Run(a_folder("metrics.jsonl"))], "metrics.jsonl is a folder"),
    "a series of lists": (["--out", Run(written("spectra.jsonl", "[]\n"))], "spectra.jsonl, line 1 is damaged"),
    "a series without steps": (["--out", Run(written("events.jsonl", "{}\n"))], "events.jsonl, line 1 is damaged"),
    "a step that is true": (["--out", Run(written("events.jsonl", '{"step": true}\n'))], "events.jsonl, line 1 is"),
    "a deep line": (["--out", Run(written("events.jsonl", DEEP + b"\n"))], "line 1 is damaged (nested too deeply)"),
    "a distance of words": (["--out", Run(written("evaluations.jsonl", '{"step": 0, "fd": "low"}\n'))],
                            "evaluations.jsonl is damaged"),
    "a time that is a list": (["--out", Run(written("timing.json", "[]"))], "timing.json is damaged"),
} | {
    f"configuration: {name}": (["--out", Run(written("config.json", content))], said or "config.json is ")
    for name, (content, said) in BAD_JSON.items()
} | {
    f"configuration: {key}": (["--out", Run(changed("config.json", **{key: value}))], said)
    for key, (value, said) in WRONG_VALUES.items()
}  # fmt: skip

CHECKPOINTS = {
    "a text": (written("checkpoint.pt", b"text"), "checkpoint.pt is not a readable checkpoint"),
    "a folder": (a_folder("checkpoint.pt"), "checkpoint.pt is a folder"),
    "a pipe": (piped("checkpoint.pt"), "checkpoint.pt is a pipe"),
    "of somebody else": (written("checkpoint.pt", weights()), "is not a checkpoint of specreg"),
    "a list": (written("checkpoint.pt", saved([1, 2])), "is not a checkpoint of specreg"),
    "a module": (written("checkpoint.pt", saved(torch.nn.Linear(1, 1))), "checkpoint.pt is not a readable checkpoint"),
    "compressed": (lambda run: written("checkpoint.pt", spoilt.compressed((run / "checkpoint.pt").read_bytes()))(run),
                   "is not a readable checkpoint"),
    "of another schema": (state(lambda held: held.update(schema=99)), "checkpoint.pt has schema 99"),
    "without a network": (state(lambda held: held.pop("generator") and None), "describes (KeyError"),
    "a network of another size": (state(lambda held: held["generator"].update({next(iter(held["generator"])): torch.ones(3)})),
                                  "describes (RuntimeError"),
    "draws of text": (state(lambda held: held.update(draws="text")), "describes (TypeError"),
}  # fmt: skip
for _name, (_spoil, _said) in CHECKPOINTS.items():
    TRAIN[f"checkpoint: {_name}"] = (["--out", Run(_spoil)], _said)

EVALUATE = {
    "too few real images": ([Run(), "--reference", "5"], "reference must be an integer of at least 10"),
    "no run": ([OUT], "does not exist"),
    "a comparison": ([compared()], "compared/runs/sn-seed0?"),
    "a run of no UTF-8": ([unprintable("")], "does not exist"),
    "no checkpoint": ([Run(gone("checkpoint.pt"))], "has no checkpoint yet"),
    "no best checkpoint": ([Run(gone("checkpoint-best.pt")), "--checkpoint", "best"], "has no best checkpoint"),
    "unknown checkpoint": ([Run(), "--checkpoint", "worst"], "--checkpoint must be one of last, best, "),
    "too few samples": ([Run(), "--samples", "2"], "samples must be an integer of at least 10"),
    "absurd samples": ([Run(), "--samples", NINES], "samples must be an integer of at most"),
    "weights without their features": ([Run(), "--inception-weights", "w.pth"], "--inception-weights are for"),
    "configuration of a list": ([Run(written("config.json", "[]"))], "config.json is damaged"),
} | {
    f"checkpoint: {name}": ([Run(CHECKPOINTS[name][0])], CHECKPOINTS[name][1])
    for name in ("a text", "of another schema")
}

SAMPLE = {
    "no run": ([OUT, "--out", "new.png"], "does not exist"),
    "picture of a wrong kind": ([OUT, "--out", "new.gif"], "has to be a .png file"),
    "picture that exists": ([Run(), "--out", "../there.png"], "exists: choose another name with --out"),
    "picture that is a folder": ([Run(), "--out", folder_of("a.png")], "is no file that could be replaced"),
    "picture in no folder": ([Run(), "--out", "none/new.png"], "has to be a .png file in a folder that exists"),
    "picture in /proc": ([Run(), "--out", "/proc/new.png"], "cannot write to /proc"),
    "picture with too long a name": ([Run(), "--out", too_long(".png")], "give a shorter name"),
    "no side": ([Run(), "--side", "0"], "side must be an integer of at least 1"),
    "data that vanished": ([Run(changed("config.json", settings__data__data="gone.zip"))], "no data at gone.zip"),
}  # fmt: skip

INSPECT = {
    "no checkpoint": ([], "no checkpoint given"),
    "missing checkpoint": ([OUT], "there is no checkpoint"),
    "a device": (["/dev/zero"], "/dev/zero is a pipe or a device"),
    "a file that cannot be read": (["/proc/self/mem"], "/proc/self/mem cannot be read"),
    "a folder of two": ([folder_of("two", a__pt=b"", b__pt=b"")], "/two/*.pt"),
    "a network without what holds it": ([file("a.pt", lambda: saved({"models.netD.0.weight": torch.eye(4), "models.netG.0.weight": torch.eye(4)})), "--only", "netD"],
                                        "(did you mean models.netD?)"),
    "no layer left": ([file("a.pt", weights), "--skip", "*"], "--skip leaves no layer"),
    "plot of a wrong kind": ([file("a.pt", weights), "--plot", "new.jpg"], "has to be a .png or .svg file"),
    "plot that exists": ([file("a.pt", weights), "--plot", "../there.png"], "exists: choose another name with --plot"),
    "nothing to plot": ([file("a.pt", lambda: saved({"a.weight": torch.full((3, 3), float("nan"))})), "--plot", "new.png"],
                        "there is no spectrum to plot"),
}  # fmt: skip

WATCH = {
    "layers of images": ([folder_of("a.png"), "--real", "digits", "--only", "conv"], "--only is for checkpoints"),
    "no folder": ([OUT, "--real", "digits", "--once"], "there is no folder"),
    "a file": ([file("a.png", png()), "--real", "digits"], "there is no folder"),
    "no folder named": ([], "no folder given"),
    "no checkpoints": ([folder_of("run"), "--once"], "holds nothing to read: looked for checkpoints"),
    "a checkpoint of text": ([folder_of("run", a__pt=b"text"), "--once"], "a.pt is neither a safetensors file nor one of torch.save"),
    "no images": ([folder_of("run"), "--real", noise, "--once"], "holds nothing to read: looked for images of 8x8"),
    "missing data": ([folder_of("run"), "--real", "nowhere.zip"], "no data at nowhere.zip"),
    "points": ([folder_of("run"), "--real", "ring"], "ring has points and no images"),
    "too few real images": ([folder_of("run"), "--real", images(a__png=png(8))], " has 1 image: give 100 or more"),
    "features of another size": ([folder_of("run"), "--real", "digits", "--features", "mnist"], "features are for 28x28 images"),
    "unknown features": ([folder_of("run"), "--real", "digits", "--features", "vgg"], "invalid choice 'vgg' for argument '--features'"),
    "no grid": ([folder_of("run", fakes0__png=png(43)), "--real", noise, "--once"],
                "is 43x43, no grid of 8x8 images: give their size with --tile HEIGHTxWIDTH"),
    "half a grid": ([folder_of("run", fakes0__png=torn(png(64))), "--real", noise, "--once"], "fakes0.png is not a readable"),
    "a grid that is a bomb": ([folder_of("run", fakes0__png=spoilt.bomb_png()), "--real", noise, "--once"], "is not a readable"),
    "a grid of few": ([folder_of("run", fakes0__png=png(24)), "--real", noise, "--once"], "9 images, and a reading takes 20"),
    "arrays of something else": ([folder_of("run", a__npz=zipped({"mu.npy": b""})), "--real", noise, "--once"],
                                 "no array 'images', it has mu"),
    "a tile of words": ([folder_of("run"), "--real", "digits", "--tile", "8 by 8"], "tile must be a side or HEIGHTxWIDTH"),
    "no tile": ([folder_of("run"), "--real", "digits", "--tile", "0"], "tile must be a side or HEIGHTxWIDTH"),
    "tiles of checkpoints": ([folder_of("run"), "--tile", "8"], "give real ones with --real"),
    "a pool of checkpoints": ([folder_of("run"), "--once", "--pool", "500"], "--pool, --warmup are for images"),
    "unknown state": ([folder_of("run"), "--real", "digits", "--fail-on", "gone"], "fail-on must be one of not judged, healthy"),
    "a state of images": ([folder_of("run"), "--fail-on", "lost"], "fail-on must be one of not judged, steady"),
    "no pause": ([folder_of("run"), "--every", "nan"], "every must be a number of seconds in (0, 86400], got nan"),
    "no pool": ([folder_of("run"), "--pool", "3"], "pool must be an integer of at least 20"),
    "negative warmup": ([folder_of("run"), "--warmup", "-1"], "warmup must be an integer of at least 0"),
    "readings of a wrong kind": ([folder_of("run"), "--json", "new.txt"], "has to be a .jsonl file"),
}  # fmt: skip

SERIES = ("metrics", "evaluations", "spectra", "verdicts", "sensitivity", "outputs", "events")
REPORT = {
    "nothing": ([], "name at least one run directory"),
    "no run": ([OUT], "does not exist"),
    "an empty folder": ([empty_folder], "is neither a run directory nor a comparison folder"),
    "a run without its folder": ([lambda folder: str(Path(compared()(folder)) / "sn-seed0")], "compared/runs/sn-seed0?"),
    "page of a wrong kind": ([made(), "--out", "page.pdf"], "has to be a .html or .htm file"),
    "page that exists": ([made(), "--out", file("page.html", b"")], "page.html exists: choose another name"),
    "page in /proc": ([made(), "--out", "/proc/page.html"], "cannot write to /proc"),
    "page below a file": ([made(), "--out", below_a_file("new.html")], "new.html has to be a .html or .htm file in a folder that exists"),
    "configuration that cannot be read": ([made(linked("config.json", "/proc/self/mem"))], "config.json cannot be read"),
    "page with too long a name": ([made(), "--out", too_long(".html")], "give a shorter name"),
    "configuration of words": ([made(changed("config.json", seed="one"))], "is not a run's configuration"),
    "configuration from a pipe": ([made(piped("config.json"))], "config.json is a pipe"),
    "result of words": ([made(changed("result.json", fd="low"))], "result.json is damaged"),
    "result of absurd size": ([made(changed("result.json", kl=10**400))], "result.json is damaged"),
    "environment of a list": ([made(written("environment.json", "[]"))], "environment.json is damaged"),
    "picture of text": ([made(written("samples.png", "text"))], "samples.png is damaged: it is no picture"),
    "picture from a pipe": ([made(piped("samples.png"))], "samples.png is a pipe"),
    "picture that is a bomb": ([made(written("samples.png", spoilt.bomb_png()))], "samples.png is damaged: it is no"),
    "verdict of no state": ([made(written("verdicts.jsonl", '{"step": 1, "state": "fine"}\n'))], "verdicts.jsonl is damaged"),
    "picture of what is missing": ([made(written("missing.png", "text"), reading={"missing": 0.5})], "missing.png is damaged"),
    "spectra of words": ([made(written("spectra.jsonl", '{"step": 1, "layers": {"a": ["x"]}}\n'))],
                         "spectra.jsonl is damaged: 'layers' at step 1"),
    "sensitivity of nothing": ([made(written("sensitivity.jsonl", '{"step": 1, "attainment": {"a": null}}\n'))],
                               "sensitivity.jsonl is damaged: 'attainment' at step 1"),
    "layers that are numbers": ([made(
        written("verdicts.jsonl", '{"step": 1, "iteration": 1, "state": "collapsed", "since": 1, "layers": [[1]], '
                                  '"message": "", "evidence": {}}\n'))], "verdicts.jsonl is damaged: 'layers'"),
    "a sweep of nothing": ([parent(swept('{"preset": "p", "cells": {}}'))], "no run is planned in these folders"),
    "a sweep in a pipe": ([parent(pipe("sweep.json"))], "sweep.json is a pipe"),
    "a cell that is a number": ([parent(swept('{"preset": "p", "cells": {"A": 3}}'))], "sweep.json does not hold a sweep"),
    "a sweep that leads out": ([parent(swept('{"preset": "p", "cells": {"../x": {"changes": [], "runs": [], "settings": {}}}}'))],
                               "names '../x', no folder of its own"),
} | {
    f"{series} {how}": ([made(written(f"{series}.jsonl", content))], f"{series}.jsonl, line 1 is damaged")
    for series, how, content in (
        *((series, "of lists", b"[1]\n") for series in SERIES),
        ("metrics", "of no UTF-8", b"\xff\xfe\n"), ("metrics", "nested", SHALLOW + b"\n"),
    )
} | {
    f"configuration: {name}": ([made(written("config.json", content))], said or "config.json")
    for name, (content, said) in SOME_JSON.items()
} | {
    f"sweep.json: {name}": ([parent(swept(content))], said or "does not hold a sweep")
    for name, (content, said) in SOME_JSON.items()
}  # fmt: skip

TABLES = {
    "compare": COMPARE, "sweep": SWEEP, "train": TRAIN, "evaluate": EVALUATE, "sample": SAMPLE, "inspect": INSPECT,
    "watch": WATCH,    "report": REPORT,
}  # fmt: skip
CASES = [
    pytest.param([command, *arguments], said, id=f"{command}: {name}")
    for command, table in TABLES.items()
    for name, (arguments, said) in table.items()
] + [pytest.param(["trian"], "unknown command 'trian' (did you mean train?)", id="unknown command")]


def given(argument: object, trained: Path, folder: Path) -> str:
    if isinstance(argument, Run):
        shutil.copytree(trained, folder / argument.name)
        for spoil in argument.spoils:
            spoil(folder / argument.name)
        return str(folder / argument.name)
    if argument is OUT:
        return str(folder.parent / "out")
    return argument(folder) if callable(argument) else str(argument)


@pytest.mark.parametrize(("arguments", "said"), CASES)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(arguments, said, trained, tmp_path, monkeypatch, capsys):
    for name in ("data", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "there.png").touch()
    monkeypatch.chdir(tmp_path / "work")
    command = [given(one, trained, tmp_path / "data") for one in arguments]
    before = tree(tmp_path)
    code = main(command)
    printed = capsys.readouterr()
    assert tree(tmp_path) == before
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("specreg: error: ")
    assert said in printed.err
    assert printed.err.endswith("\n")
    assert printed.err[:-1].isprintable()


def test_a_checkpoint_that_was_kept_alone_is_read(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checkpoint.pt").unlink()
    assert main(["evaluate", str(run), "--checkpoint", "best", "--samples", "10"]) == 0


def test_an_environment_that_could_not_be_made_whole_is_made_again(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nmkdir -p $3/bin\ntouch $3/bin/python\nexit 1\n")
    python.chmod(0o755)
    target = tmp_path / "venv" / "bin" / "python"
    makefile = Path(__file__).parents[2] / "Makefile"
    command = ["make", "-s", "-f", str(makefile), f"VENV={tmp_path / 'venv'}", f"PYTHON={python}", str(target)]
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    assert subprocess.run(command, check=False, capture_output=True, env=environment).returncode != 0
    assert target.parent.is_dir()
    assert not target.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
@pytest.mark.parametrize("command", ["train", "report", "inspect", "sample"])
def test_what_may_not_be_read_or_written_is_named(command, trained, tmp_path, capsys):
    locked = tmp_path / "locked"
    shutil.copytree(trained, locked)
    arguments = {
        "train": ["--out", str(locked / "run")], "report": [str(locked)], "inspect": [str(locked / "checkpoint.pt")],
        "sample": [str(trained), "--out", str(locked / "new.png")],
    }[command]  # fmt: skip
    for path in locked.iterdir():
        path.chmod(0)
    locked.chmod(0o500)
    try:
        assert main([command, *arguments]) == 2
    finally:
        locked.chmod(0o700)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot" in error


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_that_cannot_be_read_are_counted_and_named_at_once(kind, mode, tmp_path):
    from pictures import load_images

    whole = encoded(Image.new(mode, (64, 64)))
    contents = {f"{number:02}__png": torn(whole) if number % 2 else whole for number in range(20)}
    path = {"folder": folder_of("images", **contents), "zip": images(**contents)}[kind](tmp_path)
    with pytest.raises(
        ValueError, match=r"01\.png is not a readable image \(OSError\): remove or replace it; "
    ) as caught:
        load_images(path)
    names = "01.png, 03.png, 05.png, 07.png, 09.png, 11.png, 13.png, 15.png and 2 more"
    rest = f"10 of the 19 images from there on cannot be read: {names}"
    assert str(caught.value).partition("; ")[2] == rest


def test_a_file_that_vanishes_between_listing_and_reading_is_named(tmp_path, monkeypatch):
    from pictures import load_images
    from specreg.data.decoding import ImageFiles

    folder = Path(folder_of("images", a__png=png(), b__png=png())(tmp_path))
    decode = ImageFiles._decode

    def vanish(self, *arguments):
        (folder / "b.png").unlink(missing_ok=True)
        return decode(self, *arguments)

    monkeypatch.setattr(ImageFiles, "_decode", vanish)
    with pytest.raises(ValueError, match=r"b\.png is not a readable image \(FileNotFoundError\): remove or replace it"):
        load_images(folder)
    path = images(a__png=png())(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        load_images(path)
