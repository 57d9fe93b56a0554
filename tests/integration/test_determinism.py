"""The same seed gives the same bits: in another process, with another cadence of watching, or with none."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specreg.data.digits import StackedDigits
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.methods import DynamicOptions, MethodOptions
from specreg.experiments.run import execute, prepare_run
from specreg.experiments.sources.images import Images
from specreg.records import RunDirectory
from specreg.training.loop import TrainingConfig
from trainings import DYNAMIC, OPTIONS, assert_same_run, assert_same_value, command, environment
from trainings import train as fork

WATCHFUL = RecordConfig(
    log_every=1, spectra_every=2, evaluate_every=4, checkpoint_every=3, samples=64, reference=64, tensorboard=True
)
NEVER = 10**6
BLIND = replace(
    WATCHFUL, log_every=NEVER, spectra_every=NEVER, evaluate_every=0, checkpoint_every=NEVER, tensorboard=False
)
TRAINED = ("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer", "compensator")
READ = ("missing", "lost", "far", "floor")
STREAMS = ("draws", "random", "global_random")


def train(out: Path, method: str, records: RecordConfig) -> dict:
    settings = Settings(
        model=ModelConfig(d_channels=4, g_channels=4, latent=8),
        training=TrainingConfig(steps=12, batch_size=4, d_steps=2, ema_decay=0.9),
        records=records,
        methods=MethodOptions(dynamic=DynamicOptions(start=4)),
    )
    config, run = RunConfig(method, 3, settings), RunDirectory(out)
    prepare_run(config, run)
    assert execute(config, run, Images(StackedDigits()))
    return torch.load(run.checkpoint, weights_only=True)


@pytest.mark.parametrize("method", ["sn", "static", "dynamic", "oni"])
def test_watching_changes_no_bit(method, tmp_path):
    watched = train(tmp_path / "watched", method, WATCHFUL)
    blind = train(tmp_path / "blind", method, BLIND)
    assert len((tmp_path / "watched" / "spectra.jsonl").read_text().splitlines()) == 7
    blind_run = RunDirectory(tmp_path / "blind")  # looks at its beginning and its end alone
    assert [record["step"] for record in blind_run.series("spectra")] == [0, 12]
    (end,) = blind_run.series("evaluations")
    result = blind_run.read("result")
    assert end["step"] == 12
    assert {name: end[name] for name in READ} == {name: result[name] for name in READ}
    assert result["answers"] == {"spectra": "not judged", "coverage": "not judged", "signal": "teaching"}
    for part in (*TRAINED, *STREAMS):
        assert_same_value(watched[part], blind[part], part)


@pytest.mark.slow
def test_another_process_makes_the_same_bits(tmp_path):
    options = [*DYNAMIC, *OPTIONS, "--steps", "12"]
    assert fork(tmp_path / "one", *options) == (0, "")
    # A real one, by its own entry point, which hashes otherwise.
    subprocess.run(command(tmp_path / "other", *options), check=True, env=environment() | {"PYTHONHASHSEED": "2"})
    assert_same_run(tmp_path / "one", tmp_path / "other")
