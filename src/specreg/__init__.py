"""Spectral regularization of GANs: keep, and watch, the singular values of a discriminator's weights."""

from specreg.guard import Guard
from specreg.layers.kinds import register
from specreg.monitor.attainment import attainment, gradient_norms
from specreg.monitor.coverage import Coverage
from specreg.monitor.detector import Detector, Thresholds, Verdict
from specreg.monitor.history import History
from specreg.monitor.monitor import Monitor
from specreg.monitor.samples import diversity
from specreg.monitor.snapshot import spectra
from specreg.regularizers.compensation import anchored_compensation, dynamic_compensation, static_compensation
from specreg.regularizers.normalization import remove, spectral_norm
from specreg.regularizers.orthogonalization import orthogonalize
from specreg.regularizers.penalties import d_optimal_penalty, orthogonality_penalty, spectral_penalty
from specreg.regularizers.regularization import spectral_regularization

__version__ = "0.2.0"

__all__ = [
    "Coverage",
    "Detector",
    "Guard",
    "History",
    "Monitor",
    "Thresholds",
    "Verdict",
    "anchored_compensation",
    "attainment",
    "d_optimal_penalty",
    "diversity",
    "dynamic_compensation",
    "gradient_norms",
    "orthogonality_penalty",
    "orthogonalize",
    "register",
    "remove",
    "spectra",
    "spectral_norm",
    "spectral_penalty",
    "spectral_regularization",
    "static_compensation",
]
