"""Spectral regularization of GANs: keep, and watch, the singular values of a discriminator's weights."""

from specreg.monitor.snapshot import spectra
from specreg.regularizers.compensation import dynamic_compensation, static_compensation
from specreg.regularizers.normalization import remove, spectral_norm
from specreg.regularizers.regularization import spectral_regularization

__version__ = "0.1.0"

__all__ = [
    "dynamic_compensation",
    "remove",
    "spectra",
    "spectral_norm",
    "spectral_regularization",
    "static_compensation",
]
