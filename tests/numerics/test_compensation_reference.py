"""Compensation equals an independent float64 numpy reference, for every layer kind, dtype and hard spectrum."""

import numpy as np
import pytest
import torch
from torch import nn

import reference
import specreg
from kinds import LAYERS, SPECTRA, relative_error, set_spectrum, to_numpy

RELATIVE = 1e-5  # Frobenius, float32 weights


def expected_weight(layer: nn.Module, change) -> np.ndarray:
    weight = to_numpy(layer.weight)
    return reference.from_matrices([change(m) for m in reference.as_matrices(weight, layer)], weight, layer)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("keep", "scale"), [(0.5, "keep"), (0.5, "unit"), (2, "keep")])
def test_static_equals_the_reference(kind, spectrum, keep, scale):
    layer = LAYERS[kind]()
    set_spectrum(layer, SPECTRA[spectrum])
    expected = expected_weight(layer, lambda m: reference.static_compensation(m, keep, unit=scale == "unit"))
    specreg.static_compensation(layer, keep=keep, scale=scale, only="").step()
    assert relative_error(layer.weight, expected) < RELATIVE


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scale", ["keep", "unit"])
def test_dynamic_equals_the_reference_over_a_training(kind, spectrum, scale):
    layer = LAYERS[kind]()
    set_spectrum(layer, SPECTRA[spectrum])
    weight = to_numpy(layer.weight)
    schemes = [reference.Dynamic(unit=scale == "unit") for _ in reference.as_matrices(weight, layer)]
    compensator = specreg.dynamic_compensation(layer, every=1, start=0, scale=scale, only="")
    for step in range(4):
        weight = to_numpy(layer.weight)
        matrices = reference.as_matrices(weight, layer)
        lifted = [scheme(matrix) for scheme, matrix in zip(schemes, matrices, strict=True)]
        expected = reference.from_matrices(lifted, weight, layer)
        compensator.step()
        assert relative_error(layer.weight, expected) < RELATIVE
        with torch.no_grad():  # an "optimizer step" that changes the spectrum
            layer.weight += 0.05 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv2d-transposed-grouped", "embedding"])
def test_every_dtype_is_computed_in_at_least_float32(kind, dtype):
    layer = LAYERS[kind]().to(dtype)
    expected = expected_weight(layer, lambda m: reference.static_compensation(m, 0.5))
    compensator = specreg.static_compensation(layer, only="")
    compensator.step()
    assert layer.weight.dtype == dtype
    assert compensator.satisfied()
    # What is left is the rounding of each entry to the weight's dtype, and LAPACK's own few eps in double precision.
    own = 1e-14 if dtype in (torch.float64, torch.complex128) else 2e-6
    assert relative_error(layer.weight, expected) < torch.finfo(dtype).eps + own
