"""Make the golden traces: losses and spectra of a short training of each method.

.venv/bin/python tests/golden/make_traces.py
"""

import json
import tempfile
from pathlib import Path

import torch

from specreg.data.digits import StackedDigits
from specreg.experiments.config import ModelConfig, RecordConfig, RunConfig, Settings
from specreg.experiments.methods import PAPER_METHODS, DynamicOptions, MethodOptions
from specreg.experiments.run import execute, prepare_run
from specreg.experiments.sources.images import Images
from specreg.records import RunDirectory
from specreg.training.loop import TrainingConfig

# A guarded run of ten steps is one of spectral normalization alone.
METHODS = PAPER_METHODS
TRACES = Path(__file__).with_name("traces.json")
SETTINGS = Settings(
    methods=MethodOptions(dynamic=DynamicOptions(start=3)),
    model=ModelConfig(d_channels=4, g_channels=4, latent=8),
    training=TrainingConfig(steps=10, batch_size=8),
    records=RecordConfig(log_every=1, spectra_every=5, evaluate_every=0, samples=32, reference=32),
)


def trace(method: str) -> dict[str, list]:
    """Return the losses of every step and the spectra of every fifth."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        config = RunConfig(method, 7, SETTINGS)
        prepare_run(config, run)
        execute(config, run, Images(StackedDigits()))
        return {"metrics": run.series("metrics"), "spectra": run.series("spectra")}


if __name__ == "__main__":
    TRACES.write_text(json.dumps({method: trace(method) for method in METHODS}, indent=1) + "\n", encoding="utf-8")
