"""Shared fixtures: one thread, one seed and one level of the log for every test."""

import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: idle threads wait busily
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is compared are a CPU's bits, and texts that name it
for _name in (
    "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM", "COLUMNS", "LINES", "WORLD_SIZE", "RANK", "LOCAL_RANK",
):  # fmt: skip
    os.environ.pop(_name, None)  # by which rich prints, and what a launcher sets
# What takes seconds is imported in the fixtures: the process that hands tests to the others runs none.


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("specreg").setLevel(logging.NOTSET)  # a command that an earlier test ran has set it


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Make the pictures of figures empty: a page takes a fifth of its time without drawing them."""
    from matplotlib.figure import Figure
    from PIL import Image

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: Image.new("RGB", (4, 4)).save(file, "png"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that a training fills, beside what else a test needs."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def current_devices(monkeypatch) -> list[object]:
    """Return the tensors whose device is the current one, the innermost last, as a GPU's would be."""
    import torch

    tensors: list[object] = []

    @contextlib.contextmanager
    def device_of(tensor: object):
        tensors.append(tensor)
        yield
        tensors.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    return tensors


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Let no test wait for ever: after an hour, which none needs, it fails at the line where it waits."""

    def fail(*_: object) -> None:
        pytest.fail(f"{item.nodeid} has waited for an hour")  # which no ``except Exception`` catches

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(3600)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", metavar="FILE", help="write what tests measured as JSON, if all pass")


def pytest_sessionfinish() -> None:
    if trainings := sys.modules.get("trainings"):
        trainings.stop_forks()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Show what tests measured, and write it."""
    passed = terminalreporter.getreports("passed")
    figures = {report.nodeid: dict(report.user_properties) for report in passed if report.user_properties}
    for test, measured in figures.items():
        terminalreporter.write_line(f"{test}: {', '.join(f'{name} {value}' for name, value in measured.items())}")
    if (path := config.getoption("--figures")) and not terminalreporter.getreports("failed"):
        Path(path).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
