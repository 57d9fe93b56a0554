"""Every path to a spectrum agrees with an independent float64 reference; estimated errors are not optimistic."""

import functools
import math

import numpy as np
import pytest
import torch

import reference
import specreg
from kinds import matrix_with_spectrum, relative_error, to_numpy
from specreg.spectra import decompositions, fast, gram
from specreg.spectra.decompositions import singular_values, svd
from specreg.spectra.fast import PROMISED, TOLERANCE, compensate
from specreg.spectra.reference import dynamic_target, scaled, static_target, updated_record

SHAPES = [(40, 90), (90, 40), (64, 64), (128, 1152), (200, 27)]
SPECTRA = {
    "random": None,
    "flat": lambda r: torch.linspace(1.3, 0.7, r),
    "condition-1e4": lambda r: torch.logspace(0, -4, r),
    "repeated": lambda r: torch.tensor([3.0, 2.0, 1.0]).repeat_interleave(math.ceil(r / 3))[:r],
    "clustered": lambda r: torch.cat(
        [torch.linspace(1.0, 1 - 1e-5, r // 2), torch.linspace(0.5, 0.5 - 1e-5, r - r // 2)]
    ),
    "rank-deficient": lambda r: torch.cat([torch.linspace(2, 1, r - r // 4), torch.zeros(r // 4)]),
    "collapsed": lambda r: torch.cat([torch.ones(1), torch.linspace(0.1, 0.001, r - 1)]),
}
MAPS = {
    "half": lambda s: static_target(s, s.shape[-1] // 2),
    "all": lambda s: static_target(s, s.shape[-1]),
    "soft": lambda s: torch.lerp(s, static_target(s, s.shape[-1] // 2), 0.3),
    "dynamic": lambda s: dynamic_target(s, updated_record(s, torch.linspace(1, 0.3, s.shape[-1]).double())),
    "truncated": lambda s: s * (torch.arange(s.shape[-1]) < s.shape[-1] // 2),
    "unit": lambda s: scaled(static_target(s, s.shape[-1] // 2), torch.ones_like(s[..., 0])),
}


@functools.cache
def make(shape, spectrum, seed=0):
    rows, columns = shape
    if SPECTRA[spectrum] is None:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / max(shape) ** 0.5
    return matrix_with_spectrum(SPECTRA[spectrum](min(shape)).double(), rows, columns, seed).float()


@functools.cache
def decomposed(shape, spectrum, seed=0):
    return np.linalg.svd(to_numpy(make(shape, spectrum, seed)), full_matrices=False)


def expected_matrix(change, *made):
    u, s, vh = decomposed(*made)
    return u * change(torch.from_numpy(s)).numpy() @ vh


def well_posed(spectrum, change):
    """Raising a singular value 0 leaves the direction open: only its spectrum can be compared."""
    return not (spectrum == "rank-deficient" and change in ("all", "dynamic"))


@pytest.mark.parametrize("change", MAPS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_lift_keeps_its_promise(shape, spectrum, change):
    matrix = make(shape, spectrum)
    _, lifted = compensate(matrix, MAPS[change])
    if well_posed(spectrum, change):
        assert relative_error(lifted.matrix, expected_matrix(MAPS[change], shape, spectrum)) < PROMISED
    wanted = MAPS[change](torch.linalg.svdvals(matrix.double()))
    torch.testing.assert_close(
        torch.linalg.svdvals(lifted.matrix.double()),
        wanted.sort(descending=True)[0],
        rtol=0,
        atol=PROMISED * wanted.max(),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_lift_of_other_dtypes_equals_that_of_the_same_values_in_double(shape, dtype):
    matrix = torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    expected = compensate(matrix.to(torch.complex128 if dtype.is_complex else torch.float64), MAPS["half"])[1].matrix
    actual, u1, v1 = (part.to(expected.dtype) for part in compensate(matrix, MAPS["half"])[1])
    assert float((actual - expected).norm() / expected.norm()) < torch.finfo(dtype).eps + PROMISED
    along = float((u1.conj() @ actual @ v1).real)
    assert along == pytest.approx(
        float(torch.linalg.matrix_norm(expected, 2)), rel=2 * torch.finfo(dtype).eps + PROMISED
    )


HOPELESS = {  # in float32: an estimate that promises nothing, so that another rung is taken
    ("condition-1e4", "all"), ("condition-1e4", "dynamic"),
    ("repeated", "half"), ("repeated", "truncated"), ("repeated", "unit"),
}  # fmt: skip
JUDGED = [
    pytest.param(dtype, spectrum, change, id=f"{dtype}-{spectrum}-{change}")
    for dtype in (torch.float32, torch.float64)
    for spectrum in SPECTRA
    for change in MAPS
    if well_posed(spectrum, change) and (dtype == torch.float64 or (spectrum, change) not in HOPELESS)
]


@pytest.mark.parametrize(("dtype", "spectrum", "change"), JUDGED)
def test_estimated_error_bounds_the_error_of_each_rung(monkeypatch, dtype, spectrum, change):
    monkeypatch.setattr(fast, "precisions", lambda matrix: (dtype,))
    estimates = []

    def taken_whatever_it_is(*args, **kwargs):
        estimates.append(float(expected_error(*args, **kwargs)))
        return np.zeros(())

    expected_error = fast.expected_error
    monkeypatch.setattr(fast, "expected_error", taken_whatever_it_is)
    for seed in range(3):
        matrix = make((128, 1152), spectrum, seed)
        _, lifted = compensate(matrix, MAPS[change])
        assert estimates[-1] < 0.2
        error = relative_error(lifted.matrix, expected_matrix(MAPS[change], (128, 1152), spectrum, seed))
        assert error < 3 * estimates[-1] + 5e-7  # and the rounding of the application itself


def test_an_estimate_sends_hard_matrices_up_the_ladder(monkeypatch):
    tried = []
    basis = fast.eigenbasis
    monkeypatch.setattr(fast, "eigenbasis", lambda product: tried.append(product.dtype) or basis(product))
    decomposed = []
    thin = fast.thin_svd
    monkeypatch.setattr(fast, "thin_svd", lambda m: decomposed.append(m) or thin(m))
    single, double = torch.float32, torch.float64
    compensate(make((40, 90), "flat"), MAPS["half"])
    assert (tried, decomposed) == ([single], [])
    compensate(make((40, 90), "condition-1e4"), MAPS["all"])
    assert (tried[1:], decomposed) == ([single, double], [])
    compensate(make((40, 90), "rank-deficient"), MAPS["all"])
    assert tried[3:] == [single, double]
    assert len(decomposed) == 1
    # Zeros that stay zeros, and what is scaled alone, hinder nothing, unless they have to be accurate.
    compensate(make((40, 90), "rank-deficient"), MAPS["unit"], all_values=False)
    assert (tried[5:], len(decomposed)) == ([single], 1)
    compensate(make((40, 90), "rank-deficient"), MAPS["unit"])
    assert (tried[6:], len(decomposed)) == ([single, double], 1)


def test_values_that_are_raised_alike_err_by_the_rounding_of_their_squares():
    s = np.array([1, 0.05, 0.05], np.float32)
    rounding = gram.relative_rounding(np.finfo(np.float32).eps, 3)
    for all_values in (False, True):
        estimate = fast.expected_error(s**2, 1 / s, all_values=all_values)
        assert float(estimate) == pytest.approx(rounding / (2 * 0.05**2), rel=1e-5)


def test_products_in_less_than_float32_are_not_relied_on():
    matrix = make((40, 90), "flat")
    assert fast.precisions(matrix) == (torch.float32, torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        assert fast.precisions(matrix) == (torch.float64,)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert fast.precisions(matrix) == (torch.float64,)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compensate(matrix, MAPS["half"])[1].matrix, singular_values(matrix), *svd(matrix)
    outside = compensate(matrix, MAPS["half"])[1].matrix, singular_values(matrix), *svd(matrix)
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("solver", ["eigh", "eigvalsh"])
def test_without_convergence_the_thin_decomposition_is_taken(monkeypatch, solver):
    matrix = make((40, 90), "flat")
    expected = compensate(matrix, MAPS["half"])[1].matrix, singular_values(matrix), svd(matrix).S

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, solver, fails)
    actual = compensate(matrix, MAPS["half"])[1].matrix, singular_values(matrix), svd(matrix).S
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=PROMISED, atol=TOLERANCE)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_of_many_matrices(spectrum):
    matrices = [make(shape, spectrum, seed) for seed, shape in enumerate([*SHAPES, *SHAPES, (5, 70), (3, 2)])]
    matrices += [matrices[0].double(), torch.stack([matrices[1], matrices[1] * 2]), torch.zeros(30, 40)]
    for matrix in matrices:
        s = singular_values(matrix)
        expected = torch.linalg.svdvals(matrix.double())
        assert s.shape == expected.shape
        torch.testing.assert_close(s, expected, rtol=0, atol=float(decompositions.VALUES_TOLERANCE * expected.max()))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_svd_is_one(shape, spectrum):
    matrix = make(shape, spectrum)
    U, S, Vh = svd(matrix)
    eye = torch.eye(min(shape), dtype=torch.float64)
    assert float(((U * S) @ Vh - matrix.double()).norm() / matrix.double().norm()) < 1e-12
    assert float((U.T @ U - eye).abs().max()) < 1e-7
    assert float((Vh @ Vh.T - eye).abs().max()) < 1e-7
    assert bool((S[:-1] >= S[1:]).all())


def test_svd_of_an_ill_conditioned_matrix_is_thin():
    matrix = matrix_with_spectrum(torch.logspace(0, -6, 40).double(), 40, 90).float()
    _, _, Vh = svd(matrix)
    assert float((Vh @ Vh.T - torch.eye(40, dtype=torch.float64)).abs().max()) < 1e-12


@pytest.mark.parametrize("steps", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_compensations_of_a_weight_in_training_do_not_drift(steps):
    """Each is held against the authors' map of the same weight; gradients of a hinge loss move it, by Adam."""
    layer = torch.nn.Conv2d(12, 64, 3)
    network = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64 * 9, 1))
    specreg.spectral_norm(network)
    compensator = specreg.static_compensation(network, every=1, only=torch.nn.Conv2d)
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, betas=(0.0, 0.9))
    stored = layer.parametrizations.weight.original
    basis = torch.randn(20, 12 * 25)
    worst = 0.0
    for _ in range(steps):
        real, fake = torch.randn(8, 20) @ basis / 5, torch.randn(8, 300)
        real_scores, fake_scores = network(torch.cat([real, fake]).view(16, 12, 5, 5)).chunk(2)
        (torch.relu(1 - real_scores).mean() + torch.relu(1 + fake_scores).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected = reference.authors_static(to_numpy(stored).reshape(64, -1))
        compensator.step()
        worst = max(worst, relative_error(stored.flatten(1), expected))
    assert worst < PROMISED
    assert compensator.satisfied()


@pytest.mark.parametrize("exponent", [-15, -18, -22, -25, -30])
def test_singular_values_of_tiny_weights_are_not_lost_in_their_squares(exponent):
    matrix = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(matrix.double())
    found = singular_values(matrix * 10.0**exponent) / 10.0**exponent
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected[0]))


@pytest.mark.parametrize("gain", ["of the scale alone", "of the first half"])
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_estimate_does_not_hang_on_the_weights_scale(scale, gain):
    s = np.linspace(1, 0.01, 8)
    f = np.full(8, 0.5) if gain == "of the scale alone" else np.concatenate([1 / s[:4], np.ones(4)])
    assert fast.expected_error((scale * s) ** 2, f) == pytest.approx(fast.expected_error(s**2, f), rel=1e-9, abs=0)
