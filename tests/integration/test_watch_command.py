"""``specreg watch`` beside a training that fills a folder: what it says, when it ends, and that it only looks."""

import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from grids import digits, grid, save_real
from specreg.cli import main
from spoilt import saved, tree
from trainings import Fork, kill


def beside(monkeypatch, *steps):
    """Let a training make a step between two looks; after the last one Ctrl-C is pressed."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)


def stylegan(folder, kimg: int, *, classes: int = 10) -> None:
    """What StyleGAN2-ADA saves at a snapshot: a grid without lines, and the networks."""
    grid(digits(32 * 32, classes=classes, seed=kimg), 32).save(folder / f"fakes{kimg:06d}.png")
    (folder / f"network-snapshot-{kimg:06d}.pkl").write_bytes(b"\x80\x04N.")


def begin_stylegan(folder) -> None:
    (folder / "training_options.json").write_text("{}")
    (folder / "stats.jsonl").write_text("")
    grid(digits(32 * 32, classes=3), 32).save(folder / "reals.png")  # taken for generated it would be a loss
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "fakes_init.png")
    stylegan(folder, 0)


def test_a_stylegan_that_loses_modes_is_told_line_by_line_and_ends_the_watch(run, tmp_path, monkeypatch, capsys):
    folder = run / "00000-digits-auto1"
    folder.mkdir()
    begin_stylegan(folder)
    steps = [lambda k=k: stylegan(folder, 200 * k, classes=10 if k < 5 else 3) for k in range(1, 12)]
    beside(monkeypatch, *steps)
    arguments = ["watch", str(folder), "--real", save_real(tmp_path), "--fail-on", "lost", "never learnt"]
    assert main([*arguments, "--json", str(tmp_path / "readings.jsonl")]) == 5
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines] == ["fakes_init", "0", "200", "400", "600", "800", "1000", "1200"]
    assert lines[0].startswith("fakes_init  coverage not judged yet: ")
    assert re.fullmatch(
        r"800  coverage healthy: at least \d% of the data missing \(floor \d+%, 1024 samples\)", lines[5]
    )
    assert lines[7].startswith("1200  lost modes since iteration 800: at least ")
    assert printed.err == ""
    records = [json.loads(line) for line in (tmp_path / "readings.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, *range(0, 1400, 200)]
    assert records[-1]["state"] == "lost"
    assert records[-1]["lost"] > records[-3]["lost"] + 0.45
    assert main([*arguments, "--once", "--json", str(tmp_path / "readings.jsonl")]) == 5
    assert [
        json.loads(line) for line in (tmp_path / "readings.jsonl").read_text().splitlines()
    ] == records  # none twice
    assert set(records[0]) >= {"missing", "interval", "floor", "lost", "far", "state", "samples", "path"}
    torn = tmp_path / "torn.jsonl"  # a crash has left half a line
    torn.write_text('{"half', encoding="utf-8")
    assert main([*arguments, "--once", "--json", str(torn)]) == 5
    assert [*map(json.loads, torn.read_text(encoding="utf-8").splitlines()[1:])] == records


@pytest.mark.parametrize(("classes", "fail_on", "code"), [(10, ["lost"], 0), (3, ["lost"], 5), (3, [], 0)])
def test_what_is_there_is_judged_once_and_left_as_it_is(classes, fail_on, code, run, tmp_path, capsys):
    for epoch in range(6):  # DCGAN's example: 64 images, torchvision's lines
        kept = 10 if epoch < 3 else classes
        grid(digits(64, classes=kept, seed=epoch), 8, padding=2).convert("RGB").save(
            run / f"fake_samples_epoch_{epoch:03d}.png"
        )
    grid(digits(64), 8, padding=2).save(run / "real_samples.png")
    (run / "netG_epoch_0.pth").write_bytes(saved({}))
    real, before = save_real(tmp_path), tree(run)
    assert main(["watch", str(run), "--real", real, "--once", *(["--fail-on", *fail_on] if fail_on else [])]) == code
    out = capsys.readouterr().out
    assert ("lost modes since iteration 2" in out) == (classes == 3)
    assert ", 64 samples, which are few)" in out
    assert len(out.splitlines()) == (5 if code else 6)
    assert tree(run) == before


def test_tiles_that_are_no_squares_are_cut_to_the_size_that_is_asked_for(run, tmp_path):
    random = torch.Generator().manual_seed(0)
    for step in range(3):
        images = torch.randint(256, (400, 16, 8), generator=random).to(torch.uint8)
        images[:, 4:12] = digits(400, seed=step)  # the central square; the rest is noise
        grid(images, 20).save(run / f"fakes{step}.png")
    size = ["--tile", "16x8", "--image-size", "4"]
    readings = tmp_path / "readings.jsonl"
    assert main(["watch", str(run), "--real", save_real(tmp_path), "--once", "--json", str(readings), *size]) == 0
    records = [json.loads(line) for line in readings.read_text().splitlines()]
    assert [(record["iteration"], record["samples"]) for record in records] == [(0, 400), (1, 400), (2, 400)]
    assert max(record["missing"] for record in records) < 0.1


def test_chosen_files_are_read_together_and_early_ones_are_not_judged(run, tmp_path):
    random = torch.Generator().manual_seed(0)
    for step in range(1, 5):
        for name in ("fakes", "inputs"):  # far from the data, of which nothing is said within the warm-up
            noise = torch.randint(256, (24, 8, 8), generator=random, dtype=torch.uint8)
            grid(noise, 4).save(run / f"{name}{step}.png")
    for warmup, judged in (("1", True), ("1000", False)):
        readings = tmp_path / f"{warmup}.jsonl"
        chosen = ["--once", "--files", "fakes*", "--pool", "40", "--warmup", warmup, "--json", str(readings)]
        assert main(["watch", str(run), "--real", save_real(tmp_path), *chosen]) == 0
        records = [*map(json.loads, readings.read_text().splitlines())]
        assert [(record["iteration"], record["samples"]) for record in records] == [(2, 48), (4, 48)]
        assert (records[-1]["state"] != "not judged") == judged


def test_ctrl_c_ends_it_and_built_in_data_and_features_are_taken(run, monkeypatch, capsys):
    monkeypatch.setattr("specreg.experiments.watch._NUM_REAL", 2000)
    beside(monkeypatch, lambda: np.savez(run / "samples_5.npz", digits(900).reshape(-1, 3, 8, 8).movedim(1, 3).numpy()))
    assert main(["watch", str(run), "--real", "digits", "--features", "digits", "--every", "1"]) == 130
    printed = capsys.readouterr()
    assert printed.out.startswith("5  coverage healthy: at least 0% of the data missing")
    assert printed.err == "specreg: interrupted\n"


def test_checkpoints_are_watched_without_real_images(run, capsys):
    random = torch.Generator().manual_seed(0)
    sound = {f"conv{index}.weight": torch.randn(16, 8, 3, 3, generator=random) for index in range(3)}
    for step in range(8):
        fallen = {name: weight * 0.02 + 1 if step > 4 else weight for name, weight in sound.items()}
        torch.save(fallen, run / f"step-{step}.pt")
    assert main(["watch", str(run), "--once", "--fail-on", "collapsed"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0  step-#.pt  spectra not judged yet"
    assert "collapsed" in lines[-1]


@pytest.mark.slow
def test_lines_come_while_another_process_writes(run, tmp_path):
    printed = tmp_path / "printed"
    printed.touch()
    stylegan(run, 0)
    watching = Fork(printed, main, ["watch", str(run), "--real", save_real(tmp_path), "--every", "0.05"])
    for number, kimg in enumerate((0, 200, 400)):
        while printed.read_text().count("\n") <= number:
            assert watching.poll() is None, printed.read_text()
            time.sleep(0.02)
        assert printed.read_text().splitlines()[number].startswith(f"{kimg}  coverage ")
        stylegan(run, kimg + 200)
    kill(watching)
