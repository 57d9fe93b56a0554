"""Small trainings of the command line in processes of their own, and what makes two runs the same."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OPTIONS = [
    "--steps", "24", "--d-channels", "4", "--g-channels", "4", "--latent", "8", "--batch-size", "4", "--d-steps", "2",
    "--log-every", "1", "--spectra-every", "2", "--evaluate-every", "6", "--checkpoint-every", "4",
    "--samples", "64", "--reference", "128", "--ema-decay", "0.9", "--lr-decay", "linear", "--dynamic.start", "4",
]  # fmt: skip
SERIES = ("metrics.jsonl", "evaluations.jsonl", "spectra.jsonl", "verdicts.jsonl", "sensitivity.jsonl")


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "specreg", "train", "--quiet", "--out", str(out), *options]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def assert_same_run(one: Path, other: Path) -> None:
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (one, other)]
    assert_same_value(*states)
    names = [{path.name for path in run.glob("*.jsonl")} for run in (one, other)]
    assert names[0] == names[1]
    assert names[0] >= set(SERIES)
    for name in (*names[0], "result.json"):
        assert (one / name).read_text() == (other / name).read_text(), name
    if (one / "tensorboard").exists():
        assert board(one) == board(other)


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows, and make sure that it is what the records hold."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert shown["metrics/d_loss"] == [(record["step"], pytest.approx(record["d_loss"])) for record in losses]
    steps = [json.loads(line)["step"] for line in (run / "spectra.jsonl").read_text().splitlines()]
    assert [step for step, _ in shown["spectral_state"]] == steps
    assert {"evaluations/kl", "gradient_norms/real", "diversity/ratio"} <= set(shown)
    assert any(tag.startswith("attainment/") for tag in shown)
    return shown


def assert_same_value(one, other, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_value(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_value(*pair, f"{where}[{index}]")
    else:
        assert one == other, where
