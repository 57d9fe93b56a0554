"""What the command line promises: help, version, and what inspect prints; bad input is in test_bad_input.py."""

import contextlib
import errno
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specreg
from specreg import cli, options
from specreg.cli import _COMMANDS, _with_address, main
from specreg.processes import DisagreementError, LostProcessError, MainFailedError

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command_and_version_the_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("compare", "sweep", "train", "evaluate", "sample", "inspect", "watch", "report"):
        assert f"\n  {command} " in out
    assert max(map(len, out.splitlines())) < 80  # a terminal would break longer ones within a word
    assert run(capsys)[1] == out
    assert run(capsys, "--version")[1] == f"specreg {specreg.__version__}\n"


@pytest.mark.parametrize("command", ["compare", "sweep", "train", "evaluate", "sample", "inspect", "watch", "report"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: specreg {command}" in capsys.readouterr().out


def boxes(capsys, *arguments: str) -> list[str]:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return re.findall(r"╭─ (\S+) options", capsys.readouterr().out)


PARTS = ["data", "model", "training"]


@pytest.mark.parametrize(
    ("arguments", "methods"),
    [
        (("train",), ["static"]),
        (("train", "--method", "sn"), []),
        (("train", "--method=guard"), ["guard"]),
        (("compare",), ["static", "dynamic"]),
        (("compare", "--methods", "sn,oni"), ["oni"]),
        (("sweep",), []),
    ],
)
def test_help_has_a_box_for_each_part_and_for_the_methods_chosen(arguments, methods, capsys):
    assert boxes(capsys, *arguments) == [*PARTS, *methods, "records", "detector"]


def test_help_says_what_to_begin_with_what_trains_by_default_and_how_to_see_the_rest(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert "static spectral regularization unless --method says otherwise" in out
    assert "Begin with --data, --method, --steps, --seed and --out" in out
    assert out.endswith("of dynamic, guard, orthogonal, d-optimal, spectral-penalty, oni.\n")
    assert "dynamic.start" not in out
    assert "Defaults are those of digits: --data DATA --help shows those of yours.\n" in out
    with pytest.raises(SystemExit):
        main(["train", "--data", "ring", "--help"])
    assert "Defaults are those of" not in capsys.readouterr().out


def test_options_are_read_without_torch():
    calls = [["train", "--stepz", "3"], ["train", "--image-size", "0"], ["watch", "--every", "x"]]
    code = f"import sys; from specreg.cli import main; print(*map(main, {calls}), 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "2 2 2 False\n"


@pytest.mark.parametrize("arguments", [["compare", "--help"], ["compare", "--stepz", "5"]])
def test_a_terminal_gets_the_same_text_as_a_pipe(arguments):
    ours, theirs = pty.openpty()
    call = [sys.executable, "-m", "specreg", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(call, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal says that nobody writes to any more
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    piped = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    assert shown.decode().replace("\r\n", "\n") == piped.stdout + piped.stderr


def weights(tmp_path: Path) -> str:
    torch.save({"conv[red]\x1b[31m.weight": torch.randn(4, 3, 3, 3), "last.weight": torch.eye(4)}, tmp_path / "w.pt")
    return str(tmp_path / "w.pt")


PRINTED = pytest.mark.parametrize("arguments", [["--help"], ["watch", "--help"], ["inspect", "w.pt"]])


def printed_to(stream: int, tmp_path: Path, arguments: list[str], **environment: str) -> tuple[int, bytes]:
    weights(tmp_path)
    call = [sys.executable, "-m", "specreg", *arguments]
    ended = subprocess.run(
        call, stdout=stream, stderr=subprocess.PIPE, cwd=tmp_path, env=os.environ | environment, check=False
    )
    os.close(stream)
    return ended.returncode, ended.stderr


def test_a_training_whose_progress_nobody_reads_is_made(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    options = {
        "steps": 2,
        "batch-size": 4,
        "d-channels": 4,
        "g-channels": 4,
        "latent": 4,
        "samples": 10,
        "reference": 10,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    call = [sys.executable, "-m", "specreg", "train", "--out", "run", "--no-tensorboard", *words]
    ended = subprocess.run(call, stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path, check=False)
    os.close(theirs)
    assert (ended.returncode, (tmp_path / "run" / "result.json").exists()) == (0, True)


@PRINTED
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments, tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)  # as head does, once it has its lines
    assert printed_to(theirs, tmp_path, arguments) == (141, b"")


@PRINTED
@pytest.mark.parametrize("unbuffered", ["", "1"])  # when it is written, and at the end
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_output_is_named_and_no_checkpoint(arguments, unbuffered, tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    code, said = printed_to(full, tmp_path, arguments, PYTHONUNBUFFERED=unbuffered)
    assert code == 1
    assert said.decode() == (
        "specreg: error: standard output cannot be written (No space left on device): make room, or send it elsewhere\n"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_is_closed_does_what_it_should(closed):
    command = f'"$0" -m specreg --version {closed}'
    assert subprocess.run(["sh", "-c", command, sys.executable], check=False).returncode == 0
    command = f'"$0" -m specreg nothing {closed}'
    assert subprocess.run(["sh", "-c", command, sys.executable], check=False).returncode == 2


def test_an_output_of_few_characters_gets_the_others_replaced():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    call = [sys.executable, "-m", "specreg", "inspect", "--help"]
    help_text = subprocess.run(call, capture_output=True, text=True, env=environment, check=True).stdout
    assert "usage: specreg inspect" in help_text
    assert help_text.isascii()


def test_without_the_lab_the_command_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("specreg.cli.find_spec", lambda name: None)
    code, _, error = run(capsys, "compare")
    assert code == 2
    assert "pip install '.[lab]' in the folder of specreg's source" in error  # it is on no registry


MEMORY = "there is not enough memory: make images, batches or networks smaller"
FULL = OSError(errno.ENOSPC, "No space left on device")
GOES_ON = "the same command {}goes on from the last checkpoint"


@pytest.mark.parametrize(
    ("command", "error", "code", "said"),
    [
        ("train", torch.OutOfMemoryError("CUDA"), 2, MEMORY),
        ("train", RuntimeError("you can't allocate memory: 9 GB"), 2, MEMORY),
        ("train", DisagreementError("step 7: differs"), 4, "step 7: differs"),
        ("train", MainFailedError("it says so itself"), 2, ""),
        ("train", LostProcessError("gone"), 4, f"gone; {GOES_ON.format('again ')}"),
        ("report", FULL, 1, "No space left on device: make room"),
        ("train", FULL, 1, f"No space left on device: make room; {GOES_ON.format('then ')}"),
    ],
)
def test_what_ends_a_command_has_its_exit_code_and_its_line(command, error, code, said, capsys, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setitem(_COMMANDS, command, fail)
    monkeypatch.setattr("specreg.cli.time.sleep", lambda seconds: None)
    assert run(capsys, command) == (code, "", f"specreg: error: {said}\n" if said else "")


def test_inspect_prints_a_table_of_80_columns_and_no_control_characters(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = weights(tmp_path)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("conv[red]�[31m") and "full" in line for line in lines)
    assert "4×3×3×3 = 4×27" in out
    assert "████" in next(line for line in lines if line.startswith("last"))
    assert "one checkpoint cannot show" in " ".join(out.split())
    assert "\x1b" not in out
    code, out, _ = run(capsys, "inspect", *(shutil.copy(path, f"{tmp_path}/step-{step}.pt") for step in (2, 10, 1)))
    assert code == 0
    assert "in the order of the steps in the files' names" in (note := " ".join(out.split()))
    assert "between 1 and 10 is judged, without a warm-up: steady says nothing of before and after" in note
    assert next(line for line in out.splitlines() if line.startswith("last")).split()[2:] == ["1.00"] * 3 + ["steady"]


@pytest.mark.parametrize(("columns", "note"), [(80, "5 of them are shown: a wider terminal has more."), (140, None)])
def test_inspect_says_that_some_of_many_checkpoints_are_not_shown(columns, note, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    path = weights(tmp_path)
    code, out, _ = run(capsys, "inspect", *(shutil.copy(path, f"{tmp_path}/step-{step}.pt") for step in range(9)))
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    assert ("of them are shown" in " ".join(out.split())) == (note is not None)
    assert note is None or note in " ".join(out.split())


def test_inspect_prints_json_and_draws(tmp_path, capsys):
    code, out, _ = run(capsys, "inspect", weights(tmp_path), "--only", "last", "--json", "--plot", f"{tmp_path}/p.svg")
    assert code == 0
    (layer,) = json.loads(out)["checkpoints"][0]["layers"]
    assert layer["name"] == "last"
    assert layer["singular_values"] == pytest.approx([1.0] * 4)
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")


def test_every_exit_code_is_documented_for_users():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    documented = page.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    codes = re.findall(r"\d+", str(cli.__doc__).partition("Exit codes:")[2])
    assert codes == ["0", "1", "2", "3", "4", "5", "130", "141"] == re.findall(r"\d+", documented)


def documented_commands() -> list[str]:
    """Return the command lines of the README and the pages beside it, without comments."""
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ]
    text = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages)
    return [match[1] for match in re.finditer(rf"^ *(specreg (?:{'|'.join(_COMMANDS)}) .*?) *(?:#.*)?$", text, re.M)]


def test_the_documented_commands_are_understood():
    commands = documented_commands()
    assert len(commands) > 30
    for command in commands:
        _, name, *arguments = shlex.split(command)
        kind = getattr(options, name.capitalize())
        options.parse(kind(), _with_address(arguments))
