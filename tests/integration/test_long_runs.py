"""What grows while a run or a folder of runs grows: memory, open files, waiting; and Ctrl-C in a terminal."""

import gc
import json
import os
import pty
import random
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import make_run
from specreg.cli import main
from specreg.data.digits import StackedDigits
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.run import execute, prepare_run
from specreg.experiments.sources.images import Images
from specreg.records import RunDirectory
from specreg.training.loop import TrainingConfig
from trainings import OPTIONS, Fork, assert_same_run, environment, train

RECORDS = RecordConfig(log_every=5, spectra_every=10, evaluate_every=100, checkpoint_every=50, samples=64, reference=64)
SHOWS_CURSOR, HIDES_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def watched(out: Path, steps: int, every: int) -> None:
    """Train with everything on that writes; print step, memory (KiB), objects, files and threads now and then."""
    model = ModelConfig(d_channels=4, g_channels=4, latent=8)
    training = TrainingConfig(steps=steps, batch_size=4, d_steps=1)
    config = RunConfig("static", 0, Settings(model=model, training=training, records=RECORDS))

    def look(step: int, metrics: dict[str, float]) -> None:
        if step % every == 0 and not metrics:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            gc.collect()
            counts = [len(gc.get_objects()), *(len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))]
            print(step, pages * os.sysconf("SC_PAGE_SIZE") // 1024, *counts, flush=True)  # noqa: T201

    gc.freeze()  # what was imported is neither counted nor looked through again
    prepare_run(config, RunDirectory(out))
    with RunDirectory(out).lock():
        assert execute(config, RunDirectory(out), Images(StackedDigits()), progress=look)


def train_watched(out: Path, steps: int, every: int) -> list[list[int]]:
    code, printed = Fork(out.parent / "printed", watched, out, steps, every).finish()
    assert code == 0, printed
    return [[int(word) for word in line.split()] for line in printed.splitlines()]


def check_flat(rows: list[list[int]]) -> list[list[int]]:
    """Make sure that files and threads do not grow after the first third, and objects hardly; return these rows."""
    settled = rows[len(rows) // 3 :]
    assert len({(files, threads) for *_, files, threads in settled}) == 1, rows
    # A snapshot, every tenth step, leaves its spectra in the history.
    assert slope([(step, objects) for step, _, objects, *_ in settled]) < 3, rows
    return settled


@pytest.mark.slow
def test_nothing_grows_over_300_steps(tmp_path):
    """Objects and files: what the system counts as memory moves by megabytes from one reading to the next."""
    check_flat(train_watched(tmp_path / "run", 300, 25))


@pytest.mark.soak
def test_memory_is_flat_over_5000_steps(tmp_path, record_property):
    rows = train_watched(tmp_path / "run", 5000, 100)
    grown = 1000 * slope([(step, memory) for step, memory, *_ in check_flat(rows)])
    assert grown < 1000, rows
    record_property("KiB per 1,000 steps", round(grown))
    record_property("KiB at the end", rows[-1][1])
    record_property("open files", rows[-1][3])


def many_runs(folder: Path, seeds: list[str]) -> Path:
    """Make runs as trainings of 3,000 steps leave them, with thirty snapshots of a spectrum of six layers."""
    template = make_run(folder / "template")
    for name in ("spectra", "verdicts"):
        lines = (template / f"{name}.jsonl").read_text().splitlines()
        grown = []
        for step in range(0, 3000, 100):
            record = json.loads(lines[min(step // 100, 5)])
            if name == "spectra":
                record["layers"] = {f"blocks.{i}": [1.0 / (k + 1) for k in range(8)] for i in range(6)}
            grown.append(json.dumps(record | {"step": step}))
        (template / f"{name}.jsonl").write_text("\n".join(grown) + "\n")
    sweep = folder / "sweep"
    assert main(["sweep", "--preset", "digits", "--out", str(sweep), "--minutes", "1e-9", *CHOSEN, *seeds]) == 130
    laid_out = sorted(sweep.glob("digits/*/config.json"))
    assert len(laid_out) == 2 * len(seeds)
    for config in laid_out:
        shutil.copytree(template, config.parent, ignore=lambda *_: ["config.json", "method.json"], dirs_exist_ok=True)
    return sweep


CHOSEN = ["--methods", "sn", "static", "--seeds"]


def list_and_report(folder: Path, num_seeds: int) -> tuple[float, float]:
    """List and report a sweep; return how many seconds of this process' own time each took."""
    seeds = [str(seed) for seed in range(num_seeds)]
    sweep = many_runs(folder, seeds)
    began = time.process_time()
    assert main(["sweep", "--preset", "digits", "--out", str(sweep), *CHOSEN, *seeds]) == 0
    listed = time.process_time()
    assert main(["report", str(sweep), "--out", str(folder / "page.html")]) == 0
    return listed - began, time.process_time() - listed


@pytest.mark.usefixtures("unrendered")
def test_a_sweep_of_4_runs_is_listed_and_reported(tmp_path, capsys):
    list_and_report(tmp_path, 2)
    printed = " ".join(capsys.readouterr().out.split())
    assert "seeds 2 2" in printed


@pytest.mark.soak
def test_a_sweep_of_500_runs_is_listed_and_reported_in_seconds(tmp_path, record_property):
    listed, reported = list_and_report(tmp_path, 250)
    record_property("listed, seconds", round(listed, 2))
    record_property("reported, seconds", round(reported, 2))
    assert listed < 10
    assert reported < 10


def in_terminal(arguments: list[str], due: Callable[[bytes], bool]) -> tuple[int, bytes]:
    """Run a command in a terminal of its own, type Ctrl-C when it is due; return its exit code and what it wrote.

    The terminal's settings have to be as before.

    Args:
        due: says of what the command has written in the terminal whether to type Ctrl-C now.
    """
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells let background jobs inherit that it is ignored
        os.execvpe(arguments[0], arguments, environment() | {"TERM": "xterm", "COLUMNS": "100"})
    settings = termios.tcgetattr(terminal)
    shown, typed = b"", False
    while True:
        if not typed and due(shown):
            os.write(terminal, b"\x03")
            typed = True
        os.set_blocking(terminal, False)
        try:
            if not (part := os.read(terminal, 65536)):
                break
            shown += part
        except BlockingIOError:
            if not typed:
                assert termios.tcgetattr(terminal) == settings
            time.sleep(0.01)
        except OSError:  # the terminal has no other end any more
            break
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


# What comes before, torch's import, is Python's to interrupt.
READY = "import sys; from specreg.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
INTERRUPTED = [*OPTIONS, "--spectra-every", "20", "--evaluate-every", "60", "--no-tensorboard"]


def recorded(out: Path, steps: int) -> Callable[[bytes], bool]:
    """Return what is true once a run has recorded so many more steps than now."""
    metrics = out / "metrics.jsonl"

    def num_steps() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    before = num_steps()
    return lambda _: num_steps() >= before + steps


def elapsed(seconds: float) -> Callable[[bytes], bool]:
    """Return what is true so many seconds after the command was imported."""
    began: list[float] = []

    def due(shown: bytes) -> bool:
        if not began and b"ready" in shown:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > seconds

    return due


def interrupt(out: Path, steps: int, due: Callable[[bytes], bool]) -> None:
    told = [sys.executable, "-c", READY, "train", "--out", str(out), *INTERRUPTED, "--steps", str(steps)]
    code, shown = in_terminal(told, due)
    assert code in (130, -signal.SIGINT), shown.decode(errors="replace")
    assert shown.count(HIDES_CURSOR) == shown.count(SHOWS_CURSOR)
    assert shown.rfind(SHOWS_CURSOR) >= shown.rfind(HIDES_CURSOR)
    assert b"Traceback" not in shown
    assert b"the same command again goes on" in shown


def check_resumed(steps: int, *runs: Path) -> None:
    """Go on, by the same command: an early interrupt may have come before the configuration was written."""
    uninterrupted = runs[0].with_name("uninterrupted")
    for out in (uninterrupted, *runs):
        assert train(out, *INTERRUPTED, "--steps", str(steps))[0] == 0
        assert_same_run(uninterrupted, out)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path):
    out = tmp_path / "run"
    interrupt(out, 40, recorded(out, 1))
    check_resumed(40, out)


@pytest.mark.soak
def test_ctrl_c_at_ten_random_moments(tmp_path, record_property):
    moments, out, early = random.Random(1), tmp_path / "run", tmp_path / "early"
    for _ in range(6):
        interrupt(out, 120, recorded(out, moments.randint(1, 15)))
    # Before anything is written, too: while the lab is imported and the run is prepared.
    for _ in range(4):
        interrupt(early, 120, elapsed(moments.uniform(0, 4)))
    check_resumed(120, out, early)
    record_property("interrupts", 10)
