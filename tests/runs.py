"""Run directories as a training leaves them, made up in a moment: 12 spectra, of which "blocks.1" collapses."""

import json
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from specreg.experiments.methods import METHODS, record
from specreg.files import write_json
from specreg.monitor.verdict import Evidence, message
from specreg.records import RunDirectory
from spoilt import safetensors, tensor

# What breaks out of text, attributes and comments, if anything does, and what matplotlib takes for mathematics.
HOSTILE = """$\\frac<b id="hostile">b</b>"'><script>document.title = "hostile"</script><img src=x onerror=alert(1)>$"""
# And what steers a terminal, or rich.
ESCAPES = "\x1b]0;hostile\x07\x1b[2J\u202e\x9b31m[link=file:///x]" + HOSTILE
STEPS = tuple(range(0, 1200, 100))
FALL, LOSS = 600, 300
# What a verdict on spectra alone says of the rest.
UNMEASURED = {"state": "not measured", "since": None, "message": "not measured"}
ANSWERS = {"coverage": UNMEASURED, "signal": UNMEASURED}


def make_run(
    path: Path,
    method: str = "sn",
    seed: int = 0,
    *,
    watched: bool = True,
    complete: bool = True,
    name: str = "blocks.1",
    reading: dict[str, float] | None = None,
    **settings: Any,
) -> Path:
    """Write a run directory with two layers, "blocks.0" and ``name``; with a reading coverage was lost by step 300."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    given = {"data": {"data": "digits"}, "training": {"steps": STEPS[-1]}, "methods": {"static": settings}}
    config = {"method": method, "seed": seed, "settings": given}
    run.write("config", config)
    unknown = {"name": method, "title": method, "colour": "#123456", "order": 99}
    run.write("method", record(method) if method in METHODS else unknown)
    run.write("environment", {"torch": "2.13.0", "device": "cpu"})
    for step in STEPS:
        level = 0.9 if step < FALL else 0.2
        layers = {"blocks.0": [2.0, 1.8, 1.6, 1.5], name: [3.0, 3 * level, 2 * level, level]}
        run.append("spectra", {"step": step, "layers": layers})
        run.append("metrics", {"step": step, "d_loss": 1.5 + seed, "g_loss": 0.5})
        if step % 300 == 0:
            metrics = {"modes": 900 - step // 2, "kl": 0.5, "fd": 10.0 + seed} | (reading or {})
            run.append("evaluations", {"step": step} | metrics)
            scores = {"training": [0.0, 1.0, 2.0], "held_out": [-0.5, 0.8, 1.7], "generated": [-2.0, -1.0, 0.5]}
            run.append("outputs", {"step": step, "overfitting": 0.55, "separation": 0.9} | scores)
        if watched:
            _watch(run, step, name, lost=reading is not None)
    for picture in ("samples", "data", *(["missing"] if reading else [])):
        Image.new("RGB", (36, 36), (200, 10 * seed, 0)).save(run.image(picture))
    if complete:
        scores = {"modes": 500 + seed, "kl": 0.5, "fd": 12.0 + seed, "kid": 0.3, "precision": 0.5, "recall": 0.1}
        protocol = {"features": "digit-classifier", "num_real": 100, "num_fake": 50}
        scores |= reading or {}
        run.write(
            "result", {"method": method, "seed": seed, "steps": STEPS[-1], **protocol, **scores, "config": config}
        )
        run.write("timing", {"seconds": 12.0})
    return path


def _watch(run: RunDirectory, step: int, name: str, *, lost: bool) -> None:
    fallen = step >= FALL + 100
    state = "collapsed" if fallen else "steady"
    evidence = {name: {"state": state, "since": 500, "before": 0.9, "now": 0.2, "confidence": 0.99}} if fallen else {}
    verdict = {"step": step, "iteration": step, "state": state, "since": 500 if fallen else None}
    verdict |= {"layers": list(evidence), "confidence": 0.99, "changed": step == FALL + 100}
    told = {name: Evidence("collapsed", 500, 0.9, 0.2, 0.99)}
    verdict |= {"message": message("collapsed", 500, [name], told) if fallen else state, "evidence": evidence}
    answers = {"spectra": {key: verdict[key] for key in UNMEASURED}} | ANSWERS
    if lost and step >= LOSS:
        verdict["state"] = "lost"
        answers["coverage"] = {"state": "lost", "since": LOSS, "message": f"lost modes since iteration {LOSS}"}
        answers["signal"] = {"state": "teaching", "since": None, "message": "the discriminator teaches"}
    run.append("verdicts", verdict | answers)
    if step % 300 == 0:
        norms = {"real": 1.0, "generated": 2.0, "interpolated": 1.5}
        measured = {"attainment": {"blocks.0": 0.5, name: 0.4, "head": 1.0}, "gradient_norms": norms}
        run.append("sensitivity", {"step": step, **measured, "diversity": {"ratio": 0.8, "duplicates": 0.0}})
    if step == 900:
        run.append("events", {"step": step, "event": "guard on", "message": f"compensating {name}"})


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def damage(path: Path, **changes: Any) -> None:
    """Change fields of the second record of a series."""
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | changes)
    path.write_text("\n".join(lines) + "\n")


def hostile_sweep(folder: Path) -> Path:
    """Write a sweep's folder whose every string is hostile."""
    name = ESCAPES.replace("/", "")
    cell = {"changes": [ESCAPES], "runs": [f"{name}-seed0", "sn-seed1"], "settings": {ESCAPES: {"b": ESCAPES}}}
    folder.mkdir()
    write_json(folder / "sweep.json", {"preset": ESCAPES, "cells": {"C8-32": cell}})
    make_run(folder / "C8-32" / "sn-seed1", "sn", 1, name=ESCAPES)
    return folder


def hostile_weights(path: Path) -> str:
    """Write a safetensors file with two layers, one of which has a hostile name."""
    header = {
        name: tensor([4, 4], 64 * index, 64 * index + 64)
        for index, name in enumerate((f"{ESCAPES}.weight", "a.weight"))
    }
    identity = struct.pack("<16f", *(float(index % 5 == 0) for index in range(16)))
    path.write_bytes(safetensors(header | {"__metadata__": {ESCAPES: ESCAPES}}, 2 * identity))
    return str(path)
