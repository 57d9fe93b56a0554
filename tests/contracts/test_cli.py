"""What the command line promises: help, version, and for bad input one line, exit code 2 and nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import specreg
from specreg.cli import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command_and_version_the_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("compare", "sweep", "train", "evaluate", "sample", "inspect", "report"):
        assert f"\n  {command} " in out
    assert run(capsys)[1] == out
    assert run(capsys, "--version")[1] == f"specreg {specreg.__version__}\n"


@pytest.mark.parametrize("command", ["compare", "sweep", "train", "evaluate", "sample", "inspect", "report"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: specreg {command}" in capsys.readouterr().out


def test_compare_has_the_promised_flags(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    out = capsys.readouterr().out
    for flag in ("--out", "--methods", "--seeds", "--steps", "--data", "--batch-size", "--d-channels"):
        assert f"{flag} " in out


def test_python_m_specreg_is_the_same_command():
    printed = subprocess.run([sys.executable, "-m", "specreg", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout == f"specreg {specreg.__version__}\n"


def mixed_folder(tmp_path: Path) -> str:
    for side in (8, 16):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    return str(tmp_path)


def corrupt_zip(tmp_path: Path) -> str:
    (tmp_path / "images.zip").write_bytes(b"PK not really")
    return str(tmp_path / "images.zip")


def odd_size(tmp_path: Path) -> str:
    Image.new("L", (30, 30)).save(tmp_path / "30.png")
    return str(tmp_path)


def pickled_module(tmp_path: Path) -> str:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    return str(tmp_path / "module.pt")


def weights(tmp_path: Path) -> str:
    torch.save({"conv[red]\x1b[31m.weight": torch.randn(4, 3, 3, 3), "last.weight": torch.eye(4)}, tmp_path / "w.pt")
    return str(tmp_path / "w.pt")


OUT = "<out>"
BAD = {
    "unknown command": (["trian"], "unknown command 'trian'"),
    "unknown flag": (["compare", "--out", OUT, "--stepz", "5"], "--stepz"),
    "value of a wrong type": (["compare", "--out", OUT, "--steps", "many"], "--steps"),
    "no steps": (["compare", "--out", OUT, "--steps", "0"], "steps must be an integer of at least 1, got 0"),
    "unknown method": (["compare", "--out", OUT, "--methods", "magic"], "methods must be one of sn, static, dynamic"),
    "no methods": (["compare", "--out", OUT, "--methods", ","], "methods must not be empty"),
    "bad seed": (["compare", "--out", OUT, "--seeds", "one"], "seeds must be integers, got 'one'"),
    "negative seed": (["compare", "--out", OUT, "--seeds", "-1"], "-1"),
    "no jobs": (["compare", "--out", OUT, "--jobs", "0"], "jobs must be an integer of at least 1"),
    "negative keep": (["train", "--out", OUT, "--keep", "-0.5"], "keep must be a fraction of r in (0, 1]"),
    "zero layers": (["train", "--out", OUT, "--d-channels", "0"], "d_channels must be an integer of at least 1"),
    "missing data": (["train", "--out", OUT, "--data", "nowhere.zip"], "no data at nowhere.zip"),
    "corrupt zip": (["train", "--out", OUT, "--data", corrupt_zip], "images.zip is not a readable zip file"),
    "mixed sizes": (["train", "--out", OUT, "--data", mixed_folder], "give an image size"),
    "no network": (["train", "--out", OUT, "--data", odd_size], "no network for 30x30 images"),
    "conditional on nothing": (["train", "--out", OUT, "--data", odd_size, "--image-size", "32", "--conditional"],
                               "has no classes to be conditional on"),
    "resized digits": (["train", "--out", OUT, "--image-size", "32"], "digits are 8x8"),
    "unwritable output": (["compare", "--out", "/proc/specreg"], "cannot write to /proc/specreg"),
    "no run": (["evaluate", OUT], "holds no run"),
    "no run to sample": (["sample", OUT, "--out", "new.png"], "holds no run"),
    "picture of a wrong kind": (["sample", OUT, "--out", "new.gif"], "has to be a .png file"),
    "no checkpoint": (["inspect"], "no checkpoint given"),
    "missing checkpoint": (["inspect", OUT], "there is no checkpoint"),
    "checkpoint with code": (["inspect", pickled_module], "which only running code could restore"),
    "unknown layer": (["inspect", weights, "--only", "body"], "--only 'body' names no layer"),
    "plot of a wrong kind": (["inspect", weights, "--plot", "new.jpg"], "has to be a .png or .svg file"),
    "plot that exists": (["inspect", weights, "--plot", "../there.png"], "exists: choose another name with --plot"),
    "stacked digits": (["train", "--out", OUT, "--stacked"], "digits are always stacked"),
    "cached digits": (["train", "--out", OUT, "--cache", "cache"], "drop --stacked and --cache"),
    "cached points": (["train", "--out", OUT, "--data", "ring", "--cache", "cache"], "ring has points"),
    "no such features": (["compare", "--out", OUT, "--features", "mnist"], "features are for 28x28 images"),
    "weights without their features": (["sweep", "--preset", "digits", "--out", OUT, "--inception-weights", "w.pth"],
                                       "--inception-weights are for --features inception"),
    "too few in training": (["train", "--out", OUT, "--samples", "9"], "samples must be an integer of at least 10"),
    "too few samples": (["evaluate", OUT, "--samples", "2"], "samples must be an integer of at least 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(case, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "there.png").touch()
    monkeypatch.chdir(tmp_path / "work")
    given = [str(tmp_path / "out") if a is OUT else a(tmp_path / "data") if callable(a) else a for a in arguments]
    code, out, error = run(capsys, *given)
    assert code == 2
    assert out == ""
    assert error.startswith("specreg: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "work").iterdir()) == []


def test_an_unknown_key_in_a_saved_configuration_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"method": "sn", "colour": "red"}')
    code, _, error = run(capsys, "train", "--out", str(tmp_path))
    assert code == 2
    assert "unknown key 'colour'" in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_without_the_lab_the_command_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("specreg.cli.find_spec", lambda name: None)
    code, _, error = run(capsys, "compare")
    assert code == 2
    assert "pip install 'specreg[lab]'" in error


def test_inspect_prints_a_table_of_80_columns_and_no_control_characters(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = weights(tmp_path)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("conv[red]�[31m") and "healthy" in line for line in lines)
    assert "4×3×3×3 = 4×27" in out
    assert "████" in next(line for line in lines if line.startswith("last"))
    assert "one checkpoint cannot show" in " ".join(out.split())
    assert "\x1b" not in out
    code, out, _ = run(capsys, "inspect", path, path, path)
    assert code == 0
    assert "checkpoints are numbered as given" in out
    assert next(line for line in out.splitlines() if line.startswith("last")).split()[2:] == ["1.00"] * 3 + ["healthy"]


def test_inspect_prints_json_and_draws(tmp_path, capsys):
    code, out, _ = run(capsys, "inspect", weights(tmp_path), "--only", "last", "--json", "--plot", f"{tmp_path}/p.svg")
    assert code == 0
    (layer,) = json.loads(out)["checkpoints"][0]["layers"]
    assert layer["name"] == "last"
    assert layer["singular_values"] == pytest.approx([1.0] * 4)
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")
