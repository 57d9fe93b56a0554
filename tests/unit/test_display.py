"""What the terminal shows while runs are made: an estimate once, a bar or a table, lines where nothing moves."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from runs import make_run
from specreg import display
from specreg.experiments.config import RunConfig, Settings
from specreg.experiments.jobs import Job
from specreg.records import PACE, RunDirectory


class Clock:
    """Time that goes by when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def terminal(monkeypatch, *, width: int) -> io.StringIO:
    """Show on a terminal of this width."""
    shown = io.StringIO()
    monkeypatch.setattr(display, "Console", lambda **_: Console(file=shown, force_terminal=True, width=width))
    return shown


@pytest.mark.parametrize(("name", "shown"), [("run", "run"), ("my run", "'my run'"), ("-run", "./-run")])
def test_the_command_that_comes_next_can_be_given_to_a_shell(name, shown, capsys):
    display.whereabouts(Path(name))
    assert capsys.readouterr().out.endswith(f"one page about it: specreg report {shown}\n")


@pytest.mark.parametrize(("cell", "command"), [("runs", "compare"), ("A", "sweep")])
def test_a_run_that_is_newer_than_its_comparison_says_what_makes_the_table_again(cell, command, tmp_path, capsys):
    folder = tmp_path / "mine"
    run = make_run(folder / cell / "sn-seed0")
    display.whereabouts(run)  # a run beside others, of no comparison
    for name in ("sweep.json", "results.json"):
        (folder / name).write_text("{}")
    now = (run / "result.json").stat().st_mtime
    os.utime(folder / "results.json", (now + 1, now + 1))
    display.whereabouts(run)
    assert "older" not in capsys.readouterr().out
    os.utime(folder / "results.json", (now - 1, now - 1))
    display.whereabouts(run)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"results.json and table.md in {folder} are older than this run: ")
    assert last.endswith(f" (specreg {command} --out {folder} ...)")


def test_a_number_has_the_prefix_of_what_it_is_rounded_to():
    shown = [display._large(number) for number in (999, 1050, 999_499, 999_500, 999_600_000_000, 10**20)]
    assert shown == ["999", "1.05 k", "999 k", "1 M", "1 T", "100 E"]


def job(folder, name: str, state: str, steps: int = 100, **latest: float) -> Job:
    settings = Settings()
    settings = replace(settings, training=replace(settings.training, steps=steps))
    run = RunDirectory(folder / "runs" / name)
    run.path.mkdir(parents=True)
    if latest:
        run.append("evaluations", latest)
    return Job(RunConfig("sn", 0, settings), run, state)


def test_a_log_has_the_estimate_once_and_a_line_every_ten_seconds(clock, capsys):
    with display.training(RunConfig("sn"), is_default=False) as tell:
        for step in range(1, 41):
            clock.now += 1.0
            tell(step, {PACE: 3.25} if step == 11 else {"fd": 18.25, "verdict": "steady"} if step == 15 else {})
    assert capsys.readouterr().err.splitlines() == [
        "SN on digits, 3000 steps (spectral normalization alone)",
        "sn, seed 0: step 10 of 3000",
        "sn, seed 0: about 2 h 40 min of training to come (2989 steps, evaluations not counted)",
        "sn, seed 0: step 20 of 3000, about 2 h 40 min left  FD 18.25  steady",
        "sn, seed 0: step 30 of 3000, about 2 h 40 min left  FD 18.25  steady",
        "sn, seed 0: step 40 of 3000, about 2 h 40 min left  FD 18.25  steady",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_the_estimate_and_metrics_that_are_not_cut(width, monkeypatch):
    shown = terminal(monkeypatch, width=width)
    with display.training(RunConfig("static"), is_default=False) as tell:
        tell(11, {PACE: 0.5})
        tell(500, {"modes": 987, "kl": 1.25, "fd": 118.25, "lost": 0.25, "d_loss": 1.5, "g_loss": -0.5})
        tell(501, {"verdict": "collapsing"})
    text = shown.getvalue()
    assert text.count("static, seed 0: about 25 min of training to come (2989 steps, evaluations not counted)") == 1
    for part in ("modes 987", "KL 1.25", "FD 118.25", "lost 0.25", "loss D 1.50", "loss G -0.50", "collapsing"):
        assert part in text
    assert "…" not in text


def test_several_runs_have_a_line_every_ten_seconds_with_the_time_to_come(tmp_path, clock, capsys):
    jobs = [job(tmp_path, name, "running") for name in "ab"] + [job(tmp_path, "c", "waiting")]
    with display.progress(jobs) as watch:
        clock.now = 10.0
        watch()
        assert capsys.readouterr().err == "3 runs: 2 running, 1 waiting; runs/a 0/100; runs/b 0/100\n"
        jobs[0].run.write("timing", {"seconds": 1.0, PACE: 3.0})
        jobs[1].run.write("timing", {"seconds": 1.0, PACE: 1.0})
        jobs[1].run.append("metrics", {"step": 40})
        watch()
        assert capsys.readouterr().err == ""
        clock.now = 20.0
        watch()
        # (100 · 3 + 60 · 1 + 100 · 2) / 2 seconds
        about = "about 5 min of training to come, evaluations not counted"
        assert capsys.readouterr().err == f"3 runs: 2 running, 1 waiting; {about}; runs/a 0/100; runs/b 40/100\n"


def test_a_run_that_has_recorded_nothing_yet_is_starting(tmp_path):
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(display._progress([job(tmp_path, "a", "running")]))
    assert shown.export_text().splitlines()[2].split() == ["runs/a", "0/100", "starting"]


def test_the_live_table_has_no_columns_that_all_runs_leave_empty(tmp_path):
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(display._progress([job(tmp_path, "a", "running", step=5, fd=18.25, lost=0.5)]))
    assert shown.export_text().splitlines()[1].split() == ["run", "step", "FD", "lost", "verdict"]


@pytest.mark.parametrize("is_default", [True, False])
def test_the_first_line_says_what_is_trained_and_that_nobody_chose_it(is_default, capsys):
    with display.training(RunConfig("static"), is_default=is_default) as tell:
        tell(1, {})
    text = capsys.readouterr().err.splitlines()[0]
    assert text.startswith("static SR on digits, 3000 steps (sn with static compensation")
    assert text.endswith("; by default, another one with --method)") == is_default


def test_nothing_is_said_of_a_training_that_does_not_begin(capsys):
    with display.training(RunConfig("sn"), is_default=False):
        pass
    assert capsys.readouterr().err == ""


class Unheard(io.StringIO):
    """Standard error whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_training_goes_on_when_nobody_reads_its_progress(monkeypatch):
    monkeypatch.setattr("sys.stderr", Unheard())
    with display.training(RunConfig("sn"), is_default=False) as tell:
        tell(1, {PACE: 0.1})
    with display.progress([]) as watch:
        watch()
