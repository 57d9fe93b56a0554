"""A sweep that takes moments, for tests in several folders."""

from specreg.experiments.config import ModelConfig, RecordConfig, Settings
from specreg.experiments.presets import Cell
from specreg.training.loop import TrainingConfig


def tiny(steps: int = 4) -> list[Cell]:
    """One cell on digits that takes a moment."""
    settings = Settings(
        model=ModelConfig(d_channels=4, g_channels=4, latent=8),
        training=TrainingConfig(steps=steps, batch_size=4, d_steps=1),
        records=RecordConfig(
            log_every=10, spectra_every=10, evaluate_every=20, checkpoint_every=10, samples=64, reference=128,
            tensorboard=False,
        ),
    )  # fmt: skip
    return [Cell("tiny", settings, methods=("sn", "static"))]
