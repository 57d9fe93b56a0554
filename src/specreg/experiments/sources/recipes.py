"""Recipes: by kind of data, the settings that a run has unless told otherwise. What they reach is in docs/data.md."""

from dataclasses import replace

from specreg.experiments.config import ModelConfig, RecordConfig, Settings
from specreg.training.config import TrainingConfig

DIGITS = Settings()

_RING = Settings(
    model=ModelConfig(d_channels=8, g_channels=8, latent=2),
    training=TrainingConfig(
        steps=1500, batch_size=128, generator_batch=1, d_steps=1, d_lr=1e-3, g_lr=3e-3, beta1=0.0, beta2=0.99,
        lr_decay="linear",
    ),
    records=RecordConfig(samples=2500),
)  # fmt: skip
# Four times the ring's steps are what SN needs to find 25 modes.
MIXTURES = {"ring": _RING, "grid": replace(_RING, training=replace(_RING.training, steps=6000))}

# Liu et al. 2019, with the discriminator and the batch that their tables have in common.
_LARGE = Settings(
    model=ModelConfig(d_channels=128, g_channels=256, latent=128),
    training=TrainingConfig(
        steps=50_000, batch_size=64, generator_batch=2, d_steps=5, d_lr=2e-4, g_lr=2e-4, beta1=0.0, beta2=0.9,
        lr_decay="linear",
    ),
    records=RecordConfig(
        log_every=100, spectra_every=250, evaluate_every=2500, checkpoint_every=500, samples=10_000, reference=10_000
    ),
)  # fmt: skip
# Mimicry (Lee and Town 2020), CelebA.
_HIGH = replace(
    _LARGE,
    model=ModelConfig(d_channels=64, g_channels=64, latent=128),
    training=replace(_LARGE.training, steps=100_000, generator_batch=1),
)
# By the least side of the images; smaller ones are trained like digits.
IMAGES = {
    0: DIGITS,
    28: replace(
        _LARGE,
        model=ModelConfig(d_channels=8, g_channels=16, latent=64),
        training=replace(_LARGE.training, steps=10_000, generator_batch=1, d_steps=1, g_lr=1e-3),
    ),
    32: _LARGE,
    64: _HIGH,
    128: replace(_HIGH, training=replace(_HIGH.training, d_steps=2, lr_decay="none")),
}
