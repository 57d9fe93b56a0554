"""The public names of ``specreg``, which finds them here at their first use."""

# ruff: noqa: PLC0414  (so that type checkers take them for public)

from specreg.guard import Guard as Guard
from specreg.layers.kinds import register as register
from specreg.monitor.attainment import attainment as attainment
from specreg.monitor.attainment import gradient_norms as gradient_norms
from specreg.monitor.coverage import Coverage as Coverage
from specreg.monitor.detector import Detector as Detector
from specreg.monitor.detector import Thresholds as Thresholds
from specreg.monitor.history import History as History
from specreg.monitor.monitor import Monitor as Monitor
from specreg.monitor.samples import diversity as diversity
from specreg.monitor.snapshot import spectra as spectra
from specreg.monitor.verdict import Verdict as Verdict
from specreg.regularizers.compensation import dynamic_compensation as dynamic_compensation
from specreg.regularizers.compensation import static_compensation as static_compensation
from specreg.regularizers.normalization import remove as remove
from specreg.regularizers.normalization import spectral_norm as spectral_norm
from specreg.regularizers.orthogonalization import orthogonalize as orthogonalize
from specreg.regularizers.penalties import d_optimal_penalty as d_optimal_penalty
from specreg.regularizers.penalties import orthogonality_penalty as orthogonality_penalty
from specreg.regularizers.penalties import spectral_penalty as spectral_penalty
from specreg.regularizers.regularization import spectral_regularization as spectral_regularization
